//! The public keys of other servers. Server-Server API, "Retrieving server keys".
//!
//! Keys are in memory and in the database; who is asked for them is the server itself, then the notaries. No server is asked twice within a
//! minute, whatever strangers claim to be signed by it, and one that does not answer is left alone for longer each time.

mod answer;
mod known;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use model::{Clock, LocalServers};
use moka::future::Cache;
use outbound::Bounds;
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedServerName, OwnedServerSigningKeyId, ServerName, UInt,
    api::federation::discovery::{ServerSigningKeys, get_remote_server_keys_batch, get_server_keys},
    serde::Raw,
};
use storage::Storage;
use tokio::sync::Semaphore;
use tracing::debug;

pub(crate) use self::{answer::is_signed_by, known::Known};
use crate::{Error, client::Client};

/// Most servers whose keys are in memory.
const SERVERS_CACHED: u64 = 50_000;

/// Most servers that are asked at the same time.
const ASKED_AT_ONCE: usize = 50;

/// Most servers that a notary is asked for in one request.
const NOTARY_SERVERS_MAX: usize = 100;

/// From so many servers on notaries are asked before the servers themselves.
const NOTARY_FIRST: usize = 20;

const BOUNDS: Bounds = Bounds { timeout: Duration::from_secs(20), body_bytes_max: 1 << 20 };
const NOTARY_BOUNDS: Bounds = Bounds { timeout: Duration::from_secs(30), body_bytes_max: 16 << 20 };

/// Which keys of a server are needed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Their ids.
    pub(crate) key_ids: BTreeSet<OwnedServerSigningKeyId>,
    /// When they must be valid, in milliseconds since 1970.
    pub(crate) valid_at_ms: i64,
}

/// Knows the public keys of other servers, or asks for them.
pub(crate) struct KeyRing {
    client: Arc<Client>,
    storage: Storage,
    servers: LocalServers,
    clock: Clock,
    notaries: Vec<OwnedServerName>,
    known: Cache<OwnedServerName, Arc<Known>>,
    asking: Semaphore,
}

impl KeyRing {
    pub(crate) fn new(client: Arc<Client>, storage: Storage, notaries: Vec<OwnedServerName>) -> Self {
        Self {
            servers: client.servers.clone(),
            clock: storage.clock().clone(),
            client,
            storage,
            notaries,
            known: Cache::new(SERVERS_CACHED),
            asking: Semaphore::new(ASKED_AT_ONCE),
        }
    }

    /// What is known of the keys of a server, after it was asked for the wanted ones if they are not known.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`]. That a server gives no keys is no error.
    pub(crate) async fn get(&self, server: &ServerName, wanted: Wanted) -> Result<Arc<Known>, Error> {
        let mut found = self.get_all(BTreeMap::from([(server.to_owned(), wanted)])).await?;
        Ok(found.remove(server).unwrap_or_default())
    }

    /// The same for many servers, each of which is asked at most once.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`].
    pub(crate) async fn get_all(
        &self,
        mut wanted: BTreeMap<OwnedServerName, Wanted>,
    ) -> Result<HashMap<OwnedServerName, Arc<Known>>, Error> {
        let mut found = self.find(wanted.keys()).await?;
        let now_ms = self.clock.now_ms();
        wanted.retain(|server, wanted| {
            let known = found.get(server);
            !self.servers.is_local(server) && known.is_none_or(|known| !known.has(wanted) && known.may_be_asked(now_ms))
        });
        if wanted.len() >= NOTARY_FIRST {
            self.ask_notaries(&mut wanted, &mut found).await?;
        }
        let asked: Vec<Result<_, Error>> = stream::iter(wanted.keys().cloned())
            .map(|server| async move {
                let known = self.ask(&server).await?;
                Ok((server, known))
            })
            .buffer_unordered(ASKED_AT_ONCE)
            .collect()
            .await;
        for result in asked {
            let (server, known) = result?;
            wanted.retain(|name, wanted| *name != server || !known.has(wanted));
            found.insert(server, known);
        }
        self.ask_notaries(&mut wanted, &mut found).await?;
        Ok(found)
    }

    /// What is known, in memory or in the database.
    async fn find(
        &self,
        servers: impl Iterator<Item = &OwnedServerName>,
    ) -> Result<HashMap<OwnedServerName, Arc<Known>>, Error> {
        let mut found = HashMap::new();
        let mut missing = Vec::new();
        for server in servers {
            if let Some(local) = self.servers.get(server) {
                found.insert(server.clone(), Arc::new(Known::of_local(local)));
            } else if let Some(known) = self.known.get(server).await {
                found.insert(server.clone(), known);
            } else {
                missing.push(&**server);
            }
        }
        if !missing.is_empty() {
            for (server, row) in self.storage.list_server_keys(&missing).await? {
                let known = Arc::new(Known::of_row(row));
                self.known.insert(server.clone(), known.clone()).await;
                found.insert(server, known);
            }
        }
        Ok(found)
    }

