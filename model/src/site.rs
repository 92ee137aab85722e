//! Whose names and addresses count together: what costs nothing to have more of is no measure.

use std::net::IpAddr;

use ruma::ServerName;

/// What counts as one address: of IPv6 a network of 64 bits, which is what one household has.
#[must_use]
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        v4 => v4,
    }
}

/// Whose servers share: ports and subdomains cost nothing, a name under which one may have them does.
///
/// The last two labels of a host, or three where the second looks like that of a country (`co.uk`); of an IPv6 address the network.
#[must_use]
pub fn site_of(server: &ServerName) -> String {
    let host = server.host().to_ascii_lowercase();
    if let Ok(address) = host.trim_matches(['[', ']']).parse() {
        return network_of(address).to_string();
    }
    let labels: Vec<&str> = host.trim_end_matches('.').rsplit('.').collect();
    let is_country = labels.len() > 2 && labels[0].len() == 2 && labels[1].len() <= 3;
    let count = labels.len().min(if is_country { 3 } else { 2 });
    labels[..count].iter().rev().copied().collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_subdomains_are_one_site() {
        for (name, site) in [
            ("example.org", "example.org"),
            ("Example.org:8448", "example.org"),
            ("a.b.c.example.org:1", "example.org"),
            ("a.example.co.uk", "example.co.uk"),
            ("localhost", "localhost"),
            ("hs1:80", "hs1"),
            ("1.2.3.4:80", "1.2.3.4"),
            ("[2001:db8::1]:80", "2001:db8::"),
        ] {
            assert_eq!(site_of(name.try_into().unwrap()), site, "{name}");
        }
    }
}
