//! Which addresses may be connected to.
//!
//! Names of servers, links and redirects come from strangers. Without a guard they could make this server ask what stands beside it
//! in its own network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// What is not the public internet: the special-purpose registries of RFC 6890 as IANA keeps them, and multicast.
const NOT_PUBLIC: &[&str] = &[
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/128",
    "::1/128",
    "64:ff9b:1::/48",
    "100::/64",
    "2001::/23",
    "2001:db8::/32",
    "3fff::/20",
    "5f00::/16",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
];

/// Decides which addresses may be connected to: public ones, and those that the configuration allows.
#[derive(Clone, Debug)]
pub(crate) struct Guard {
    denied: Vec<IpNet>,
    allowed: Vec<IpNet>,
}

impl Guard {
    /// `denied` are public ranges that may not be connected to, `allowed` those that may though they would not.
    pub(crate) fn new(allowed: Vec<IpNet>, mut denied: Vec<IpNet>) -> Self {
        denied.extend(NOT_PUBLIC.iter().map(|range| range.parse::<IpNet>().expect("the ranges above are ranges")));
        Self { denied, allowed }
    }

    /// Whether an address may be connected to. One that carries an IPv4 address within is judged by that, too.
    pub(crate) fn allows(&self, address: IpAddr) -> bool {
        let inner = match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => carried(address).map(IpAddr::V4),
        };
        std::iter::once(address).chain(inner).all(|address| {
            self.allowed.iter().any(|range| range.contains(&address))
                || !self.denied.iter().any(|range| range.contains(&address))
        })
    }
}

/// The IPv4 address within an IPv6 address: mapped, compatible, translated (RFC 2765), NAT64 (RFC 6052) or 6to4 (RFC 3056).
fn carried(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let of = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match address.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] if address.to_bits() > 1 => {
            Some(of(high, low))
        }
        [0, 0, 0, 0, 0xffff, 0, high, low] | [0x2002, high, low, ..] => Some(of(high, low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(guard: &Guard, address: &str) -> bool {
        guard.allows(address.parse().unwrap())
    }

    #[test]
    fn what_is_not_public_is_refused_in_every_dress() {
        let guard = Guard::new(Vec::new(), Vec::new());
        for address in [
            "127.0.0.1",
            "127.200.3.4",
            "0.0.0.0",
            "10.1.2.3",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.100.100.200",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:0:10.0.0.1",
            "64:ff9b::10.0.0.1",
            "64:ff9b::169.254.169.254",
            "2002:7f00:1::1",
            "fe80::1",
            "fd00::1",
            "ff02::1",
        ] {
            assert!(!allows(&guard, address), "{address}");
        }
        for address in ["1.1.1.1", "172.32.0.1", "192.167.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::1.1.1.1"]
        {
            assert!(allows(&guard, address), "{address}");
        }
    }

    #[test]
    fn the_configuration_opens_and_closes_ranges() {
        let guard = Guard::new(vec!["10.1.0.0/16".parse().unwrap()], vec!["1.0.0.0/8".parse().unwrap()]);
        assert!(allows(&guard, "10.1.2.3"));
        assert!(!allows(&guard, "10.2.2.3"));
        assert!(!allows(&guard, "1.1.1.1"));
        // Allowed as it is written: whoever opens an IPv4 range means the plain addresses.
        assert!(!allows(&guard, "2002:a02:203::1"));
    }
}
