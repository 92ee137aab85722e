//! What is to be written, as plain data.

use std::sync::Arc;

use model::{EventNr, Membership, NodeNr, Pdu, Position, RoomNr, StateKeyNr, Thread, TypeNr, UserNr};
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, RoomVersionId};

use crate::{Error, KeySignatureRow, NewReceivedTransaction, StateNode, StoredEvent, ThreadSubscription};

/// What passes whole or not at all. Each part that clients learn of gets a position, in the order of the fields.
#[derive(Clone, Debug, Default)]
pub struct Commit {
    /// Events of one room.
    pub room: Option<RoomCommit>,
    /// Read receipts.
    pub receipts: Vec<NewReceipt>,
    /// Account data of users.
    pub account_data: Vec<NewAccountData>,
    /// Messages to devices.
    pub to_device: Vec<NewToDevice>,
    /// EDUs that other servers must get.
    pub outgoing_edus: Vec<NewOutgoingEdu>,
    /// Signatures that users added to keys.
    pub key_signatures: Vec<KeySignatureRow>,
    /// Changes of users' devices and keys.
    pub device_lists: Vec<DeviceListChange>,
    /// Profiles that changed.
    pub profiles: Vec<ChangedProfile>,
    /// Subscriptions to threads.
    pub thread_subscriptions: Vec<NewThreadSubscription>,
    /// What a client calls these requests, so that none is done twice.
    pub transactions: Vec<NewTransaction>,
    /// Transactions of other servers that were worked off.
    pub received_transactions: Vec<NewReceivedTransaction>,
}

/// Events of one room, built upon each other, and what they change.
#[derive(Clone, Debug, Default)]
pub struct RoomCommit {
    /// The room.
    pub room_nr: RoomNr,
    /// For a room that does not exist yet.
    pub new_room: Option<NewRoom>,
    /// The state that the events were built upon; the commit fails when the room has another by now.
    pub expected_state: NodeNr,
    /// Whether this process has the room for itself for a moment if it has another state by now, so that the next try passes.
    pub lease: bool,
    /// The room's state after the events.
    pub state: NodeNr,
    /// The largest depth in the room.
    pub depth: i64,
    /// The events in order.
    pub events: Vec<NewEvent>,
    /// Forward extremities that have a successor now.
    pub extremities_used: Vec<EventNr>,
    /// New forward extremities.
    pub extremities_added: Vec<EventNr>,
    /// New nodes of the room's state map.
    pub state_nodes: Vec<(NodeNr, Arc<StateNode>)>,
    /// What changed in the current state, in order: by the live state events, and by state resolution.
    pub state_changes: Vec<StateChange>,
    /// What members were to the room before this server came to know of it, or that changed while it was not in the room: all of them get
    /// the position of the last event.
    pub members: Vec<MembershipChange>,
    /// What somebody was shown of the room whose member event is among the events: a list of events in JSON.
    pub stripped_state: Option<(EventNr, String)>,
    /// Events of the timeline before which something is missing.
    pub gaps_opened: Vec<EventNr>,
    /// Events before which nothing is missing any more.
    pub gaps_closed: Vec<EventNr>,
    /// The summary of the room after the events, when it changed. Its counts are kept by the committer.
    pub summary: Option<RoomSummary>,
    /// Events that the events redact.
    pub redactions: Vec<Redaction>,
    /// Redactions that were held back and may be shown now: they get their positions.
    pub released: Vec<Arc<StoredEvent>>,
    /// Redactions that go on to what relates to their target.
    pub related_redactions: Vec<NewRelatedRedaction>,
    /// Events to which others of another server relate now: what was asked of their redaction is to be looked at again.
    pub related_again: Vec<OwnedEventId>,
    /// Aliases that the room gets.
    pub aliases: Vec<(String, UserNr)>,
    /// The servers in whose directory the room is listed from the start.
    pub listed_on: Option<OwnedServerName>,
}

/// A room that does not exist yet.
#[derive(Clone, Debug)]
pub struct NewRoom {
    /// Its id.
    pub room_id: OwnedRoomId,
    /// Its version.
    pub version: RoomVersionId,
}

/// Where an event stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// In the timeline: it gets the next position.
    Live,
    /// Known, but not where it belongs in the graph.
    Outlier,
    /// What a user of ours becomes to a room that none of our servers is in: told like an event of the timeline, but not part of it.
    Outside,
    /// In the timeline, behind a live event: it was sent before we came to know of the room, or was missed. Nobody is told of it.
    Backfilled {
        /// The position of the live event behind which it lies.
        anchor: Position,
        /// How far: a negative number, and each once for an anchor.
        step: i64,
    },
    /// Forbidden by its own past. Server-Server API, "Rejection".
    Rejected,
    /// Forbidden by the current state. Server-Server API, "Soft failure".
    SoftFailed,
    /// A redaction that cannot redact anything yet: part of the graph, and shown to nobody. Room Version 3, "Handling redactions".
    Held,
}