    /// Asks a server for its keys. Who asks for the same one at the same time waits for one answer.
    async fn ask(&self, server: &ServerName) -> Result<Arc<Known>, Error> {
        let now_ms = self.clock.now_ms();
        let before = self.known.get(server).await.unwrap_or_default();
        let asking = async {
            let _permit = self.asking.acquire().await;
            let answer = self.client.send_unsigned(server, get_server_keys::v2::Request::new(), BOUNDS).await;
            let answer = answer.and_then(|response| self.take(server, &response.server_key));
            let known = match answer {
                Ok(answer) => before.with(&answer, self.clock.now_ms()),
                Err(error) => {
                    debug!(server.name = %server, error = &error as &dyn std::error::Error, "{server} gives no keys");
                    before.without_answer(self.clock.now_ms())
                }
            };
            Arc::new(known)
        };
        // Whoever comes while somebody else asks finds an entry that is newer than when they looked.
        let entry = self.known.entry_by_ref(server).or_insert_with_if(asking, |known| known.may_be_asked(now_ms)).await;
        let is_fresh = entry.is_fresh();
        let known = entry.into_value();
        if is_fresh && known.has_answer_of_now() {
            self.storage.upsert_server_keys(server, &known.to_row()).await?;
        }
        Ok(known)
    }

    /// Asks the notaries, one after the other, for what is still wanted.
    async fn ask_notaries(
        &self,
        wanted: &mut BTreeMap<OwnedServerName, Wanted>,
        found: &mut HashMap<OwnedServerName, Arc<Known>>,
    ) -> Result<(), Error> {
        for notary in &self.notaries {
            wanted.remove(notary);
            if wanted.is_empty() || self.servers.is_local(notary) {
                continue;
            }
            let servers: Vec<_> = wanted.iter().map(|(server, wanted)| (server.clone(), wanted.clone())).collect();
            for page in servers.chunks(NOTARY_SERVERS_MAX) {
                let answers = match self.ask_notary(notary, page).await {
                    Ok(answers) => answers,
                    Err(error) => {
                        debug!(server.name = %notary, error = &error as &dyn std::error::Error, "the notary {notary} gives no keys");
                        break;
                    }
                };
                for (server, answer) in answers {
                    let before = found.get(&server).cloned().unwrap_or_default();
                    let known = Arc::new(before.with(&answer, self.clock.now_ms()));
                    self.known.insert(server.clone(), known.clone()).await;
                    self.storage.upsert_server_keys(&server, &known.to_row()).await?;
                    wanted.retain(|name, wanted| *name != server || !known.has(wanted));
                    found.insert(server, known);
                }
            }
        }
        Ok(())
    }

    async fn ask_notary(
        &self,
        notary: &ServerName,
        wanted: &[(OwnedServerName, Wanted)],
    ) -> Result<Vec<(OwnedServerName, answer::Answer)>, Error> {
        let keys_of_notary = match self.find(std::iter::once(&notary.to_owned())).await?.remove(notary) {
            Some(known) if known.has_current(self.clock.now_ms()) => known,
            _ => self.ask(notary).await?,
        };
        let mut query = BTreeMap::new();
        for (server, wanted) in wanted {
            let until = UInt::new_saturating(u64::try_from(wanted.valid_at_ms).unwrap_or(0));
            let mut criteria = get_remote_server_keys_batch::v2::QueryCriteria::new();
            criteria.minimum_valid_until_ts = Some(MilliSecondsSinceUnixEpoch(until));
            let ids = wanted.key_ids.iter().map(|id| (id.clone(), criteria.clone()));
            query.insert(server.clone(), ids.collect::<BTreeMap<_, _>>());
        }
        let request = get_remote_server_keys_batch::v2::Request::new(query);
        let response = self.client.send_unsigned(notary, request, NOTARY_BOUNDS).await?;
        let keys = keys_of_notary.valid_at(self.clock.now_ms());
        let mut answers = Vec::new();
        for raw in response.server_keys {
            let Ok(Some(server)) = raw.get_field::<OwnedServerName>("server_name") else { continue };
            let is_wanted = wanted.iter().any(|(name, _)| *name == server);
            if is_wanted && is_signed_by(&raw, notary, &keys) {
                answers.extend(self.take(&server, &raw).ok().map(|answer| (server, answer)));
            }
        }
        Ok(answers)
    }

    fn take(&self, server: &ServerName, raw: &Raw<ServerSigningKeys>) -> Result<answer::Answer, Error> {
        answer::Answer::read(server, raw)
            .map_err(|what| Error::Misbehaved { server: server.to_owned(), what: what.to_owned() })
    }
}
