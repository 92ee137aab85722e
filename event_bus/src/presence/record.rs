//! What is known of one user's presence, and how it changes. Client-Server API, "Presence".

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{DEVICE_MS, Remembered};

/// How long after the last activity a user counts as currently active, in milliseconds.
const ACTIVE_MS: i64 = 60_000;
/// After so long without any activity a user is idle, in milliseconds. Client-Server API, "Idle timeout".
const IDLE_AFTER_MS: i64 = 300_000;
/// How long counts what another server said, in milliseconds: it repeats it for those who are there, Synapse after 25 minutes.
const REPORTED_MS: i64 = 30 * 60_000;
/// Most devices of a user that count.
const DEVICES_MAX: usize = 20;
/// The device that stands for those of which nothing is known: their user was there before the state was lost, or is there elsewhere.
const UNKNOWN_DEVICE: &str = "";

/// Whether somebody can be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Availability {
    /// There, and at it.
    Online,
    /// There, but idle.
    Unavailable,
    /// Not there, or not to be seen.
    #[default]
    Offline,
}

/// What a user says of themselves beside their presence.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelfDescription {
    /// The status message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_msg: Option<String>,
    /// The display name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    /// The picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub avatar_url: Option<String>,
}

/// What others are shown of a user's presence.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// The presence.
    pub availability: Availability,
    /// Whether the user is active right now.
    pub currently_active: bool,
    /// What they say of themselves.
    #[serde(flatten)]
    pub says: SelfDescription,
}

/// How a user of another server is, as that server says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reported {
    /// The presence.
    pub availability: Availability,
    /// Whether the user is active right now.
    pub currently_active: bool,
    /// How long ago the user did something, in milliseconds, if that is known.
    pub last_active_ago_ms: Option<i64>,
    /// The status message.
    pub status_msg: Option<String>,
}

/// What counts of what a server said of its user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Elsewhere {
    availability: Availability,
    currently_active: bool,
}

/// What happened to a user.
#[derive(Clone, Debug)]
pub(super) enum Happening {
    /// A device began to sync, as one that is in use or as one that is idle, or says the other of itself now.
    Syncs { device: String, is_idle: bool },
    /// A device did something.
    Active { device: String },
    /// A device did not come back.
    Gone { device: String },
    /// The user said how they are on a device, with a message or with none.
    Sets { device: String, availability: Availability, status_msg: Option<String> },
    /// Name or picture changed.
    Renamed { display_name: Option<String>, avatar_url: Option<String> },
    /// The user's server said how they are; with when they last did something, in milliseconds since 1970.
    Reported { reported: Reported, active_ms: i64 },
    /// The user was there when the state was lost.
    WasThere,
    /// Time went by.
    Waited,
}

impl Happening {
    /// For how long that device is there then, in milliseconds.
    pub(super) fn shows_for_ms(&self) -> i64 {
        if matches!(self, Self::Reported { .. }) { REPORTED_MS } else { DEVICE_MS }
    }

    /// The device of which it says that it is there.
    pub(super) fn shows_device(&self) -> Option<&str> {
        match self {
            Self::Syncs { device, .. } => Some(device),
            Self::Sets { device, .. } => Some(device),
            Self::WasThere => Some(UNKNOWN_DEVICE),
            Self::Reported { reported, .. } => {
                (reported.availability != Availability::Offline).then_some(UNKNOWN_DEVICE)
            }
            Self::Active { .. } | Self::Gone { .. } | Self::Renamed { .. } | Self::Waited => None,
        }
    }
}

/// A device that syncs, or did moments ago.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Device {
    /// What it last said of itself as it synced.
    syncs_idle: bool,
    /// Whether it counts as idle.
    is_idle: bool,
    /// Whether it does not count: its user wants to be offline, until it syncs anew.
    is_hidden: bool,
    /// When it last did something, in milliseconds since 1970.
    active_ms: i64,
}

/// A user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    devices: BTreeMap<String, Device>,
    /// What the user's server said, for one of another server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    elsewhere: Option<Elsewhere>,
    /// When the user last did something, in milliseconds since 1970; zero when never.
    pub(super) last_active_ms: i64,
    pub(super) shown: Shown,
}

impl Record {
    /// A user of whom nothing but this is known.
    pub(super) fn new(before: Remembered) -> Self {
        let Remembered { says, last_active_ms } = before;
        Self { last_active_ms, shown: Shown { says, ..Shown::default() }, ..Self::default() }
    }

    pub(super) fn has_device(&self, device: &str) -> bool {
        self.devices.contains_key(device)
    }

    /// Whether a device is there, but counts as idle.
    pub(super) fn is_idle(&self, device: &str) -> bool {
        self.devices.get(device).is_some_and(|device| device.is_idle)
    }

    /// Whether a device is there, but does not count.
    pub(super) fn is_hidden(&self, device: &str) -> bool {
        self.devices.get(device).is_some_and(|device| device.is_hidden)
    }

