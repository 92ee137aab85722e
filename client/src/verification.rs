//! Two devices let their users compare a few pictures, and know from then on that nobody sits between them. Client-Server API, "Device
//! verification".
//!
//! [`Verification`] is one verification as this device sees it: it takes the other side's messages and its own user's decisions, and says
//! what to send. It knows neither network nor clock. [`Ongoing`] keeps all of them, and answers messages that belong to none.
//!
//! ```text
//!    Requested ─► Ready ─► Started ──► KeySent ─┐
//!        │          │   (we begin)              ├─► Comparing ─► Confirmed ─► Concluding ─► Done
//!        │          └────► Accepted ────────────┘
//!    Offered ────────────►  (they begin)                  and from everywhere ─► Cancelled
//! ```

mod emoji;
mod messages;
mod ongoing;
mod sas;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use ruma::{
    DeviceId, OwnedDeviceId, OwnedUserId,
    events::key::verification::{
        REQUEST_RECEIVED_TIMEOUT, REQUEST_TIMESTAMP_TIMEOUT, VerificationMethod, accept, cancel::CancelCode,
    },
};
use vodozemac::sas::{EstablishedSas, Sas};

use self::sas::Agreement;
pub use self::{
    emoji::Emoji,
    messages::{Flow, Message, Start, room_request},
    ongoing::{Incoming, Ongoing},
    sas::{Party, ShortCode},
};
use crate::{Error, signatures::Object};

/// Within which a verification has to come to its end, in milliseconds.
const TIME_MS_MAX: u64 = REQUEST_TIMESTAMP_TIMEOUT.as_millis() as u64;
/// Within which a user has to react to a request, in milliseconds.
const PROMPT_MS_MAX: u64 = REQUEST_RECEIVED_TIMEOUT.as_millis() as u64;
/// How far in the future a request may have been made, in milliseconds.
const FUTURE_MS_MAX: u64 = 5 * 60 * 1000;

/// A message to send.
#[derive(Debug, Clone, PartialEq)]
pub struct Outgoing {
    /// Where.
    pub flow: Flow,
    /// To whom.
    pub user_id: OwnedUserId,
    /// To which of their devices; not for rooms.
    pub devices: Vec<OwnedDeviceId>,
    /// The type of the event.
    pub event_type: &'static str,
    /// Its content.
    pub content: Object,
}

/// Where a verification stands, as far as users need to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// Somebody asked: the other side waits for us, or we for it.
    Requested {
        /// We did.
        by_us: bool,
    },
    /// Both want it; either may begin.
    Ready,
    /// The other side began without asking before: we may accept or cancel.
    Offered,
    /// Keys are being exchanged.
    Exchanging,
    /// The users compare this now.
    Comparing(ShortCode),
    /// Our user found it equal; the other one still compares.
    Confirmed,
    /// It succeeded.
    Done {
        /// The keys of the other side that are verified, by their ids.
        verified: BTreeMap<String, String>,
    },
    /// Another device of ours goes on with it.
    TakenElsewhere,
    /// It failed.
    Cancelled {
        /// Why, for machines.
        code: CancelCode,
        /// Why, for people.
        reason: String,
        /// We did it.
        by_us: bool,
    },
}

/// One verification. See the top of this file.
pub struct Verification {
    flow: Flow,
    ours: Party,
    their_user: OwnedUserId,
    /// The device of theirs that takes part, with its keys as they were when it showed itself.
    theirs: Option<Party>,
    /// The devices of theirs that were asked and have not answered.
    asked: Vec<OwnedDeviceId>,
    /// By a request, as all but old clients do it.
    requested: bool,
    /// That this device sent.
    by_us: bool,
    /// When it has to be done, in milliseconds since 1970.
    deadline: u64,
    /// Until when our user may agree to it.
    prompt_until: u64,
    state: State,
}

enum State {
    Requested {
        by_us: bool,
    },
    Ready,
    Offered(Start),
    Started {
        sas: Sas,
        start: Start,
    },
    KeySent {
        sas: Sas,
        start: Start,
        choice: accept::SasV1Content,
    },
    Accepted {
        sas: Sas,
        choice: accept::SasV1Content,
    },
    /// What people compare is on both screens. Each of them answers when they have looked: ours by `confirmed`, theirs by their MACs.
    Comparing {
        secret: Box<EstablishedSas>,
        choice: accept::SasV1Content,
        we_started: bool,
        confirmed: bool,
        verified: Option<BTreeMap<String, String>>,
    },
    /// Everything is verified, and the other side has not said yet that it thinks so, too.
    Concluding {
        verified: BTreeMap<String, String>,
    },
    Done {
        verified: BTreeMap<String, String>,
    },
    TakenElsewhere,
    Cancelled {
        code: CancelCode,
        reason: String,
        by_us: bool,
    },
}