impl Placement {
    /// The place in the timeline that it gives to an event with that position.
    pub(crate) fn in_timeline(self, position: Option<Position>) -> Option<(Position, i64)> {
        match self {
            Self::Live => position.map(|position| (position, 0)),
            Self::Backfilled { anchor, step } => Some((anchor, step)),
            _ => None,
        }
    }
}

/// An event to be written.
#[derive(Clone, Debug)]
pub struct NewEvent {
    /// Its number.
    pub nr: EventNr,
    /// The event.
    pub pdu: Arc<Pdu>,
    /// Its sender.
    pub sender_nr: UserNr,
    /// Its type.
    pub type_nr: TypeNr,
    /// Its state key, for a state event.
    pub state_key_nr: Option<StateKeyNr>,
    /// The state after it.
    pub state: NodeNr,
    /// The state event that it replaced.
    pub replaces: Option<EventNr>,
    /// The events before it.
    pub prev: Vec<EventNr>,
    /// The events that allow it.
    pub auth: Vec<EventNr>,
    /// Where it stands.
    pub placement: Placement,
    /// Whether its sender's server leaves it to the one that let the sender in to send it to the others: to us, or for ours to another.
    pub passed_on: bool,
    /// Whether it is stored already, as an outlier, and gets its place now.
    pub was_outlier: bool,
    /// The device and transaction id that sent it, shown to that device only.
    pub transaction: Option<TransactionKey>,
    /// What it is to unread counts, if it may count.
    pub countable: Option<Arc<Countable>>,
    /// How it relates to another event.
    pub relation: Option<NewRelation>,
}

/// What an event is to unread counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Countable {
    /// Which of the default push rules fit it, as whoever counts has them in bits.
    pub class: i64,
    /// Its thread.
    pub thread: Thread,
    /// The users of ours whom it mentions.
    pub mentions: Vec<UserNr>,
    /// Whether its sender is ours, and has read up to here by sending it.
    pub has_been_read_to: bool,
}

/// How an event relates to another one, its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRelation {
    /// The parent, which need not be known.
    pub parent: OwnedEventId,
    /// The type of the relation.
    pub rel_type_nr: TypeNr,
    /// Whether it makes the event part of a thread.
    pub is_thread: bool,
    /// Whether the event has all that a relation of the type asks of it.
    pub is_whole: bool,
    /// For an annotation of which the sender has one only, the hash of its key.
    pub annotation_key: Option<i64>,
}

/// A change of the current state: by a live event of the commit, or by state resolution, to an older event or to none.
#[derive(Clone, Debug)]
pub struct StateChange {
    /// The event that the changed key has now; nothing when resolution took it away.
    pub event_nr: Option<EventNr>,
    /// For `m.room.member`, what that does to the user.
    pub membership: Option<MembershipChange>,
}

/// A user's membership changed.
#[derive(Clone, Debug)]
pub struct MembershipChange {
    /// The user.
    pub user_nr: UserNr,
    /// The user's server.
    pub server: OwnedServerName,
    /// Whether the user is ours.
    pub is_local: bool,
    /// What the user was in the room before.
    pub before: Option<Membership>,
    /// What the user is now.
    pub after: Membership,
    /// The member event that says so, or, when resolution took it away, the one that said otherwise.
    pub event_nr: EventNr,
}

/// What a room shows of itself: projected from its state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoomSummary {
    /// `m.room.name`.
    pub name: Option<String>,
    /// `m.room.topic`.
    pub topic: Option<String>,
    /// `m.room.avatar`.
    pub avatar_url: Option<String>,
    /// `m.room.canonical_alias`.
    pub canonical_alias: Option<String>,
    /// The type in `m.room.create`.
    pub room_type: Option<String>,
    /// The algorithm in `m.room.encryption`.
    pub encryption: Option<String>,
    /// `m.room.join_rules`.
    pub join_rule: String,
    /// `m.room.history_visibility`.
    pub history_visibility: String,
    /// `m.room.guest_access`.
    pub guest_access: String,
}

/// An event loses its content.
#[derive(Clone, Debug)]
pub struct Redaction {
    /// The event that loses its content.
    pub event_nr: EventNr,
    /// What is left of it: its redacted form, in canonical JSON.
    pub json: Arc<str>,
    /// The redaction event.
    pub by: EventNr,
    /// How it related to another event, which it does no more.
    pub relation: Option<NewRelation>,
    /// The thread that it was in, if it might count as unread.
    pub counted_in: Option<Thread>,
}

/// A redaction that goes on to what relates to its target. MSC3912.
#[derive(Clone, Debug)]
pub struct NewRelatedRedaction {
    /// The redaction.
    pub redaction_nr: EventNr,
    /// What it redacts.
    pub target: OwnedEventId,
    /// How that related to another event itself, if it did.
    pub target_rel_type: Option<String>,
    /// The types of relation by which it goes on.
    pub rel_types: Vec<String>,
}

