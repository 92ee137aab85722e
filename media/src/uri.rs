//! `mxc://` URIs.

use std::fmt;

use ruma::{OwnedMxcUri, OwnedServerName, ServerName};

/// Longest media id, in bytes.
const ID_BYTES_MAX: usize = 255;

/// What names a file: the server where it was uploaded, and an id there. Client-Server API, "Matrix Content (`mxc://`) URIs".
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MediaUri {
    server_name: OwnedServerName,
    media_id: String,
}

impl MediaUri {
    /// The URI, if the id is one: letters, digits, `_` and `-` only, so that no id is a path. Client-Server API, "Security considerations" of
    /// the content repository.
    #[must_use]
    pub fn new(server_name: OwnedServerName, media_id: String) -> Option<Self> {
        let is_id = (1..=ID_BYTES_MAX).contains(&media_id.len())
            && media_id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
        is_id.then_some(Self { server_name, media_id })
    }

    /// The server where it was uploaded.
    #[must_use]
    pub fn server_name(&self) -> &ServerName {
        &self.server_name
    }

    /// Its id there.
    #[must_use]
    pub fn media_id(&self) -> &str {
        &self.media_id
    }

    /// What `storage` finds it by.
    pub(crate) fn key(&self) -> (&ServerName, &str) {
        (&self.server_name, &self.media_id)
    }
}

impl fmt::Display for MediaUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mxc://{}/{}", self.server_name, self.media_id)
    }
}

impl From<&MediaUri> for OwnedMxcUri {
    fn from(uri: &MediaUri) -> Self {
        uri.to_string().into()
    }
}

#[cfg(test)]
mod tests {
    use ruma::owned_server_name;

    use super::*;

    #[test]
    fn an_id_is_no_path() {
        let uri = |id: &str| MediaUri::new(owned_server_name!("one.test"), id.to_owned());
        assert_eq!(uri("aZ09_-").unwrap().to_string(), "mxc://one.test/aZ09_-");
        let long = "a".repeat(ID_BYTES_MAX + 1);
        for id in ["", ".", "..", "a/b", "../a", "a%2Fb", "a\0", "ä", "a.png", &long] {
            assert_eq!(uri(id), None, "{id}");
        }
    }
}