impl Verification {
    /// Asks devices of a user, usually all those of our own. The request goes to all of `devices`; the first that is ready takes part.
    #[must_use]
    pub fn request_devices(
        transaction_id: String,
        ours: Party,
        their_user: OwnedUserId,
        devices: Vec<OwnedDeviceId>,
        now: u64,
    ) -> (Self, Vec<Outgoing>) {
        let flow = Flow::ToDevice { transaction_id };
        let message = Message::Request {
            from_device: ours.device_id.clone(),
            methods: vec![VerificationMethod::SasV1],
            timestamp: Some(now),
            to: None,
        };
        let mut verification = Self::new(flow, ours, their_user, now + TIME_MS_MAX, State::Requested { by_us: true });
        verification.asked = devices;
        let outgoing = verification.send(message);
        (verification, outgoing)
    }

    /// Goes on after [`room_request`] was sent as the event that `flow` names.
    #[must_use]
    pub fn requested_in_room(flow: Flow, ours: Party, their_user: OwnedUserId, now: u64) -> Self {
        Self::new(flow, ours, their_user, now + TIME_MS_MAX, State::Requested { by_us: true })
    }

    /// Is asked by another device. `made_at` is when, by the other side's clock or the server's.
    ///
    /// `None` when the request is too old, or too far in the future, to be shown.
    fn from_request(flow: Flow, ours: Party, theirs: Party, made_at: u64, now: u64) -> Option<Self> {
        let deadline = made_at.saturating_add(TIME_MS_MAX);
        if deadline <= now || made_at > now + FUTURE_MS_MAX {
            return None;
        }
        let mut verification =
            Self::new(flow, ours, theirs.user_id.clone(), deadline, State::Requested { by_us: false });
        verification.theirs = Some(theirs);
        verification.prompt_until = now + PROMPT_MS_MAX;
        Some(verification)
    }

    /// The other side begins without asking, as old clients do.
    fn from_start(flow: Flow, ours: Party, theirs: Party, start: Start, now: u64) -> (Self, Vec<Outgoing>) {
        let offered = start.sas.is_some();
        let mut verification = Self::new(flow, ours, theirs.user_id.clone(), now + TIME_MS_MAX, State::Offered(start));
        verification.theirs = Some(theirs);
        verification.requested = false;
        let outgoing = if offered { Vec::new() } else { verification.fail(CancelCode::UnknownMethod) };
        (verification, outgoing)
    }

    fn new(flow: Flow, ours: Party, their_user: OwnedUserId, deadline: u64, state: State) -> Self {
        Self {
            flow,
            ours,
            their_user,
            theirs: None,
            asked: Vec::new(),
            requested: true,
            by_us: matches!(state, State::Requested { by_us: true }),
            deadline,
            prompt_until: deadline,
            state,
        }
    }

    /// Where it takes place, and what it is called.
    #[must_use]
    pub fn flow(&self) -> &Flow {
        &self.flow
    }

    /// The user on the other side.
    #[must_use]
    pub fn their_user(&self) -> &OwnedUserId {
        &self.their_user
    }

    /// The device on the other side, as soon as it has shown itself.
    #[must_use]
    pub fn their_device(&self) -> Option<&DeviceId> {
        self.theirs.as_ref().map(|theirs| &*theirs.device_id)
    }

    /// Where it stands.
    #[must_use]
    pub fn stage(&self) -> Stage {
        match &self.state {
            State::Requested { by_us } => Stage::Requested { by_us: *by_us },
            State::Ready => Stage::Ready,
            State::Offered(_) => Stage::Offered,
            State::Started { .. } | State::KeySent { .. } | State::Accepted { .. } => Stage::Exchanging,
            State::Comparing { secret, choice, we_started, confirmed: false, .. } => {
                Stage::Comparing(self.agreement(secret, choice, *we_started).short_code())
            }
            State::Comparing { confirmed: true, .. } | State::Concluding { .. } => Stage::Confirmed,
            State::Done { verified } => Stage::Done { verified: verified.clone() },
            State::TakenElsewhere => Stage::TakenElsewhere,
            State::Cancelled { code, reason, by_us } => {
                Stage::Cancelled { code: code.clone(), reason: reason.clone(), by_us: *by_us }
            }
        }
    }