/// A user has read a room up to an event.
#[derive(Clone, Debug)]
pub struct NewReceipt {
    /// The room.
    pub room_nr: RoomNr,
    /// The reader.
    pub user_nr: UserNr,
    /// `m.read`, `m.read.private`.
    pub receipt_type: String,
    /// The thread; nothing for all of them.
    pub thread: Option<Thread>,
    /// The event.
    pub event_id: OwnedEventId,
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
    /// The position up to which a user of ours has read by it.
    pub read_upto: Option<Position>,
}

/// A user's profile changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangedProfile {
    /// Whose.
    pub user_nr: UserNr,
    /// Whether rooms are to show it: name or picture changed.
    pub is_in_rooms: bool,
}

/// A user subscribes to a thread, or unsubscribes. A manual subscription does not become automatic.
#[derive(Clone, Debug)]
pub struct NewThreadSubscription {
    /// Whose.
    pub user_nr: UserNr,
    /// In which room.
    pub room_nr: RoomNr,
    /// The thread's root.
    pub root_nr: EventNr,
    /// What it becomes.
    pub state: ThreadSubscription,
}

/// A user's devices or keys changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceListChange {
    /// Whose.
    pub user_nr: UserNr,
    /// What of them.
    pub what: ChangedKeys,
}

impl From<UserNr> for DeviceListChange {
    /// Anything of a user's may have changed.
    fn from(user_nr: UserNr) -> Self {
        Self { user_nr, what: ChangedKeys::Anything }
    }
}

/// What of a user's devices and keys changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangedKeys {
    /// This device: its keys, its name, or that there is one.
    Device(String),
    /// The keys by which the user signs.
    CrossSigning,
    /// Anything.
    Anything,
}

impl ChangedKeys {
    /// As it is stored: the id of a device, which is not empty, an empty text, or nothing.
    pub(crate) fn column(&self) -> Option<String> {
        match self {
            Self::Device(device_id) => Some(device_id.clone()),
            Self::CrossSigning => Some(String::new()),
            Self::Anything => None,
        }
    }

    pub(crate) fn of_column(column: Option<String>) -> Self {
        match column {
            Some(device_id) if device_id.is_empty() => Self::CrossSigning,
            Some(device_id) => Self::Device(device_id),
            None => Self::Anything,
        }
    }
}

/// A piece of account data.
#[derive(Clone, Debug)]
pub struct NewAccountData {
    /// Whose.
    pub user_nr: UserNr,
    /// In which room; zero for none.
    pub room_nr: RoomNr,
    /// Its type.
    pub event_type: String,
    /// Its content, a JSON object.
    pub content: String,
}

/// A message to one device.
#[derive(Clone, Debug)]
pub struct NewToDevice {
    /// Whose device.
    pub user_nr: UserNr,
    /// Which device.
    pub device_id: String,
    /// The event as the device gets it: JSON with sender, type and content.
    pub message: Arc<str>,
}

/// An EDU that another server must get.
#[derive(Clone, Debug)]
pub struct NewOutgoingEdu {
    /// Which of our names sends it.
    pub origin: OwnedServerName,
    /// To whom.
    pub destination: OwnedServerName,
    /// The EDU in canonical JSON.
    pub edu: Arc<str>,
}

/// How a device names a request of its own. Client-Server API, "Transaction identifiers".
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TransactionKey {
    /// Who asked.
    pub user_nr: UserNr,
    /// From which device; empty for an application service.
    pub device_id: String,
    /// The endpoint with its path parameters.
    pub scope: String,
    /// The id that the device chose.
    pub transaction_id: String,
}

/// A request that must not be done twice.
#[derive(Clone, Debug)]
pub struct NewTransaction {
    /// Its name.
    pub key: TransactionKey,
    /// The event that came of it.
    pub event_nr: Option<EventNr>,
}

/// A commit has its place.
#[derive(Clone, Debug)]
pub struct Committed {
    /// The position of its last part. All of it is seen by who reads up to there.
    pub position: Position,
}

/// Why a commit was not written; nothing of it was.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommitError {
    /// The room's state is another by now: load the head again and build anew.
    #[error("the room has changed")]
    StateChanged,
    /// Another process has lost races for the room and has it for itself now: build anew when it is done.
    #[error("the room is another process's for {for_ms} ms")]
    Leased {
        /// How long at most, in milliseconds.
        for_ms: i64,
    },
    /// Some of the requests were done before: leave them out, answer with their events.
    #[error("the request was done before")]
    Replayed(Vec<(TransactionKey, Option<OwnedEventId>)>),
    /// Some of the events are stored already.
    #[error("an event exists already")]
    EventExists,
    /// The room, or an alias of it, exists already.
    #[error("the room or its alias exists already")]
    RoomExists,
    /// Too much is waiting: try again later.
    #[error("too much is waiting to be written")]
    Busy,
    /// The database failed. When the connection broke during the commit, it may have been written: load heads again.
    #[error("the database failed")]
    Storage(#[source] Arc<Error>),
}

impl From<Error> for CommitError {
    fn from(error: Error) -> Self {
        Self::Storage(Arc::new(error))
    }
}
