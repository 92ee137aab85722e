//! Which servers may take part in a room. Client-Server API, "Server Access Control Lists (ACLs) for rooms".

use std::sync::Arc;

use model::{EventNr, NodeNr, ServerPatterns};
use moka::sync::Cache;
use ruma::{RoomId, ServerName};
use serde_json::{Map, Value, value::RawValue};
use storage::RoomRow;

use crate::{Error, Rooms};

/// Most memory for lists that were taken apart, in bytes.
const CACHE_BYTES: u64 = 32 << 20;

/// Lists that were taken apart, by their event and what redacted it.
pub(crate) struct ServerAcls(Cache<(EventNr, Option<EventNr>), Arc<ServerAcl>>);

impl ServerAcls {
    pub(crate) fn new() -> Self {
        let weigh =
            |_: &_, acl: &Arc<ServerAcl>| u32::try_from(200 + acl.allow.bytes() + acl.deny.bytes()).unwrap_or(u32::MAX);
        Self(Cache::builder().max_capacity(CACHE_BYTES).weigher(weigh).build())
    }
}

/// The content of `m.room.server_acl`.
#[derive(Debug)]
struct ServerAcl {
    allow_ip_literals: bool,
    allow: ServerPatterns,
    deny: ServerPatterns,
}

impl ServerAcl {
    /// What is of another type counts as absent, so that a wrong list allows nobody; as in Synapse.
    fn of_content(content: &RawValue) -> Self {
        let content: Map<String, Value> = serde_json::from_str(content.get()).unwrap_or_default();
        let patterns = |name: &str| {
            let list = content.get(name).and_then(Value::as_array).into_iter().flatten();
            list.filter_map(Value::as_str).collect()
        };
        let allow_ip_literals = content.get("allow_ip_literals").and_then(Value::as_bool).unwrap_or(true);
        Self { allow_ip_literals, allow: patterns("allow"), deny: patterns("deny") }
    }

    /// Steps 2 to 5 of `m.room.server_acl`.
    fn allows(&self, server: &ServerName) -> bool {
        (self.allow_ip_literals || !server.is_ip_literal()) && !self.deny.fit(server) && self.allow.fit(server)
    }
}

impl Rooms {
    /// Whether a server may take part in a room, by the room's current state. Every one may in a room that we do not know.
    ///
    /// For endpoints that answer to a room's servers, and for EDUs about it. Server-Server API, "Server Access Control Lists (ACLs)".
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn is_server_allowed(&self, room_id: &RoomId, server: &ServerName) -> Result<bool, Error> {
        let room = match self.room(room_id).await {
            Ok(room) => room,
            Err(Error::RoomUnknown) => return Ok(true),
            Err(error) => return Err(error),
        };
        match self.storage().get_head(room.nr).await? {
            Some(head) => self.is_server_allowed_at(&room, head.state, server).await,
            None => Ok(true),
        }
    }

    /// The same as an answer for the server.
    ///
    /// # Errors
    ///
    /// [`Error::NotAllowed`], which becomes 403 `M_FORBIDDEN` as the section demands.
    pub async fn check_server_allowed(&self, room_id: &RoomId, server: &ServerName) -> Result<(), Error> {
        if self.is_server_allowed(room_id, server).await? {
            return Ok(());
        }
        Err(Error::NotAllowed(format!("{server} is denied access to this room")))
    }

    /// Whether a state of a room lets a server take part. Costs no query once the state and the event are in memory.
    pub(crate) async fn is_server_allowed_at(
        &self,
        room: &RoomRow,
        state: NodeNr,
        server: &ServerName,
    ) -> Result<bool, Error> {
        let Some(event) = self.find_state_at(room, state, "m.room.server_acl", "").await? else { return Ok(true) };
        let key = (event.nr, event.redacted_by);
        let acl = self.0.server_acls.0.get_with(key, || Arc::new(ServerAcl::of_content(&event.pdu.content)));
        Ok(acl.allows(server))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_list_is_applied_in_the_order_of_its_steps() {
        for (content, server, is_allowed) in [
            (json!({"allow": ["*"]}), "a.test", true),
            (json!({"allow": ["*"], "deny": ["a.test"]}), "A.test:8448", false),
            (json!({"allow": ["a.test"], "deny": ["*"]}), "a.test", false),
            (json!({"allow": ["*.good.test"]}), "a.good.test", true),
            (json!({"allow": ["*.good.test"]}), "good.test", false),
            (json!({"deny": ["b.test"]}), "a.test", false),
            (json!({}), "a.test", false),
            // IP literals, of both kinds, with and without a port.
            (json!({"allow": ["*"], "allow_ip_literals": false}), "1.2.3.4", false),
            (json!({"allow": ["*"], "allow_ip_literals": false}), "1.2.3.4:1", false),
            (json!({"allow": ["*"], "allow_ip_literals": false}), "[2001:db8::1]:1", false),
            (json!({"allow": ["1.2.3.4"], "allow_ip_literals": false}), "1.2.3.4", false),
            (json!({"allow": ["*"], "allow_ip_literals": false}), "1.2.3.4.test", true),
            (json!({"allow": ["*"], "allow_ip_literals": true}), "1.2.3.4", true),
            // What has another type is not there.
            (json!({"allow": ["*"], "allow_ip_literals": "no"}), "1.2.3.4", true),
            (json!({"allow": "*"}), "a.test", false),
            (json!({"allow": [1, null, "*"], "deny": [{}, "b.test"]}), "a.test", true),
            (json!({"allow": ["*"], "deny": "a.test"}), "a.test", true),
        ] {
            let raw = serde_json::value::to_raw_value(&content).unwrap();
            let allows = ServerAcl::of_content(&raw).allows(server.try_into().unwrap());
            assert_eq!(allows, is_allowed, "{content} {server}");
        }
    }
}
