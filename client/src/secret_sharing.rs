//! Secrets that a user's verified devices give each other. Client-Server API, "Sharing" in "Secrets".
//!
//! A device that was just verified asks the others for the private keys of the identity and of the backup. Requests travel in clear, secrets
//! only over Olm. Who is asked, and who is given one, decides the caller: verified devices of our own, nobody else. [`Requests`] sees to it
//! that a secret counts only when it was asked for, from a device that was asked.

use std::collections::BTreeMap;

use ruma::{DeviceId, OwnedDeviceId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::signatures::Object;

/// Longest secret that is taken, in bytes. Those of the specification have 43.
const SECRET_BYTES_MAX: usize = 64 * 1024;

/// What this device has asked for and has not got.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Requests(BTreeMap<String, Asked>);

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Asked {
    name: String,
    devices: Vec<OwnedDeviceId>,
}

/// A secret that was asked for.
pub struct Received {
    /// What it is called.
    pub name: String,
    /// The secret.
    pub secret: Zeroizing<String>,
    /// The content of the `m.secret.request` that tells the others that it is here.
    pub cancellation: Value,
    /// The others.
    pub others: Vec<OwnedDeviceId>,
}

impl std::fmt::Debug for Received {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Received").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Requests {
    /// Asks `devices` for a secret: the content of the `m.secret.request` for each of them. What was asked for under this name before is
    /// forgotten.
    #[must_use]
    pub fn ask(&mut self, name: &str, own_device: &DeviceId, devices: Vec<OwnedDeviceId>) -> Value {
        let request_id = format!("{:032x}", rand::random::<u128>());
        let content = request(&request_id, name, own_device);
        self.forget(&[name]);
        self.0.insert(request_id, Asked { name: name.to_owned(), devices });
        content
    }

    /// Forgets what was asked for under these names: it is here.
    pub fn forget(&mut self, names: &[&str]) {
        self.0.retain(|_, asked| !names.contains(&asked.name.as_str()));
    }

    /// What was asked for and has not come: the same contents again, and for whom.
    pub fn again(&self, own_device: &DeviceId) -> impl Iterator<Item = (Value, &[OwnedDeviceId])> {
        self.0.iter().map(move |(id, asked)| (request(id, &asked.name, own_device), asked.devices.as_slice()))
    }

    /// Takes an `m.secret.send` that came over Olm from `sender`, a device of our own; `None` when nobody asked it for that.
    #[must_use]
    pub fn receive(&mut self, sender: &DeviceId, content: &Object, own_device: &DeviceId) -> Option<Received> {
        let request_id = content.get("request_id")?.as_str()?;
        let secret = content.get("secret")?.as_str().filter(|secret| secret.len() <= SECRET_BYTES_MAX)?;
        if !self.0.get(request_id)?.devices.iter().any(|device| device == sender) {
            return None;
        }
        let Asked { name, devices } = self.0.remove(request_id)?;
        Some(Received {
            name,
            secret: Zeroizing::new(secret.to_owned()),
            cancellation: json!({ "action": "request_cancellation", "requesting_device_id": own_device, "request_id": request_id }),
            others: devices.into_iter().filter(|device| device != sender).collect(),
        })
    }
}

fn request(id: &str, name: &str, own_device: &DeviceId) -> Value {
    json!({ "action": "request", "name": name, "requesting_device_id": own_device, "request_id": id })
}

/// What another device asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What the secret is called.
    pub name: String,
    /// Who asks, as it says: the secret is encrypted for that device, so that a lie gains nothing.
    pub device_id: OwnedDeviceId,
    request_id: String,
}

impl Request {
    /// Reads an `m.secret.request`; `None` when it asks for nothing, as cancellations.
    #[must_use]
    pub fn parse(content: &Object) -> Option<Self> {
        let text = |name: &str| content.get(name)?.as_str().filter(|text| text.len() <= 255).map(ToOwned::to_owned);
        (text("action")? == "request").then_some(())?;
        Some(Self {
            name: text("name")?,
            device_id: text("requesting_device_id")?.into(),
            request_id: text("request_id")?,
        })
    }

    /// The content of the `m.secret.send` that answers it, to be encrypted by Olm.
    #[must_use]
    pub fn answer(&self, secret: &str) -> Value {
        json!({ "request_id": self.request_id, "secret": secret })
    }
}

#[cfg(test)]
mod tests {
    use ruma::device_id;

    use super::*;
    use crate::secret_storage::names;

    fn object(value: Value) -> Object {
        value.as_object().expect("an object").clone()
    }

    #[test]
    fn a_secret_goes_from_one_device_to_the_other_and_the_rest_is_told() {
        let (phone, laptop, tablet) = (device_id!("PHONE"), device_id!("LAPTOP"), device_id!("TABLET"));
        let mut requests = Requests::default();
        let asked = object(requests.ask(names::MASTER, phone, vec![laptop.to_owned(), tablet.to_owned()]));
        let request = Request::parse(&asked).expect("it asks for something");
        assert_eq!((request.name.as_str(), &*request.device_id), (names::MASTER, phone));
        let answer = object(request.answer("secret"));
        let received = requests.receive(laptop, &answer, phone).expect("it was asked");
        assert_eq!(
            (received.name.as_str(), received.secret.as_str(), &received.others),
            (names::MASTER, "secret", &vec![tablet.to_owned()])
        );
        assert_eq!(Request::parse(&object(received.cancellation.clone())), None);
        assert_eq!(received.cancellation["request_id"], asked["request_id"]);
        assert!(!format!("{received:?}").contains("secret\""));
        assert!(requests.receive(tablet, &answer, phone).is_none(), "once is enough");
    }

    #[test]
    fn a_secret_that_nobody_asked_this_device_for_does_not_count() {
        let (phone, laptop, stranger) = (device_id!("PHONE"), device_id!("LAPTOP"), device_id!("STRANGER"));
        let mut requests = Requests::default();
        let asked = object(requests.ask(names::MASTER, phone, vec![laptop.to_owned()]));
        let answer = object(Request::parse(&asked).expect("it asks for something").answer("secret"));
        assert!(requests.receive(stranger, &answer, phone).is_none());
        for (field, value) in [
            ("request_id", json!("other")),
            ("request_id", json!(1)),
            ("secret", json!(1)),
            ("secret", json!("s".repeat(70_000))),
        ] {
            let mut wrong = answer.clone();
            wrong.insert(field.to_owned(), value);
            assert!(requests.receive(laptop, &wrong, phone).is_none(), "{field}");
        }
        // As after a restart.
        let mut requests: Requests =
            serde_json::from_value(serde_json::to_value(&requests).expect("it is written")).expect("it is read");
        assert!(requests.receive(laptop, &answer, phone).is_some(), "what was wrong did not spoil it");
        let again = object(requests.ask(names::MASTER, phone, vec![laptop.to_owned()]));
        let _ = requests.ask(names::MASTER, phone, vec![laptop.to_owned()]);
        let late = object(Request::parse(&again).expect("it asks for something").answer("secret"));
        assert!(requests.receive(laptop, &late, phone).is_none(), "it was asked for anew");
    }
}