    /// Notes what happened; whether others are to be told.
    pub(super) fn note(&mut self, happening: &Happening, now_ms: i64) -> bool {
        let before = self.shown.clone();
        match happening {
            Happening::Syncs { device, is_idle } => self.syncs(device, *is_idle, now_ms),
            Happening::Active { device } => self.active(device, now_ms),
            Happening::Gone { device } => {
                self.devices.remove(device);
                if device == UNKNOWN_DEVICE {
                    self.elsewhere = None;
                }
            }
            Happening::Reported { reported, active_ms } => {
                self.shown.says.status_msg.clone_from(&reported.status_msg);
                self.last_active_ms = self.last_active_ms.max(*active_ms);
                let Reported { availability, currently_active, .. } = *reported;
                self.elsewhere = Some(Elsewhere { availability, currently_active });
            }
            Happening::Sets { device, availability, status_msg } => {
                self.shown.says.status_msg.clone_from(status_msg);
                let known = self.device(device, false, now_ms);
                known.is_idle = *availability == Availability::Unavailable;
                known.is_hidden = *availability == Availability::Offline;
                if *availability == Availability::Online {
                    self.active(device, now_ms);
                }
            }
            Happening::Renamed { display_name, avatar_url } => {
                self.shown.says.display_name.clone_from(display_name);
                self.shown.says.avatar_url.clone_from(avatar_url);
            }
            Happening::WasThere => drop(self.device(UNKNOWN_DEVICE, false, now_ms)),
            Happening::Waited => {}
        }
        self.shown.availability = self.availability(now_ms);
        let is_active = self.shown.availability == Availability::Online && now_ms < self.last_active_ms + ACTIVE_MS;
        self.shown.currently_active = self.elsewhere.as_ref().map_or(is_active, |said| said.currently_active);
        self.shown != before
    }

    /// When time alone changes what is shown, in milliseconds since 1970.
    pub(super) fn next_change_ms(&self) -> Option<i64> {
        match self.shown.availability {
            _ if self.elsewhere.is_some() => None,
            Availability::Online if self.shown.currently_active => Some(self.last_active_ms + ACTIVE_MS),
            Availability::Online => Some(self.last_active_ms + IDLE_AFTER_MS),
            Availability::Unavailable | Availability::Offline => None,
        }
    }

    /// A device that came, or that says it is in use after it was idle, is used by somebody; one that goes on as before says nothing new:
    /// it syncs while nobody looks.
    fn syncs(&mut self, device: &str, is_idle: bool, now_ms: i64) {
        let is_new = !self.devices.contains_key(device);
        let known = self.device(device, is_idle, now_ms);
        let has_changed = is_new || known.is_hidden || known.syncs_idle != is_idle;
        (known.syncs_idle, known.is_hidden) = (is_idle, false);
        if has_changed {
            known.is_idle = is_idle;
            if !is_idle {
                self.active(device, now_ms);
            }
        }
    }

    /// Who is not seen is not seen by what they do either.
    fn active(&mut self, device: &str, now_ms: i64) {
        if let Some(device) = self.devices.get_mut(device).filter(|device| !device.is_hidden) {
            device.is_idle = false;
            device.active_ms = now_ms;
            self.last_active_ms = now_ms.max(self.last_active_ms);
        }
    }

    /// A device; one that is new takes the place of another when there are too many.
    fn device(&mut self, device: &str, syncs_idle: bool, now_ms: i64) -> &mut Device {
        if !self.devices.contains_key(device) && self.devices.len() >= DEVICES_MAX {
            let oldest = self.devices.iter().min_by_key(|(_, device)| device.active_ms).map(|(id, _)| id.clone());
            oldest.map(|oldest| self.devices.remove(&oldest));
        }
        let new = || Device { syncs_idle, is_idle: syncs_idle, is_hidden: false, active_ms: now_ms };
        self.devices.entry(device.to_owned()).or_insert_with(new)
    }

