//! The public keys of other servers. Server-Server API, "Retrieving server keys".
//!
//! Keys are in memory and in the database; who is asked for them is the server itself, then the notaries. No server is asked twice within a
//! minute, whatever strangers claim to be signed by it, and one that does not answer is left alone for longer each time. Asking goes on when
//! the request that caused it has ended, so that its outcome is known the next time.

mod answer;
mod known;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use model::{Clock, LocalServers};
use moka::{future::Cache, ops::compute::Op};
use outbound::Bounds;
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedServerName, OwnedServerSigningKeyId, ServerName, UInt,
    api::federation::discovery::{ServerSigningKeys, get_remote_server_keys_batch, get_server_keys},
    serde::Raw,
};
use storage::Storage;
use tracing::{debug, warn};

use self::answer::{ANSWER_BYTES_MAX, is_signed_by};
pub(crate) use self::{
    answer::{Answer, KEY_ID_BYTES_MAX},
    known::Known,
};
use crate::{
    Error,
    client::Client,
    shared_tasks::SharedTasks,
    shares::{Shares, site_of},
};

/// Most memory for what is known of keys, in bytes.
const CACHE_BYTES: u64 = 64 << 20;

/// Most servers that are asked at the same time, and of them those of one site.
const ASKED_AT_ONCE: usize = 50;
const ASKED_OF_SITE: usize = 5;

/// Most servers that wait to be asked or are.
const ASKING_MAX: usize = 1_000;

/// How long it is waited for one's turn to ask.
const TURN_WAIT: Duration = Duration::from_secs(10);

/// Most servers that a notary is asked for in one request.
const NOTARY_SERVERS_MAX: usize = 100;

/// From so many servers on notaries are asked before the servers themselves.
const NOTARY_FIRST: usize = 20;

/// How long a notary is left alone that did not answer, in milliseconds.
const NOTARY_REST_MS: i64 = 60_000;

const BOUNDS: Bounds = Bounds { timeout: Duration::from_secs(20), body_bytes_max: ANSWER_BYTES_MAX };
const NOTARY_BOUNDS: Bounds = Bounds { timeout: Duration::from_secs(30), body_bytes_max: 16 << 20 };

/// Which keys of a server are needed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Their ids.
    pub(crate) key_ids: BTreeSet<OwnedServerSigningKeyId>,
    /// When they must be valid, in milliseconds since 1970.
    pub(crate) valid_at_ms: i64,
}

/// Knows the public keys of other servers, or asks for them. Cheap to clone.
#[derive(Clone)]
pub(crate) struct KeyRing(Arc<Inner>);

struct Inner {
    client: Arc<Client>,
    storage: Storage,
    servers: LocalServers,
    clock: Clock,
    notaries: Vec<Notary>,
    known: Cache<OwnedServerName, Arc<Known>>,
    asking: SharedTasks<Arc<Known>>,
    turns: Shares,
}

struct Notary {
    name: OwnedServerName,
    /// When it last gave no answer, in milliseconds since 1970.
    failed_ms: AtomicI64,
}

impl KeyRing {
    pub(crate) fn new(client: Arc<Client>, storage: Storage, notaries: Vec<OwnedServerName>) -> Self {
        let notary = |name| Notary { name, failed_ms: AtomicI64::new(i64::MIN / 2) };
        let weigh = |name: &OwnedServerName, known: &Arc<Known>| {
            u32::try_from(name.as_str().len() + known.bytes()).unwrap_or(u32::MAX)
        };
        Self(Arc::new(Inner {
            servers: client.servers.clone(),
            clock: storage.clock().clone(),
            client,
            storage,
            notaries: notaries.into_iter().map(notary).collect(),
            known: Cache::builder().max_capacity(CACHE_BYTES).weigher(weigh).build(),
            asking: SharedTasks::new(ASKING_MAX),
            turns: Shares::new(ASKED_AT_ONCE, ASKED_OF_SITE),
        }))
    }

