//! Endpoints that a server has only if it offers a way to log in that the specification leaves to its choice.

use std::collections::BTreeSet;

use super::Operation;
use crate::Http;

/// A way to log in that a server may offer, and the endpoints that belong to it alone.
#[derive(Debug)]
pub struct LoginFlow {
    /// Its name in the answer of `GET /login`.
    pub name: &'static str,
    /// The endpoints of the client-server API, by their operationId.
    pub operations: &'static [&'static str],
    /// Why a server without it lacks nothing, and where the specification says so.
    pub reason: &'static str,
}

/// The flows with endpoints of their own. Each must be optional by the words of the specification.
pub const LOGIN_FLOWS: [LoginFlow; 1] = [LoginFlow {
    name: "m.login.sso",
    operations: &["redirectToSSO", "redirectToIdP"],
    reason: "single sign-on is for a homeserver that delegates authentication to another server, and a client asks for it only if \
             `GET /login` offers it (Client-Server API, \"SSO client login/authentication\" and \"Token-based\")",
}];

/// The flows that a server offers.
///
/// # Panics
///
/// When it does not say.
pub(super) async fn offered(http: &Http) -> BTreeSet<String> {
    let answer = http.request("GET", "/_matrix/client/v3/login", None, &serde_json::Value::Null).await.ok();
    let flows = answer["flows"].as_array().unwrap_or_else(|| panic!("{answer} lacks `flows`"));
    flows.iter().filter_map(|flow| flow["type"].as_str().map(str::to_owned)).collect()
}

/// The flow that an endpoint belongs to.
pub(super) fn flow_of(operation: &Operation) -> Option<&'static LoginFlow> {
    LOGIN_FLOWS
        .iter()
        .find(|flow| operation.api == "client-server" && flow.operations.contains(&operation.operation.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::table;

    #[test]
    fn every_endpoint_of_a_flow_is_in_the_table() {
        let found = table().operations.iter().filter(|operation| flow_of(operation).is_some()).count();
        assert_eq!(found, LOGIN_FLOWS.iter().map(|flow| flow.operations.len()).sum::<usize>());
    }
}
