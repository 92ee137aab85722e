//! All verifications that this device takes part in, and what is answered to messages that belong to none of them.

use ruma::{OwnedUserId, UserId, events::key::verification::cancel::CancelCode};

use super::{Flow, Message, Outgoing, Party, Verification, reason_of};

/// Most verifications at once. More are not asked for by people.
const ONGOING_MAX: usize = 50;

/// A message of a verification as it came.
pub struct Incoming {
    /// The verification that it belongs to.
    pub flow: Flow,
    /// Who sent it, as the server says.
    pub sender: OwnedUserId,
    /// The message, or what is wrong with it.
    pub message: Result<Message, CancelCode>,
    /// The device that it says to come from, where its keys are known.
    pub theirs: Option<Party>,
    /// When the server got it, in milliseconds since 1970; of room events only.
    pub made_at: Option<u64>,
}

/// All verifications of this device.
#[derive(Default)]
pub struct Ongoing(pub(super) Vec<Verification>);

impl Ongoing {
    /// Adds one that our user asked for.
    pub fn insert(&mut self, verification: Verification) {
        self.0.push(verification);
    }

    /// All of them, oldest first; those that are over for as long as late messages may come.
    pub fn iter(&self) -> impl Iterator<Item = &Verification> {
        self.0.iter()
    }

    /// The same, to be decided upon.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Verification> {
        self.0.iter_mut()
    }

    /// The one with that user of that id.
    pub fn get_mut(&mut self, user_id: &UserId, flow_id: &str) -> Option<&mut Verification> {
        self.0.iter_mut().find(|one| one.their_user == user_id && one.flow.id() == flow_id)
    }

    /// Takes a message, for `ours` on this side, and says what to send.
    pub fn receive(&mut self, incoming: Incoming, ours: Party, now: u64) -> Vec<Outgoing> {
        let Incoming { flow, sender, message, theirs, made_at } = incoming;
        if let (Flow::InRoom { .. }, true) = (&flow, sender == ours.user_id) {
            self.see_own(&flow, message, &ours);
            return Vec::new();
        }
        if let Some(known) = self.0.iter_mut().find(|one| one.flow == flow && one.their_user == sender) {
            return match message {
                Ok(message) => known.receive(message, theirs),
                Err(_) if known.is_over() => Vec::new(),
                Err(code) => known.fail(code),
            };
        }
        match (message, theirs) {
            (Ok(Message::Request { timestamp, to, .. }), Some(theirs)) => {
                let asked_at = match flow {
                    Flow::ToDevice { .. } => timestamp,
                    Flow::InRoom { .. } => made_at.filter(|_| to.as_ref() == Some(&ours.user_id)),
                };
                let verification = asked_at.and_then(|at| Verification::from_request(flow, ours, theirs, at, now));
                verification.map_or_else(Vec::new, |verification| self.take_in(verification, Vec::new()))
            }
            (Ok(Message::Start(start)), Some(theirs)) if matches!(flow, Flow::ToDevice { .. }) => {
                let (verification, outgoing) = Verification::from_start(flow, ours, theirs, start, now);
                self.take_in(verification, outgoing)
            }
            // Which of the sender's devices it was is not said. The others ignore a cancellation of what they do not know.
            (Ok(message @ (Message::Ready { .. } | Message::Accept(_) | Message::Key(_) | Message::Mac(_))), _)
                if matches!(flow, Flow::ToDevice { .. }) =>
            {
                let device = message.from_device().cloned().unwrap_or_else(|| "*".into());
                let code = CancelCode::UnknownTransaction;
                let cancel = Message::Cancel { reason: reason_of(&code).to_owned(), code };
                let content = cancel.content(&flow);
                vec![Outgoing {
                    flow,
                    user_id: sender,
                    devices: vec![device],
                    event_type: cancel.event_type(),
                    content,
                }]
            }
            _ => Vec::new(),
        }
    }

    /// Ends what took too long, and forgets what is over.
    pub fn check_time(&mut self, now: u64) -> Vec<Outgoing> {
        let outgoing = self.0.iter_mut().flat_map(|one| one.check_time(now)).collect();
        self.0.retain(|one| !one.is_over() || now < one.deadline);
        outgoing
    }

    /// A device that wants to verify twice at once gets neither. "Error and exception handling".
    fn take_in(&mut self, mut verification: Verification, mut outgoing: Vec<Outgoing>) -> Vec<Outgoing> {
        let mut twice = false;
        for other in self.0.iter_mut().filter(|other| {
            !other.is_over()
                && other.their_user == verification.their_user
                && other.their_device() == verification.their_device()
        }) {
            twice = true;
            outgoing.extend(other.fail(CancelCode::UnexpectedMessage));
        }
        if twice && !verification.is_over() {
            outgoing.extend(verification.fail(CancelCode::UnexpectedMessage));
        }
        if self.0.len() < ONGOING_MAX {
            self.0.push(verification);
            return outgoing;
        }
        // Somebody floods us: no prompt, and no answer that would keep the flood going.
        Vec::new()
    }

    /// An event of our own user in a room: ours comes back to us, and from another device we learn that it goes on there.
    fn see_own(&mut self, flow: &Flow, message: Result<Message, CancelCode>, ours: &Party) {
        let elsewhere = match message {
            Ok(Message::Ready { from_device, .. }) => from_device != ours.device_id,
            // Ours comes back when it is over here, too.
            Ok(Message::Cancel { .. }) => true,
            _ => false,
        };
        if let Some(known) = self.0.iter_mut().find(|one| one.flow == *flow).filter(|_| elsewhere) {
            known.take_elsewhere();
        }
    }
}