    /// The keys of a server that are in memory, if the wanted ones are among them and it need not be asked whether it says so itself.
    pub(crate) async fn in_memory(&self, server: &ServerName, wanted: &Wanted) -> Option<Arc<Known>> {
        let now_ms = self.0.clock.now_ms();
        let is_enough =
            |known: &Arc<Known>| known.has_directly(wanted) || (known.has(wanted) && !known.may_be_asked(now_ms));
        self.0.known.get(server).await.filter(is_enough)
    }

    /// The same, in memory or in the database.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`].
    pub(crate) async fn stored(&self, server: &ServerName, wanted: &Wanted) -> Result<Option<Arc<Known>>, Error> {
        Ok(self.find([server]).await?.remove(server).filter(|known| known.has_directly(wanted)))
    }

    /// What is known of the keys of a server, after it was asked for the wanted ones if it has not said them itself.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`]. That a server gives no keys is no error.
    pub(crate) async fn get(&self, server: &ServerName, wanted: Wanted) -> Result<Arc<Known>, Error> {
        let known = self.find([server]).await?.remove(server).unwrap_or_default();
        if self.0.servers.is_local(server) || known.has_directly(&wanted) || !known.may_be_asked(self.0.clock.now_ms())
        {
            return Ok(known);
        }
        let mut found = self.in_a_task(BTreeMap::from([(server.to_owned(), wanted)])).await;
        Ok(found.remove(server).unwrap_or(known))
    }

    /// What is known of the keys of servers, after those were asked, each at most once, whose wanted keys are not known.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`].
    pub(crate) async fn get_all(
        &self,
        wanted: BTreeMap<OwnedServerName, Wanted>,
    ) -> Result<HashMap<OwnedServerName, Arc<Known>>, Error> {
        let mut found = self.find(wanted.keys()).await?;
        let lacking = self.lacking(wanted, &found);
        if !lacking.is_empty() {
            found.extend(self.in_a_task(lacking).await);
        }
        Ok(found)
    }

    /// The same for another server, whose notary we are: at most `asked_max` servers are asked, and no notaries.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`].
    pub(crate) async fn get_as_notary(
        &self,
        wanted: BTreeMap<OwnedServerName, Wanted>,
        asked_max: usize,
    ) -> Result<HashMap<OwnedServerName, Arc<Known>>, Error> {
        let mut found = self.find(wanted.keys()).await?;
        let lacking = self.lacking(wanted, &found);
        let asked: Vec<_> = lacking.keys().take(asked_max).collect();
        found.extend(self.ask_each(asked.into_iter()).await);
        Ok(found)
    }

    /// Those whose wanted keys are not known, and that may be asked.
    fn lacking(
        &self,
        mut wanted: BTreeMap<OwnedServerName, Wanted>,
        found: &HashMap<OwnedServerName, Arc<Known>>,
    ) -> BTreeMap<OwnedServerName, Wanted> {
        let now_ms = self.0.clock.now_ms();
        wanted.retain(|server, wanted| {
            let known = found.get(server);
            let is_lacking = known.is_none_or(|known| !known.has(wanted) && known.may_be_asked(now_ms));
            is_lacking && !self.0.servers.is_local(server)
        });
        wanted
    }

    /// What is known, in memory or in the database.
    async fn find<'a, S: AsRef<ServerName> + ?Sized + 'a>(
        &self,
        servers: impl IntoIterator<Item = &'a S>,
    ) -> Result<HashMap<OwnedServerName, Arc<Known>>, Error> {
        let mut found = HashMap::new();
        let mut missing = Vec::new();
        for server in servers.into_iter().map(S::as_ref) {
            if let Some(local) = self.0.servers.get(server) {
                found.insert(server.to_owned(), Arc::new(Known::of_local(local)));
            } else if let Some(known) = self.0.known.get(server).await {
                found.insert(server.to_owned(), known);
            } else {
                missing.push(server);
            }
        }
        if !missing.is_empty() {
            for (server, row) in self.0.storage.list_server_keys(&missing).await? {
                // Somebody may have learnt more meanwhile.
                let known = self.0.known.get_with(server.clone(), async { Arc::new(Known::of_row(row)) }).await;
                found.insert(server, known);
            }
        }
        Ok(found)
    }

