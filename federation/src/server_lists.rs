//! Which servers this one federates with at all, as its configuration says.

use model::ServerPatterns;
use ruma::ServerName;

/// The servers that are asked and answered: those that are allowed, all if there is no such list, but for those that are denied.
#[derive(Clone, Debug, Default)]
pub struct ServerLists {
    /// Those that are allowed; empty for all.
    pub allow: ServerPatterns,
    /// Those that are not, though they are allowed.
    pub deny: ServerPatterns,
}

impl ServerLists {
    /// Whether this server federates with another one.
    #[must_use]
    pub fn allow(&self, server: &ServerName) -> bool {
        (self.allow.is_empty() || self.allow.fit(server)) && !self.deny.fit(server)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_denied_is_denied_though_they_are_allowed() {
        for (allow, deny, server, is_allowed) in [
            (&[][..], &[][..], "a.test", true),
            (&[], &["a.test"], "A.test:8448", false),
            (&[], &["*.a.test"], "a.test", true),
            (&["*.a.test"], &[], "b.a.test", true),
            (&["*.a.test"], &[], "b.test", false),
            (&["*.a.test"], &["b.*"], "b.a.test", false),
        ] {
            let lists = ServerLists { allow: allow.iter().collect(), deny: deny.iter().collect() };
            assert_eq!(lists.allow(server.try_into().unwrap()), is_allowed, "{allow:?} {deny:?} {server}");
        }
    }
}
