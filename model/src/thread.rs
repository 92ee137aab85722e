//! What somebody reads in one go: a thread of a room, or everything beside its threads.

use ruma::{EventId, OwnedEventId};

/// The thread that an event is in, or that a receipt is for. Client-Server API, "Threaded read receipts".
///
/// A receipt for all threads has none: there, this is an `Option`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Thread {
    /// The main timeline: what is in no thread.
    #[default]
    Main,
    /// The thread that began with an event, its root.
    Root(OwnedEventId),
}

impl Thread {
    /// How the main timeline is called where threads are called by their roots' ids.
    pub const MAIN: &str = "main";

    /// Reads `main` or the id of a root; nothing when it is neither.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            Self::MAIN => Some(Self::Main),
            _ => EventId::parse(text).ok().map(Self::Root),
        }
    }

    /// `main`, or the root's id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Main => Self::MAIN,
            Self::Root(root) => root.as_str(),
        }
    }

    /// The root; nothing for the main timeline.
    #[must_use]
    pub fn root(&self) -> Option<&OwnedEventId> {
        match self {
            Self::Main => None,
            Self::Root(root) => Some(root),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_main_or_an_event() {
        for text in ["main", "$root", "$root:hs"] {
            assert_eq!(Thread::parse(text).unwrap().as_str(), text);
        }
        for text in ["", "Main", "root", "!room:hs"] {
            assert_eq!(Thread::parse(text), None, "{text}");
        }
    }
}
