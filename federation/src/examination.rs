//! What other servers see who look for a server: a friendly doctor for whoever sets one up.

use std::{error::Error as _, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::header;
use outbound::{Answer, Bounds, Outbound, Service, ServiceClient};
use ruma::{ServerName, api::federation::discovery::ServerSigningKeys, serde::Raw};
use serde_json::Value;

use crate::{
    keys,
    resolve::{Destination, PORT_DEFAULT, SERVICES, is_settled, without_well_known},
    well_known,
};

const BOUNDS: Bounds = Bounds { timeout: Duration::from_secs(15), body_bytes_max: 64 << 10 };

const SERVICE: Service = Service { names: SERVICES, port_default: PORT_DEFAULT };

/// What was found, step by step.
#[derive(Clone, Debug, Default)]
pub struct Examination(Vec<Finding>);

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whether it is as it should be.
    pub verdict: Verdict,
    /// A sentence for people.
    pub text: String,
}

/// How a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Neither good nor bad.
    Plain,
    /// Other servers cannot reach it, or not all of them.
    Bad,
}

/// The key that a server should have: its id, and its public half in base64.
#[derive(Clone, Debug)]
pub struct ExpectedKey {
    /// Its id, `ed25519:<version>`.
    pub id: String,
    /// Its public half, in unpadded base64.
    pub public_key: String,
}

/// Looks for a server as others do: its name, its addresses, its certificate, its keys. Server-Server API, "Resolving server names",
/// "Publishing Keys".
pub async fn examine(
    outbound: &Outbound,
    name: &ServerName,
    expected: Option<&ExpectedKey>,
    now_ms: i64,
) -> Examination {
    let mut found = Examination::default();
    let destination = find_destination(outbound, name, &mut found).await;
    let addresses = find_addresses(outbound, &destination, &mut found).await;
    let mut is_reached = false;
    for address in addresses {
        is_reached |= ask_at(outbound, name, &destination, address, (expected, now_ms), &mut found).await;
    }
    if is_reached && found.is_healthy() {
        found.good(format!("other servers reach {name}"));
    } else if is_reached {
        found.bad(format!("some servers do not reach {name}: mend what is above"));
    } else {
        found.bad(format!("no server reaches {name}"));
    }
    found
}

impl Examination {
    /// What was found, in order.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.0
    }

    /// Whether nothing is bad.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.0.iter().all(|finding| finding.verdict != Verdict::Bad)
    }

    fn good(&mut self, text: String) {
        self.0.push(Finding { verdict: Verdict::Good, text });
    }

    fn plain(&mut self, text: String) {
        self.0.push(Finding { verdict: Verdict::Plain, text });
    }

    /// Notes that something is not as it should be.
    pub fn bad(&mut self, text: String) {
        self.0.push(Finding { verdict: Verdict::Bad, text });
    }
}

/// Steps 1 to 3.
async fn find_destination(outbound: &Outbound, name: &ServerName, found: &mut Examination) -> Destination {
    if is_settled(name) {
        found.plain(format!("the name {name} itself says where the server is: nothing else is asked"));
        return without_well_known(name);
    }
    let url = well_known::url_of(name.host());
    match well_known::look(outbound, name.host()).await {
        Ok(delegated) => {
            found.good(format!("{url} says that the server is {delegated}"));
            without_well_known(&delegated)
        }
        Err(reason) => {
            found.plain(format!("{url} names no other server ({reason}): the name itself counts"));
            without_well_known(name)
        }
    }
}

/// Where its connections go, by its records or its addresses.
async fn find_addresses(outbound: &Outbound, destination: &Destination, found: &mut Examination) -> Vec<SocketAddr> {
    let authority = &destination.authority;
    let looked_up = match authority.rsplit_once(':').filter(|_| !destination.by_service) {
        Some((host, port)) => match (host.trim_matches(['[', ']']).parse(), port.parse()) {
            (Ok(ip), Ok(port)) => return vec![SocketAddr::new(ip, port)],
            (_, port) => outbound.addresses_of(host, port.unwrap_or(PORT_DEFAULT)).await,
        },
        None => outbound.addresses_of_service(authority, SERVICE).await,
    };
    match looked_up {
        Ok(addresses) => {
            let list: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            found.good(format!("{authority} is at {}", list.join(", ")));
            addresses
        }
        Err(error) => {
            let mut text = format!("{authority} has no address that can be used: {}", chain(&error));
            if destination.by_service {
                text += &format!("; it needs an A or AAAA record, or an SRV record {}.{authority}", SERVICES[0]);
            }
            found.bad(text);
            Vec::new()
        }
    }
}