    /// Whether this device asked for it.
    #[must_use]
    pub fn is_by_us(&self) -> bool {
        self.by_us
    }

    /// Makes a success a failure: meanwhile the server shows other keys than those that were compared.
    pub(crate) fn distrust(&mut self) {
        let code = CancelCode::KeyMismatch;
        self.state = State::Cancelled { reason: reason_of(&code).to_owned(), code, by_us: true };
    }

    /// Whether nothing more can happen.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Done { .. } | State::TakenElsewhere | State::Cancelled { .. })
    }

    /// Our user agrees: to a request, or to a beginning without one.
    ///
    /// # Errors
    ///
    /// [`Error::NotNow`] when nothing waits for that.
    pub fn accept(&mut self) -> Result<Vec<Outgoing>, Error> {
        match std::mem::replace(&mut self.state, State::Ready) {
            State::Requested { by_us: false } => {
                let from_device = self.ours.device_id.clone();
                Ok(self.send(Message::Ready { from_device, methods: vec![VerificationMethod::SasV1] }))
            }
            State::Offered(start) => Ok(self.accept_start(&start)),
            state => self.not_now(state),
        }
    }

    /// Begins the comparison of pictures or numbers.
    ///
    /// # Errors
    ///
    /// [`Error::NotNow`] when the other side is not ready, or it has begun.
    pub fn start(&mut self) -> Result<Vec<Outgoing>, Error> {
        if !matches!(self.state, State::Ready) {
            return Err(Error::NotNow("the verification cannot begin"));
        }
        let start = Start::sas(self.ours.device_id.clone(), sas::offer(), &self.flow);
        self.state = State::Started { sas: Sas::new(), start: start.clone() };
        Ok(self.send(Message::Start(start)))
    }

    /// Our user found both sides equal.
    ///
    /// # Errors
    ///
    /// [`Error::NotNow`] when there is nothing to compare.
    pub fn confirm(&mut self) -> Result<Vec<Outgoing>, Error> {
        match std::mem::replace(&mut self.state, State::Ready) {
            State::Comparing { secret, choice, we_started, confirmed: false, verified } => {
                let macs = self.agreement(&secret, &choice, we_started).macs();
                let mut outgoing = self.send(Message::Mac(macs));
                match verified {
                    Some(verified) => outgoing.extend(self.conclude(verified)),
                    None => self.state = State::Comparing { secret, choice, we_started, confirmed: true, verified },
                }
                Ok(outgoing)
            }
            state => self.not_now(state),
        }
    }

    /// Our user found a difference: somebody sits in between, or compared the wrong thing.
    ///
    /// # Errors
    ///
    /// [`Error::NotNow`] when there is nothing to compare.
    pub fn mismatch(&mut self) -> Result<Vec<Outgoing>, Error> {
        match &self.state {
            State::Comparing { confirmed: false, .. } => Ok(self.fail(CancelCode::MismatchedSas)),
            _ => Err(Error::NotNow("there is nothing to compare")),
        }
    }

    /// Our user does not want it, or no longer.
    pub fn cancel(&mut self) -> Vec<Outgoing> {
        if self.is_over() { Vec::new() } else { self.fail(CancelCode::User) }
    }

    /// Ends it when its time is over.
    pub fn check_time(&mut self, now: u64) -> Vec<Outgoing> {
        let unanswered = matches!(self.state, State::Requested { by_us: false } | State::Offered(_));
        let until = if unanswered { self.deadline.min(self.prompt_until) } else { self.deadline };
        if self.is_over() || now < until { Vec::new() } else { self.fail(CancelCode::Timeout) }
    }

    /// Takes a message of the other side. `theirs` is the device that it says to come from, if its keys are known.
    pub fn receive(&mut self, message: Message, theirs: Option<Party>) -> Vec<Outgoing> {
        if self.is_over() {
            // No answer, so that two devices do not go on telling each other what they did wrong.
            return Vec::new();
        }
        match self.step(message, theirs) {
            Ok(outgoing) => outgoing,
            Err(code) => self.fail(code),
        }
    }

    fn step(&mut self, message: Message, theirs: Option<Party>) -> Result<Vec<Outgoing>, CancelCode> {
        // The state is taken out, and put back where a message changes nothing. Errors end the verification.
        match (std::mem::replace(&mut self.state, State::Ready), message) {
            (_, Message::Cancel { code, reason }) => Ok(self.cancelled_by_them(code, reason)),
            (State::Requested { by_us: true }, Message::Ready { methods, .. }) => self.ready(&methods, theirs),
            // They began at once after being ready, or we after them.
            (State::Ready, Message::Start(start)) => {
                self.fix(theirs)?;
                Ok(self.accept_start(&start))
            }
            (State::Started { sas, start }, Message::Start(other)) => {
                self.fix(theirs)?;
                if other.sas.is_none() {
                    return Err(CancelCode::UnexpectedMessage);
                }
                if self.we_are_first() {
                    self.state = State::Started { sas, start };
                    return Ok(Vec::new());
                }
                Ok(self.accept_start(&other))
            }
            (State::Started { sas, start }, Message::Accept(choice)) => {
                sas::check_choice(&choice)?;
                let key = sas.public_key();
                self.state = State::KeySent { sas, start, choice };
                Ok(self.send(Message::Key(key)))
            }
            (State::KeySent { sas, start, choice }, Message::Key(key)) => {
                sas::check_commitment(&choice, &start.content, key)?;
                self.compare(sas, choice, key, true)
            }
            (State::Accepted { sas, choice }, Message::Key(key)) => {
                let ours = self.send(Message::Key(sas.public_key()));
                self.compare(sas, choice, key, false)?;
                Ok(ours)
            }
            (State::Comparing { secret, choice, we_started, confirmed, verified: None }, Message::Mac(macs)) => {
                let verified = self.agreement(&secret, &choice, we_started).check_macs(&macs)?;
                if confirmed {
                    return Ok(self.conclude(verified));
                }
                self.state = State::Comparing { secret, choice, we_started, confirmed, verified: Some(verified) };
                Ok(Vec::new())
            }
            (State::Concluding { verified }, Message::Done) => {
                self.state = State::Done { verified };
                Ok(Vec::new())
            }
            // Another of the devices that were asked; it is told by the cancellation that is on its way.
            (state, Message::Ready { from_device, .. })
                if self.their_device().is_some_and(|device| device != from_device) =>
            {
                self.state = state;
                Ok(Vec::new())
            }
            _ => Err(CancelCode::UnexpectedMessage),
        }
    }

    /// One of the asked devices is ready: it takes part, the others are told.
    fn ready(&mut self, methods: &[VerificationMethod], theirs: Option<Party>) -> Result<Vec<Outgoing>, CancelCode> {
        self.fix(theirs)?;
        let device = self.their_device().map(ToOwned::to_owned);
        let others: Vec<_> =
            std::mem::take(&mut self.asked).into_iter().filter(|asked| Some(asked) != device.as_ref()).collect();
        let mut outgoing = Vec::new();
        if !others.is_empty() {
            let message =
                Message::Cancel { code: CancelCode::Accepted, reason: reason_of(&CancelCode::Accepted).to_owned() };
            outgoing.push(self.outgoing(&message, others));
        }
        self.state = State::Ready;
        if !methods.contains(&VerificationMethod::SasV1) {
            outgoing.extend(self.fail(CancelCode::UnknownMethod));
        }
        Ok(outgoing)
    }

    /// Keeps the keys of the other device for the rest of the verification, or sees that it is still the same one.
    fn fix(&mut self, theirs: Option<Party>) -> Result<(), CancelCode> {
        // Without its keys there is nothing that could be verified.
        let theirs = theirs.ok_or(CancelCode::KeyMismatch)?;
        match &self.theirs {
            _ if theirs.user_id != self.their_user => Err(CancelCode::UserMismatch),
            Some(known) if known.device_id != theirs.device_id => Err(CancelCode::UnexpectedMessage),
            Some(_) => Ok(()),
            None => {
                self.theirs = Some(theirs);
                Ok(())
            }
        }
    }

    /// Answers a beginning of theirs.
    fn accept_start(&mut self, start: &Start) -> Vec<Outgoing> {
        let Some(offer) = &start.sas else { return self.fail(CancelCode::UnknownMethod) };
        let sas = Sas::new();
        match sas::accept(offer, &start.content, sas.public_key()) {
            Ok(choice) => {
                self.state = State::Accepted { sas, choice: choice.clone() };
                self.send(Message::Accept(choice))
            }
            Err(code) => self.fail(code),
        }
    }

    fn compare(
        &mut self,
        sas: Sas,
        choice: accept::SasV1Content,
        their_key: vodozemac::Curve25519PublicKey,
        we_started: bool,
    ) -> Result<Vec<Outgoing>, CancelCode> {
        // A key that gives everybody the same secret is one that only an attacker sends.
        let secret = Box::new(sas.diffie_hellman(their_key).map_err(|_| CancelCode::InvalidMessage)?);
        self.state = State::Comparing { secret, choice, we_started, confirmed: false, verified: None };
        Ok(Vec::new())
    }

    fn conclude(&mut self, verified: BTreeMap<String, String>) -> Vec<Outgoing> {
        if !self.requested {
            // Who begins without a request does not know the end, either.
            self.state = State::Done { verified };
            return Vec::new();
        }
        self.state = State::Concluding { verified };
        self.send(Message::Done)
    }

    /// Whose beginning counts when both began: that of the smaller user id, or device id.
    fn we_are_first(&self) -> bool {
        let theirs = self.theirs.as_ref().map(|theirs| (&theirs.user_id, &theirs.device_id));
        Some((&self.ours.user_id, &self.ours.device_id)) < theirs
    }

    fn agreement<'a>(
        &'a self,
        secret: &'a EstablishedSas,
        choice: &'a accept::SasV1Content,
        we_started: bool,
    ) -> Agreement<'a> {
        let theirs = self.theirs.as_ref().expect("a device that sent a key has shown itself");
        Agreement { secret, choice, flow_id: self.flow.id(), ours: &self.ours, theirs, we_started }
    }

    /// Another device of ours answered the request.
    fn take_elsewhere(&mut self) {
        if matches!(self.state, State::Requested { by_us: false }) {
            self.state = State::TakenElsewhere;
        }
    }

    fn cancelled_by_them(&mut self, code: CancelCode, reason: String) -> Vec<Outgoing> {
        self.state = if code == CancelCode::Accepted {
            State::TakenElsewhere
        } else {
            State::Cancelled {
                code: code.clone(),
                reason: reason.chars().take(REASON_CHARS_MAX).collect(),
                by_us: false,
            }
        };
        // One of several devices that were asked says no: the others need not ask their user any more.
        if self.theirs.is_none() && !self.asked.is_empty() {
            let message = Message::Cancel { code, reason: "it was cancelled on another device".to_owned() };
            let asked = std::mem::take(&mut self.asked);
            return vec![self.outgoing(&message, asked)];
        }
        Vec::new()
    }

    fn fail(&mut self, code: CancelCode) -> Vec<Outgoing> {
        let reason = reason_of(&code).to_owned();
        // A request that our user did not look at is only hidden here: another device of theirs may be at it.
        let hidden = code == CancelCode::Timeout && matches!(self.state, State::Requested { by_us: false });
        self.state = State::Cancelled { code: code.clone(), reason: reason.clone(), by_us: true };
        if hidden { Vec::new() } else { self.send(Message::Cancel { code, reason }) }
    }

    fn not_now(&mut self, state: State) -> Result<Vec<Outgoing>, Error> {
        self.state = state;
        Err(Error::NotNow("the verification waits for something else"))
    }

    fn send(&self, message: Message) -> Vec<Outgoing> {
        let devices = match (&self.flow, &self.theirs) {
            (Flow::InRoom { .. }, _) => Vec::new(),
            (_, Some(theirs)) => vec![theirs.device_id.clone()],
            (_, None) => self.asked.clone(),
        };
        vec![self.outgoing(&message, devices)]
    }

    fn outgoing(&self, message: &Message, devices: Vec<OwnedDeviceId>) -> Outgoing {
        Outgoing {
            flow: self.flow.clone(),
            user_id: self.their_user.clone(),
            devices,
            event_type: message.event_type(),
            content: message.content(&self.flow),
        }
    }
}

/// Longest reason of others that is shown.
const REASON_CHARS_MAX: usize = 200;

/// What people are told.
fn reason_of(code: &CancelCode) -> &'static str {
    match code {
        CancelCode::User => "the user cancelled the verification",
        CancelCode::Timeout => "the verification took too long",
        CancelCode::UnknownTransaction => "this verification is not known here",
        CancelCode::UnknownMethod => "there is no way of verifying that both sides know",
        CancelCode::UnexpectedMessage => "a message came that was not its turn",
        CancelCode::KeyMismatch => "the keys are not the ones that are known here",
        CancelCode::UserMismatch => "this is not the expected user",
        CancelCode::InvalidMessage => "a message could not be read",
        CancelCode::Accepted => "another device accepted the verification",
        CancelCode::MismatchedCommitment => "the key is not the one that was promised",
        CancelCode::MismatchedSas => "the pictures or numbers were different",
        _ => "the verification failed",
    }
}
