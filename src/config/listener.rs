//! `[[listeners]]`: where the server listens.

use std::{net::SocketAddr, path::PathBuf};

use serde::{
    Deserialize, Deserializer,
    de::{
        MapAccess, SeqAccess, Visitor,
        value::{MapAccessDeserializer, SeqAccessDeserializer},
    },
};

use super::Network;

/// An address, and what is served there.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListenerConfig {
    /// IP address and port; `[::]:8448` is all of IPv6 and IPv4, port 0 takes a free one. Default: `127.0.0.1:8008`.
    pub address: SocketAddr,
    /// The certificate, for `https`; or several, of which each client is shown the first that has the name it asks for (SNI), and the first of
    /// all when none has. Default: none, which serves plain `http`.
    #[serde(deserialize_with = "one_or_several")]
    pub tls: Vec<TlsConfig>,
    /// The APIs that are served here. Default: all. Of those that are not built yet nothing is served.
    pub apis: Vec<Api>,
    /// Proxies in front of this listener, as addresses or networks (`10.0.0.0/8`). What they say about the client's address
    /// (`X-Forwarded-For`) is believed. Default: none.
    pub trusted_proxies: Vec<Network>,
}

/// The files of a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// PEM file with the certificate and what leads to its authority.
    pub certificate: PathBuf,
    /// PEM file with its private key.
    pub key: PathBuf,
}

fn one_or_several<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<TlsConfig>, D::Error> {
    struct OneOrSeveral;

    impl<'de> Visitor<'de> for OneOrSeveral {
        type Value = Vec<TlsConfig>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("the files of a certificate, or a list of such")
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
            Ok(vec![TlsConfig::deserialize(MapAccessDeserializer::new(map))?])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
            Vec::deserialize(SeqAccessDeserializer::new(seq))
        }
    }

    deserializer.deserialize_any(OneOrSeveral)
}

/// What can be served on a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Api {
    /// The Matrix client-server API.
    Client,
    /// The Matrix server-server API.
    Federation,
    /// The SwiftChat domain API.
    Domain,
    /// The administration API, including shared-secret registration.
    Admin,
    /// Metrics for Prometheus.
    Metrics,
}

impl Api {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Client, Self::Federation, Self::Domain, Self::Admin, Self::Metrics];
}

impl Default for ListenerConfig {
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], 8008)),
            tls: Vec::new(),
            apis: Api::ALL.to_vec(),
            trusted_proxies: Vec::new(),
        }
    }
}
