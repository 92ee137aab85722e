//! The keys of users of other servers, for our clients. Client-Server API, "POST /keys/query", "POST /keys/claim".

use std::{
    collections::{BTreeMap, HashMap},
    pin::pin,
    time::Duration,
};

use futures_util::{
    StreamExt as _,
    future::{BoxFuture, join_all},
    stream,
};
use model::{UserNr, content_object};
use ruma::{OwnedDeviceId, OwnedServerName, OwnedUserId, ServerName, UserId, api::federation::keys::get_keys};
use serde_json::{Value, json};

use super::{
    query::QueriedKeys,
    shown::shown,
    updates::{REMOTE_DEVICES_MAX, checked_device_keys, signing_key},
    verify::stored,
};
use crate::{Accounts, Error, RemoteError, Requester, sessions::DEVICE_NAME_BYTES_MAX};

/// Most servers that are asked at the same time for one request.
const SERVERS_AT_ONCE: usize = 50;
/// Most users of a server whose devices are followed from one request on; of the others the keys are asked for, in one question.
const FOLLOWED_OF_SERVER_MAX: usize = 100;
/// A list that could not be had is not asked for again within this time by whoever wants it.
const TRIED_AGAIN_AFTER_MS: i64 = 30_000;

/// Who is asked for, with the devices that are named, or none for all.
pub(super) type Wanted<'a> = BTreeMap<&'a OwnedUserId, &'a Vec<OwnedDeviceId>>;

/// What is known of users of other servers.
#[derive(Default)]
pub(super) struct Elsewhere {
    /// Those whose devices are kept here.
    pub(super) kept: Vec<UserNr>,
    /// What each server said now of others.
    pub(super) said: Vec<(OwnedServerName, get_keys::v1::Response)>,
    /// Servers that did not answer.
    pub(super) failures: BTreeMap<String, Value>,
}

/// How a server that did not answer is named to clients.
pub(super) fn failure() -> Value {
    json!({"message": "the server gave no answer"})
}

impl Accounts {
    /// Finds the keys of users of other servers: those who share a room with a user of ours are kept, and asked for once; of others each
    /// server is asked. Takes `patience` at most.
    pub(super) async fn find_elsewhere(
        &self,
        requester: &Requester,
        wanted: Wanted<'_>,
        numbers: &HashMap<&UserId, UserNr>,
        patience: Duration,
    ) -> Result<Elsewhere, Error> {
        let mut found = Elsewhere::default();
        if wanted.is_empty() {
            return Ok(found);
        }
        let known: Vec<UserNr> = wanted.keys().filter_map(|user_id| numbers.get(&***user_id)).copied().collect();
        let sharing = self.sharing(&known).await?;
        let lists = self.0.storage.list_remote_device_lists(&known).await?;
        let mut missing: BTreeMap<&ServerName, Vec<(&UserId, UserNr, OwnedServerName)>> = BTreeMap::new();
        let mut asked: BTreeMap<OwnedServerName, BTreeMap<OwnedUserId, Vec<OwnedDeviceId>>> = BTreeMap::new();
        for (user_id, devices) in &wanted {
            let server = user_id.server_name();
            let number = numbers.get(&***user_id);
            let shared = number.and_then(|nr| Some((*nr, sharing.get(nr)?)));
            let of_server = missing.get(server).map_or(0, Vec::len);
            match (shared, shared.and_then(|(nr, _)| lists.get(&nr))) {
                (Some((nr, _)), Some(list)) if list.ask_at_ms.is_none() => found.kept.push(nr),
                (Some(_), Some(list))
                    if list.failures > 0 && self.now_ms() < list.asked_at_ms + TRIED_AGAIN_AFTER_MS =>
                {
                    found.failures.insert(server.to_string(), failure());
                }
                (Some((nr, as_server)), _) if of_server < FOLLOWED_OF_SERVER_MAX => {
                    missing.entry(server).or_default().push((user_id, nr, as_server.clone()));
                }
                _ => {
                    let of_server = asked.entry(server.to_owned()).or_default();
                    of_server.insert((*user_id).clone(), (*devices).clone());
                }
            }
        }
        let mut completing: Vec<BoxFuture<'_, (&ServerName, UserNr, bool)>> = Vec::new();
        for (server, users) in missing {
            for (user_id, user_nr, as_server) in users {
                completing.push(Box::pin(async move {
                    (server, user_nr, self.complete_device_list(user_id, user_nr, as_server, patience).await)
                }));
            }
        }
        let as_server = requester.user_id.server_name();
        let asking = self.ask_servers(asked, patience, |server, wanted| {
            Box::pin(async move {
                let answer = self.0.remote.query_keys(as_server, &server, wanted).await?;
                Ok((server, answer))
            })
        });
        let (completed, (said, failures)) = tokio::join!(join_all(completing), asking);
        for (server, user_nr, is_complete) in completed {
            if is_complete {
                found.kept.push(user_nr);
            } else {
                found.failures.insert(server.to_string(), failure());
            }
        }
        found.failures.extend(failures);
        found.said = said;
        Ok(found)
    }

