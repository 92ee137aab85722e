//! The table of the specification's endpoints, `tests/conformance/endpoints.json`.

use std::{collections::BTreeMap, sync::LazyLock};

use serde::Deserialize;

use super::Schema;

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../../../tests/conformance/endpoints.json")).expect("a table of endpoints")
});

/// All endpoints of the specification.
#[derive(Debug, Deserialize)]
pub struct Table {
    /// The releases of the specification from v1.1 on, oldest first, as in `1.19`.
    pub releases: Vec<String>,
    /// The endpoints, by API and path.
    pub operations: Vec<Operation>,
}

/// One endpoint with one method.
#[derive(Debug, Deserialize)]
pub struct Operation {
    /// The API, such as `client-server`.
    pub api: String,
    /// Its name, the operationId; unique in its API.
    pub operation: String,
    /// `GET`, `PUT`, `POST` or `DELETE`.
    pub method: String,
    /// The path with `{parameters}`.
    pub path: String,
    /// The authentication: `none`, `accessTokenBearer`, `accessTokenBearer (optional)`, `signedRequest` and others.
    pub auth: String,
    /// The release that added it; none for what is older than v1.1.
    pub added: Option<String>,
    /// Whether it is deprecated.
    pub deprecated: bool,
    /// Parameters in the path.
    #[serde(default)]
    pub path_parameters: Vec<Parameter>,
    /// Parameters in the query.
    #[serde(default)]
    pub query_parameters: Vec<Parameter>,
    /// The body of the request.
    #[serde(default)]
    pub body: Option<Body>,
    /// The answers by status code, with the body of successes.
    pub responses: BTreeMap<String, Option<Body>>,
}

/// A parameter of a path or query.
#[derive(Debug, Deserialize)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// Whether a request must have it.
    pub required: bool,
    /// Its type and limits.
    pub schema: Schema,
}

/// A body.
#[derive(Debug, Deserialize)]
pub struct Body {
    /// Its type.
    pub content_type: String,
    /// The shape, if it is JSON.
    #[serde(default)]
    pub schema: Option<Schema>,
}

/// The table of this repository.
///
/// # Panics
///
/// When the file is broken.
#[must_use]
pub fn table() -> &'static Table {
    &TABLE
}

impl Operation {
    /// How markers name it: the operationId, after the API where that is not the client-server API.
    #[must_use]
    pub fn name(&self) -> String {
        match self.api.as_str() {
            "client-server" => self.operation.clone(),
            api => format!("{api}:{}", self.operation),
        }
    }

    /// Whether a homeserver is the one that answers it.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        matches!(self.api.as_str(), "client-server" | "server-server")
    }
}