    /// Asks in a task of its own: what comes of it is noted, whoever still waits for it.
    async fn in_a_task(&self, wanted: BTreeMap<OwnedServerName, Wanted>) -> HashMap<OwnedServerName, Arc<Known>> {
        tokio::spawn(self.clone().ask_all(wanted)).await.unwrap_or_default()
    }

    /// Asks servers for their keys, or notaries for those of many; what is known then of those that were asked.
    async fn ask_all(self, mut wanted: BTreeMap<OwnedServerName, Wanted>) -> HashMap<OwnedServerName, Arc<Known>> {
        let mut found = HashMap::new();
        if wanted.len() >= NOTARY_FIRST {
            self.ask_notaries(&mut wanted, &mut found).await;
        }
        for (server, known) in self.ask_each(wanted.keys()).await {
            wanted.retain(|name, wanted| *name != server || !known.has(wanted));
            found.insert(server, known);
        }
        self.ask_notaries(&mut wanted, &mut found).await;
        found
    }

    /// Asks each of some servers.
    async fn ask_each(&self, servers: impl Iterator<Item = &OwnedServerName>) -> Vec<(OwnedServerName, Arc<Known>)> {
        let asked = servers.cloned().map(|server| async move {
            let known = self.ask(&server).await;
            (server, known)
        });
        stream::iter(asked).buffer_unordered(ASKED_AT_ONCE).collect().await
    }

    /// Asks a server for its keys, unless it was asked a moment ago. Who asks for the same one at the same time waits for one answer.
    async fn ask(&self, server: &ServerName) -> Arc<Known> {
        let (ring, name) = (self.clone(), server.to_owned());
        match self.0.asking.run(server.as_str(), async move { ring.ask_now(&name).await }).await {
            Some(known) => known,
            None => self.0.known.get(server).await.unwrap_or_default(),
        }
    }

    async fn ask_now(&self, server: &ServerName) -> Arc<Known> {
        let known = self.0.known.get(server).await.unwrap_or_default();
        if !known.may_be_asked(self.0.clock.now_ms()) {
            return known;
        }
        // Not noted: nobody was asked.
        let Some(_turn) = self.0.turns.take(&site_of(server), 1, TURN_WAIT).await else { return known };
        let answer = self.0.client.send_unsigned(server, get_server_keys::v2::Request::new(), BOUNDS).await;
        let now_ms = self.0.clock.now_ms();
        match answer.and_then(|response| take(server, &response.server_key)) {
            Ok(answer) => self.note(server, |before| before.with(&answer, now_ms)).await,
            Err(error) => {
                debug!(server.name = %server, error = &error as &dyn std::error::Error, "{server} gives no keys");
                self.note(server, |before| before.without_answer(now_ms)).await
            }
        }
    }

    /// Changes what is known of a server's keys, one change after the other, in memory and in the database.
    async fn note(&self, server: &ServerName, change: impl FnOnce(&Known) -> Known + Send) -> Arc<Known> {
        let changed = self.0.known.entry_by_ref(server).and_compute_with(|entry| async move {
            let before = match entry {
                Some(entry) => entry.into_value(),
                None => self.row_of(server).await,
            };
            let after = Arc::new(change(&before));
            if before.to_row() != after.to_row() {
                let stored = self.0.storage.upsert_server_keys(server, &after.to_row(), before.without(&after)).await;
                if let Err(error) = stored {
                    warn!(server.name = %server, error = &error as &dyn std::error::Error, "the keys of {server} were not stored");
                }
            }
            Op::Put(after)
        });
        changed.await.into_entry().map(moka::Entry::into_value).unwrap_or_default()
    }