/// Asks the server at one of its addresses for its keys; whether it answered as it should.
async fn ask_at(
    outbound: &Outbound,
    name: &ServerName,
    destination: &Destination,
    address: SocketAddr,
    (expected, now_ms): (Option<&ExpectedKey>, i64),
    found: &mut Examination,
) -> bool {
    let client = match outbound.at(address) {
        Ok(client) => client,
        Err(error) => {
            found.bad(chain(&error));
            return false;
        }
    };
    let answer = match get(&client, destination, "/_matrix/key/v2/server").await {
        Ok(answer) => answer,
        Err(error) => {
            found.bad(format!("{address}: {}", advice(&chain(&error), destination, address)));
            return false;
        }
    };
    found.good(format!("{address} answers with a certificate that is valid for {}", host_of(destination)));
    match read_keys(name, &answer) {
        Ok(said) => judge_keys(name, address, &said, expected, now_ms, found),
        Err(reason) => {
            found.bad(format!(
                "{address} does not say the keys of {name}: {reason}; is it a Matrix server, and does a proxy in front of it pass on \
                 /_matrix with the name of the host?"
            ));
            return false;
        }
    }
    let version = get(&client, destination, "/_matrix/federation/v1/version").await;
    let version: Option<Value> = version.ok().and_then(|answer| serde_json::from_slice(&answer.body).ok());
    match version
        .as_ref()
        .and_then(|version| Some((version["server"]["name"].as_str()?, version["server"]["version"].as_str()?)))
    {
        Some((software, version)) => found.plain(format!("{address} runs {software} {version}")),
        None => found.plain(format!("{address} does not say what software it runs")),
    }
    true
}

async fn get(client: &ServiceClient, destination: &Destination, path: &str) -> Result<Answer, outbound::Error> {
    let bad = |error: http::Error| outbound::Error::BadRequest(error.to_string());
    let request =
        http::Request::get(format!("https://{}{path}", destination.authority)).header(header::HOST, &destination.host);
    client.send(request.body(Bytes::new()).map_err(bad)?, destination.by_service, BOUNDS).await
}

fn read_keys(name: &ServerName, answer: &Answer) -> Result<keys::Answer, String> {
    if !answer.status.is_success() {
        return Err(format!("it answers {}", answer.status));
    }
    let raw: Raw<ServerSigningKeys> =
        serde_json::from_slice(&answer.body).map_err(|_| "it answers no JSON".to_owned())?;
    keys::Answer::read(name, &raw).map_err(str::to_owned)
}

fn judge_keys(
    name: &ServerName,
    address: SocketAddr,
    said: &keys::Answer,
    expected: Option<&ExpectedKey>,
    now_ms: i64,
    found: &mut Examination,
) {
    let current = || said.keys.iter().filter(|key| !key.is_old);
    if current().all(|key| key.until_ms <= now_ms) {
        found.bad(format!("the keys of {name} at {address} are out of date: is the clock of the machine right?"));
    }
    match expected {
        Some(key) if current().any(|said| said.id == key.id && said.public.encode() == key.public_key) => {
            found.good(format!("{address} has the key {} of this data folder", key.id));
        }
        Some(key) => found.bad(format!(
            "{address} has other keys than this data folder ({}): another server answers for {name}, or it runs since before the last \
             change of the key",
            key.id
        )),
        None => {
            let ids: Vec<&str> = current().map(|key| key.id.as_str()).collect();
            found.good(format!("{address} says the keys of {name}, signed by themselves: {}", ids.join(", ")));
        }
    }
}

/// What went wrong, and what helps.
fn advice(failure: &str, destination: &Destination, address: SocketAddr) -> String {
    let lower = failure.to_lowercase();
    let host = host_of(destination);
    let help = if lower.contains("certificate") || lower.contains("unknownissuer") || lower.contains("notvalidforname")
    {
        format!(
            "the certificate must be valid for {host} and come from an authority that others trust, with all certificates in between"
        )
    } else if lower.contains("refused") {
        format!(
            "nothing listens there: forward port {} to a listener with TLS that serves the federation API",
            address.port()
        )
    } else if lower.contains("timed out") || lower.contains("deadline") {
        format!("a firewall may drop what comes to port {}", address.port())
    } else if lower.contains("public internet") {
        "other servers cannot reach private addresses: the name must lead to a public one".to_owned()
    } else {
        "is it a server with TLS that speaks HTTP?".to_owned()
    };
    format!("{failure}; {help}")
}

fn host_of(destination: &Destination) -> &str {
    let authority = &destination.authority;
    if destination.by_service { authority } else { authority.rsplit_once(':').map_or(authority, |(host, _)| host) }
}

fn chain(error: &outbound::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advice_is_about_what_went_wrong() {
        let destination = without_well_known("example.org".try_into().unwrap());
        let address = SocketAddr::from(([192, 0, 2, 1], 8_448));
        for (failure, word) in [
            ("gave no answer: invalid peer certificate: UnknownIssuer", "valid for example.org"),
            ("gave no answer: Connection refused (os error 111)", "nothing listens"),
            ("gave no answer: operation timed out", "firewall"),
            ("example.org is not on the public internet", "private addresses"),
            ("gave no answer: invalid HTTP version", "speaks HTTP"),
        ] {
            let text = advice(failure, &destination, address);
            assert!(text.contains(failure) && text.contains(word), "{text}");
        }
    }
}
