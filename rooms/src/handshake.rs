//! What a server that is not in a room asks of one that is, so that its user comes in, goes, or knocks: first for a template of the member
//! event, then to take the event in. Server-Server API, "Joining Rooms", "Leaving Rooms (Rejecting Invites)", "Knocking upon a room".

use std::sync::Arc;

use model::{
    Membership, Pdu, UserNr,
    limits::{ID_BYTES_MAX, is_name},
};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, RoomId, RoomVersionId, ServerName, UserId,
    events::TimelineEventType, room_version_rules::RoomVersionRules, signatures,
};
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use storage::{RoomRow, StoredEvent};

use crate::{
    Draft, Error, Received, Rooms,
    create::object,
    head::{Head, membership_of},
    power::rules_of,
    restricted::Vouching,
};

/// A server that asks one of ours about a room.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    /// Who asks.
    pub origin: &'a ServerName,
    /// Which of our names is asked.
    pub destination: &'a ServerName,
}

/// What a user of another server wants of a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// To come in.
    Join,
    /// To go, to refuse an invitation, or to take a knock back.
    Leave,
    /// To ask to be let in.
    Knock,
}

impl Handshake {
    fn membership(self) -> Membership {
        match self {
            Self::Join => Membership::Join,
            Self::Leave => Membership::Leave,
            Self::Knock => Membership::Knock,
        }
    }
}

/// A member event that another server makes complete and signs.
#[derive(Clone, Debug)]
pub struct Template {
    /// The version of the room.
    pub version: RoomVersionId,
    /// The event, without hashes and signatures.
    pub event: Box<RawValue>,
}

impl Rooms {
    /// The member event that a user of another server has to send, if the room lets them.
    ///
    /// `versions` are those that the other server knows, where it says so.
    ///
    /// # Errors
    ///
    /// [`Error::RoomUnknown`] when the server that is asked is not in the room; [`Error::NotAllowed`] when the room does not let the user,
    /// or its access list not the server; [`Error::IncompatibleVersion`]; for restricted rooms [`Error::UnableToAuthorize`] and
    /// [`Error::UnableToGrant`].
    pub async fn handshake_template(
        &self,
        asker: Asker<'_>,
        room_id: &RoomId,
        user_id: &UserId,
        handshake: Handshake,
        versions: Option<&[RoomVersionId]>,
    ) -> Result<Template, Error> {
        if user_id.server_name() != asker.origin || !is_name(user_id.as_str(), ID_BYTES_MAX) {
            return Err(Error::NotAllowed(format!("{user_id} is not a user of {}", asker.origin)));
        }
        let room = self.room_of_resident(asker, room_id).await?;
        if versions.is_some_and(|versions| !versions.contains(&room.version)) {
            return Err(Error::IncompatibleVersion(room.version.clone()));
        }
        let authoriser = match handshake {
            Handshake::Join => match self.vouching_for(&room, user_id, asker.destination).await? {
                Vouching::By(user_id) => Some(user_id),
                // Where no condition holds, the rules say so.
                Vouching::NotNeeded | Vouching::NoneHolds => None,
                Vouching::CannotTell => return Err(Error::UnableToAuthorize),
                Vouching::Nobody => return Err(Error::UnableToGrant),
            },
            Handshake::Leave | Handshake::Knock => None,
        };
        let content = object(json!({"membership": handshake.membership().as_str()}))?;
        // A stranger gets no number: nothing is written yet.
        let draft = Draft::new(user_id.to_owned(), UserNr::default(), TimelineEventType::RoomMember, content)
            .with_state_key(user_id.as_str())
            .authorised_via(authoriser);
        let head = Head::load(self.storage(), room.clone()).await?;
        let mut event = head.template(self.storage(), &draft).await?;
        event.insert("origin".to_owned(), CanonicalJsonValue::String(asker.destination.to_string()));
        let event = serde_json::value::to_raw_value(&event).map_err(|error| Error::BadEvent(error.to_string()))?;
        Ok(Template { version: room.version.clone(), event })
    }