    /// The most present device counts.
    fn availability(&self, now_ms: i64) -> Availability {
        if let Some(said) = &self.elsewhere {
            return said.availability;
        }
        let mut there = self.devices.values().filter(|device| !device.is_hidden).peekable();
        if there.peek().is_none() {
            Availability::Offline
        } else if now_ms < self.last_active_ms + IDLE_AFTER_MS && there.any(|device| !device.is_idle) {
            Availability::Online
        } else {
            Availability::Unavailable
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60_000;

    fn syncs(device: &str, is_idle: bool) -> Happening {
        Happening::Syncs { device: device.to_owned(), is_idle }
    }

    fn active(device: &str) -> Happening {
        Happening::Active { device: device.to_owned() }
    }

    fn gone(device: &str) -> Happening {
        Happening::Gone { device: device.to_owned() }
    }

    fn sets(device: &str, availability: Availability) -> Happening {
        Happening::Sets { device: device.to_owned(), availability, status_msg: None }
    }

    /// What happens when, in minutes, whether others are told of it, and what they see then.
    #[test]
    fn what_happens_to_a_user_shows_in_their_presence() {
        use Availability::{Offline, Online, Unavailable};
        let mut record = Record::default();
        for (minute, happening, is_told, availability, currently_active) in [
            (0, active("A"), false, Offline, false),
            (0, syncs("A", false), true, Online, true),
            (0, syncs("A", false), false, Online, true),
            // It goes on to sync, and nobody does anything.
            (1, Happening::Waited, true, Online, false),
            (4, syncs("A", false), false, Online, false),
            (5, Happening::Waited, true, Unavailable, false),
            (6, syncs("A", false), false, Unavailable, false),
            (7, active("A"), true, Online, true),
            (7, active("A"), false, Online, true),
            // The most present device counts.
            (8, syncs("B", true), true, Online, false),
            (8, sets("A", Unavailable), true, Unavailable, false),
            (8, syncs("A", false), false, Unavailable, false),
            (8, syncs("B", false), true, Online, true),
            (8, gone("A"), false, Online, true),
            (8, syncs("B", true), true, Unavailable, false),
            (8, sets("B", Online), true, Online, true),
            (8, sets("B", Offline), true, Offline, false),
            (8, active("B"), false, Offline, false),
            (8, syncs("B", true), true, Unavailable, false),
            (8, sets("B", Offline), true, Offline, false),
            (8, gone("B"), false, Offline, false),
            (9, sets("C", Online), true, Online, true),
            (9, gone("C"), true, Offline, false),
        ] {
            let told = record.note(&happening, minute * MINUTE);
            let shown = (told, record.shown.availability, record.shown.currently_active);
            assert_eq!(shown, (is_told, availability, currently_active), "{happening:?} after {minute} minutes");
        }
        assert_eq!(record.last_active_ms, 9 * MINUTE);
    }

    /// The clock of idleness is that of the user's own server.
    #[test]
    fn what_another_server_said_counts_until_it_says_something_else() {
        use Availability::{Offline, Online, Unavailable};
        let mut record = Record::default();
        let reported = |availability, currently_active, active_minute: i64| Happening::Reported {
            reported: Reported { availability, currently_active, ..Reported::default() },
            active_ms: active_minute * MINUTE,
        };
        for (minute, happening, is_told, availability, currently_active) in [
            (60, reported(Online, true, 60), true, Online, true),
            (60, reported(Online, true, 60), false, Online, true),
            (70, Happening::Waited, false, Online, true),
            (70, reported(Online, false, 50), true, Online, false),
            (71, reported(Unavailable, false, 60), true, Unavailable, false),
            (72, reported(Offline, false, 60), true, Offline, false),
            (72, gone(""), false, Offline, false),
            (73, reported(Online, false, 0), true, Online, false),
            (103, gone(""), true, Offline, false),
        ] {
            let told = record.note(&happening, minute * MINUTE);
            let shown = (told, record.shown.availability, record.shown.currently_active);
            assert_eq!(shown, (is_told, availability, currently_active), "{happening:?} after {minute} minutes");
            assert_eq!(record.next_change_ms(), None);
        }
        assert_eq!(record.last_active_ms, 60 * MINUTE);
        assert_eq!(reported(Online, false, 0).shows_device(), Some(UNKNOWN_DEVICE));
        assert_eq!(reported(Offline, false, 0).shows_device(), None);
    }

    #[test]
    fn time_alone_changes_what_is_shown_when_it_was_said_that_it_would() {
        let mut record = Record::default();
        record.note(&syncs("A", false), MINUTE);
        for (expected, minute) in [(Availability::Online, 2), (Availability::Unavailable, 6)] {
            assert_eq!(record.next_change_ms(), Some(minute * MINUTE));
            assert!(!record.note(&Happening::Waited, minute * MINUTE - 1), "not before");
            assert!(record.note(&Happening::Waited, minute * MINUTE));
            assert_eq!(record.shown.availability, expected);
        }
        assert_eq!(record.next_change_ms(), None);
    }

    #[test]
    fn what_a_user_says_is_told_once_and_devices_are_bounded() {
        let mut record = Record::default();
        let says = |text: Option<&str>| Happening::Sets {
            device: "A".to_owned(),
            availability: Availability::Online,
            status_msg: text.map(str::to_owned),
        };
        assert!(record.note(&says(Some("hello")), 0));
        assert!(!record.note(&says(Some("hello")), 0));
        assert!(record.note(&says(None), 0), "without a message there is none");
        let renamed = Happening::Renamed { display_name: Some("Alice".to_owned()), avatar_url: None };
        assert!(record.note(&renamed, 0));
        assert!(!record.note(&renamed, 0));
        for number in 1..100 {
            record.note(&syncs(&number.to_string(), false), number);
        }
        assert_eq!(record.devices.len(), DEVICES_MAX);
        assert!(record.has_device("99") && !record.has_device("A"), "the newest count");
    }
}