    /// Asks servers, each for its own, many at once; gives what came within `patience`, and who did not answer.
    pub(super) async fn ask_servers<'a, W, A: 'a>(
        &'a self,
        wanted: BTreeMap<OwnedServerName, W>,
        patience: Duration,
        ask: impl Fn(OwnedServerName, W) -> BoxFuture<'a, Result<A, RemoteError>>,
    ) -> (Vec<A>, BTreeMap<String, Value>) {
        let mut failures: BTreeMap<String, Value> =
            wanted.keys().map(|server| (server.to_string(), failure())).collect();
        let mut asking: Vec<BoxFuture<'a, (OwnedServerName, Result<A, RemoteError>)>> = Vec::new();
        for (server, wanted) in wanted {
            if !self.is_silent(&server) {
                let answer = ask(server.clone(), wanted);
                asking.push(Box::pin(async move { (server, answer.await) }));
            }
        }
        let mut said = Vec::new();
        let answers = stream::iter(asking).buffer_unordered(SERVERS_AT_ONCE);
        let mut answers = pin!(answers.take_until(tokio::time::sleep(patience)));
        while let Some((server, answer)) = answers.next().await {
            match answer {
                Ok(answer) => {
                    failures.remove(server.as_str());
                    said.push(answer);
                }
                Err(RemoteError::Unavailable { .. }) => self.note_silent(&server),
                Err(_) => {}
            }
        }
        (said, failures)
    }
}

impl QueriedKeys {
    /// Adds what servers said of users whom they were asked for. A server speaks of its own users only.
    pub(super) fn add_said(&mut self, wanted: &Wanted<'_>, said: Vec<(OwnedServerName, get_keys::v1::Response)>) {
        for (server, mut answer) in said {
            let of_server = |user_id: &UserId| user_id.server_name() == server;
            for (user_id, devices) in wanted.iter().filter(|(user_id, _)| of_server(user_id)) {
                let Some(said) = answer.device_keys.remove(*user_id) else { continue };
                let is_wanted = |id: &OwnedDeviceId| devices.is_empty() || devices.contains(id);
                let of_user = self.device_keys.entry((*user_id).clone()).or_default();
                for (device_id, keys) in said.into_iter().filter(|(id, _)| is_wanted(id)).take(REMOTE_DEVICES_MAX) {
                    let json = keys.json().get();
                    let Some(checked) = checked_device_keys(user_id, device_id.as_str(), json) else { continue };
                    of_user.extend(shown(&checked, None, name_in(json).as_deref()).map(|keys| (device_id, keys)));
                }
            }
            for (usage, said, into) in [
                ("master", answer.master_keys, &mut self.master_keys),
                ("self_signing", answer.self_signing_keys, &mut self.self_signing_keys),
            ] {
                for (user_id, key) in said {
                    if of_server(&user_id)
                        && wanted.contains_key(&user_id)
                        && let Some(key) = signing_key(&user_id, usage, &key)
                    {
                        into.insert(user_id, Value::Object(stored(&key)));
                    }
                }
            }
        }
    }
}

fn name_in(keys: &str) -> Option<String> {
    let keys = content_object(keys).ok()?;
    let name = keys.get("unsigned")?.get("device_display_name")?.as_str()?;
    (name.len() <= DEVICE_NAME_BYTES_MAX).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use ruma::{owned_user_id, serde::Raw};
    use serde::de::DeserializeOwned;
    use vodozemac::Ed25519SecretKey;

    use super::*;

    fn map<K: DeserializeOwned + Ord, T>(json: Value) -> BTreeMap<K, Raw<T>> {
        serde_json::from_str(&json.to_string()).unwrap()
    }

    /// Clients would pin the master key that they see first, and give room keys to devices that are not the user's.
    #[test]
    fn a_server_speaks_of_its_own_users_only() {
        let (victor, eve) = (owned_user_id!("@victor:good.test"), owned_user_id!("@eve:bad.test"));
        let said = |device: &str| {
            let of_user = |user_id: &OwnedUserId| {
                let keys = json!({"user_id": user_id, "device_id": device, "keys": {}});
                (user_id.clone(), map(json!({ device: keys })))
            };
            let public = Ed25519SecretKey::new().public_key().to_base64();
            let signing = |usage: &str| {
                let keys = json!({ format!("ed25519:{public}"): public });
                let key = |user_id: &OwnedUserId| json!({"user_id": user_id, "usage": [usage], "keys": keys});
                json!({ victor.as_str(): key(&victor), eve.as_str(): key(&eve) })
            };
            let mut answer = get_keys::v1::Response::new([&victor, &eve].map(of_user).into());
            answer.master_keys = map(signing("master"));
            answer.self_signing_keys = map(signing("self_signing"));
            (answer, public)
        };
        let ((good, of_victor), (bad, of_eve)) = (said("GOOD"), said("BAD"));
        let all = Vec::new();
        let wanted = BTreeMap::from([(&victor, &all), (&eve, &all)]);
        let mut answer = QueriedKeys::default();
        answer.add_said(&wanted, vec![("good.test".try_into().unwrap(), good), ("bad.test".try_into().unwrap(), bad)]);
        for (user_id, device, public) in [(&victor, "GOOD", of_victor), (&eve, "BAD", of_eve)] {
            let devices: Vec<&str> = answer.device_keys[user_id].keys().map(|id| id.as_str()).collect();
            assert_eq!(devices, [device]);
            for keys in [&answer.master_keys, &answer.self_signing_keys] {
                assert_eq!(keys[user_id]["keys"][format!("ed25519:{public}")], public);
            }
        }
        // Nor when nobody else speaks of them.
        let mut answer = QueriedKeys::default();
        answer.add_said(&wanted, vec![("bad.test".try_into().unwrap(), said("BAD").0)]);
        assert!(!answer.device_keys.contains_key(&victor) && answer.device_keys.contains_key(&eve));
        assert!(!answer.master_keys.contains_key(&victor) && !answer.self_signing_keys.contains_key(&victor));
    }
}