    async fn row_of(&self, server: &ServerName) -> Arc<Known> {
        let rows = self.0.storage.list_server_keys(&[server]).await;
        let row = rows.ok().and_then(|mut rows| rows.remove(server));
        Arc::new(row.map(Known::of_row).unwrap_or_default())
    }

    /// Asks the notaries, one after the other, for what is still wanted.
    async fn ask_notaries(
        &self,
        wanted: &mut BTreeMap<OwnedServerName, Wanted>,
        found: &mut HashMap<OwnedServerName, Arc<Known>>,
    ) {
        for Notary { name: notary, failed_ms } in &self.0.notaries {
            let now_ms = self.0.clock.now_ms();
            let rests = now_ms - failed_ms.load(Ordering::Relaxed) < NOTARY_REST_MS;
            if rests || self.0.servers.is_local(notary) {
                continue;
            }
            // Nobody is asked about themselves in the place of others.
            let others = wanted.iter().filter(|(server, _)| *server != notary);
            let servers: Vec<_> = others.map(|(server, wanted)| (server.clone(), wanted.clone())).collect();
            for page in servers.chunks(NOTARY_SERVERS_MAX) {
                let answers = match self.ask_notary(notary, page).await {
                    Ok(answers) => answers,
                    Err(error) => {
                        debug!(server.name = %notary, error = &error as &dyn std::error::Error, "the notary {notary} gives no keys");
                        failed_ms.store(now_ms, Ordering::Relaxed);
                        break;
                    }
                };
                for (server, answer) in answers {
                    let known = self.note(&server, |before| before.with_notary(&server, &answer, now_ms)).await;
                    wanted.retain(|name, wanted| *name != server || !known.has(wanted));
                    found.insert(server, known);
                }
            }
        }
    }

    async fn ask_notary(
        &self,
        notary: &ServerName,
        wanted: &[(OwnedServerName, Wanted)],
    ) -> Result<Vec<(OwnedServerName, Answer)>, Error> {
        // By its own word only, not by that of another notary.
        let now_ms = self.0.clock.now_ms();
        let mut keys = self.find([notary]).await?.remove(notary).unwrap_or_default().direct_at(now_ms);
        if keys.is_empty() {
            keys = self.ask(notary).await.direct_at(now_ms);
        }
        if keys.is_empty() {
            return Err(Error::Misbehaved { server: notary.to_owned(), what: "it has no keys".to_owned() });
        }
        let mut query = BTreeMap::new();
        for (server, wanted) in wanted {
            let until = UInt::new_saturating(u64::try_from(wanted.valid_at_ms).unwrap_or(0));
            let mut criteria = get_remote_server_keys_batch::v2::QueryCriteria::new();
            criteria.minimum_valid_until_ts = Some(MilliSecondsSinceUnixEpoch(until));
            let ids = wanted.key_ids.iter().map(|id| (id.clone(), criteria.clone()));
            query.insert(server.clone(), ids.collect::<BTreeMap<_, _>>());
        }
        let request = get_remote_server_keys_batch::v2::Request::new(query);
        let response = self.0.client.send_unsigned(notary, request, NOTARY_BOUNDS).await?;
        let mut answers = Vec::new();
        for raw in response.server_keys {
            let Ok(Some(server)) = raw.get_field::<OwnedServerName>("server_name") else { continue };
            let is_wanted = wanted.iter().any(|(name, _)| *name == server);
            if is_wanted && is_signed_by(raw.json().get(), notary, &keys) {
                answers.extend(take(&server, &raw).ok().map(|answer| (server, answer)));
            }
        }
        Ok(answers)
    }
}

fn take(server: &ServerName, raw: &Raw<ServerSigningKeys>) -> Result<Answer, Error> {
    Answer::read(server, raw).map_err(|what| Error::Misbehaved { server: server.to_owned(), what: what.to_owned() })
}