    /// Takes in the member event that came of a template; the other servers of the room get it from us. Gives it as it is stored, with our
    /// signature where one of ours vouches for a join. An event that was taken in before is given again.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParam`] for what is no such event, or is not signed; [`Error::NotAllowed`] when the room does not let the user, by
    /// now or at the time of the event; otherwise as [`Rooms::handshake_template`].
    pub async fn accept_handshake(
        &self,
        asker: Asker<'_>,
        (room_id, event_id): (&RoomId, &EventId),
        handshake: Handshake,
        mut event: CanonicalJsonObject,
    ) -> Result<Arc<StoredEvent>, Error> {
        let room = self.room_of_resident(asker, room_id).await?;
        let rules = Arc::new(rules_of(&room.version)?);
        let invalid = |error: &dyn std::fmt::Display| Error::InvalidParam(error.to_string());
        let pdu = Pdu::from_canonical(&event, &rules).map_err(|error| invalid(&error))?;
        check_is_asked_for(&pdu, asker, &room, event_id, handshake.membership())?;
        if handshake == Handshake::Join
            && rules.authorization.restricted_join_rule
            && let Some(voucher) = authorised_via(&pdu)
            && let Some(server) = self.servers().get(voucher.server_name())
        {
            match self.vouching_for(&room, &pdu.sender, asker.destination).await? {
                // Whether who is named may let somebody in is for the rules to say.
                Vouching::By(_) | Vouching::NotNeeded | Vouching::Nobody => {}
                Vouching::NoneHolds => return Err(Error::NotAllowed("no condition of the room holds".to_owned())),
                Vouching::CannotTell => return Err(Error::UnableToAuthorize),
            }
            signatures::sign_event(server.name.as_str(), &server.key, &mut event, &rules.redaction)
                .map_err(|error| invalid(&error))?;
        }
        let pdu = self.verified_whole(&room, &rules, event).await?;
        let not_allowed = |rule: String| Err(Error::NotAllowed(rule));
        let head = self.storage().get_head(room.nr).await?.ok_or(Error::RoomUnknown)?;
        let policy = self.policy_at(&room, head.state).await?;
        let mut judged = self.judged_by_policy_server(asker.destination, &room, policy.as_ref(), vec![pdu]).await?;
        let (pdu, refusal) = judged.pop().expect("one event was judged");
        if let Some(refusal) = refusal {
            return not_allowed(refusal);
        }
        match self.receive_verified(&room, pdu, true).await? {
            Received::Accepted | Received::Known => {}
            Received::SoftFailed(rule) | Received::Rejected(rule) => return not_allowed(rule),
            Received::Missing(_) => {
                return Err(Error::InvalidParam("it refers to events that are not here".to_owned()));
            }
        }
        let stored = self.storage().find_event(event_id).await?.ok_or(Error::EventUnknown)?;
        if stored.room_nr != room.nr || stored.pdu.rejected || stored.soft_failed || stored.outlier {
            return not_allowed("the room does not let this event in".to_owned());
        }
        Ok(stored)
    }

    /// The room of a server's question, which must be for a server that is in it, and let the asking one take part.
    pub(crate) async fn room_of_resident(&self, asker: Asker<'_>, room_id: &RoomId) -> Result<Arc<RoomRow>, Error> {
        let room = self.room(room_id).await?;
        if self.storage().list_rooms_of_servers(&[room.nr], &[asker.destination]).await?.is_empty() {
            return Err(Error::RoomUnknown);
        }
        self.check_server_allowed(room_id, asker.origin).await?;
        // Whom the room lets in is not known before all its members are: others know. As in Synapse.
        if self.storage().is_partial(room.nr).await? {
            return Err(Error::RoomUnknown);
        }
        Ok(room)
    }

    /// An event of another server that is signed, and has the content that its hash was made of.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParam`].
    pub(crate) async fn verified_whole(
        &self,
        room: &Arc<RoomRow>,
        rules: &Arc<RoomVersionRules>,
        event: CanonicalJsonObject,
    ) -> Result<Pdu, Error> {
        let invalid = |error: Error| match error {
            Error::BadEvent(what) => Error::InvalidParam(what),
            other => other,
        };
        let (_, read) = self.read_events(room, rules, vec![event]).await?.remove(0);
        let read = read.map_err(invalid)?;
        let given = read.pdu.json.clone();
        let pdu = self.verify_events(vec![read]).await?.remove(0).map_err(invalid)?;
        match pdu.json == given {
            true => Ok(pdu),
            false => Err(Error::InvalidParam("the event has not the content that its hash was made of".to_owned())),
        }
    }

    async fn vouching_for(
        &self,
        room: &RoomRow,
        user_id: &UserId,
        destination: &ServerName,
    ) -> Result<Vouching, Error> {
        self.vouching(self.storage().find_user_nr(user_id).await?, room, destination).await
    }
}

/// Whether an event is the member event that was asked for. Server-Server API, "PUT /send_join/{roomId}/{eventId}" and its siblings.
fn check_is_asked_for(
    pdu: &Pdu,
    asker: Asker<'_>,
    room: &RoomRow,
    event_id: &EventId,
    membership: Membership,
) -> Result<(), Error> {
    let wrong = if pdu.event_type != TimelineEventType::RoomMember {
        "its type"
    } else if membership_of(pdu) != Some(membership) {
        "its membership"
    } else if pdu.sender.server_name() != asker.origin {
        "its sender"
    } else if !is_name(pdu.sender.as_str(), ID_BYTES_MAX) || !is_name(event_id.as_str(), ID_BYTES_MAX) {
        "an identifier"
    } else if pdu.state_key.as_deref() != Some(pdu.sender.as_str()) {
        "its state key"
    } else if pdu.room_id != room.id {
        "its room"
    } else if pdu.event_id != event_id {
        "its id"
    } else {
        return Ok(());
    };
    Err(Error::InvalidParam(format!("the event is not the one of this request: {wrong} is wrong")))
}

/// Who a join says has let its user in.
fn authorised_via(pdu: &Pdu) -> Option<ruma::OwnedUserId> {
    #[derive(Deserialize)]
    struct Content {
        join_authorised_via_users_server: Option<ruma::OwnedUserId>,
    }
    serde_json::from_str::<Content>(pdu.content.get()).ok()?.join_authorised_via_users_server
}
