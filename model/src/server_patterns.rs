//! Patterns for the names of servers, as server ACLs and the configuration have them.

use std::collections::HashSet;

use ruma::ServerName;
use wildmatch::WildMatch;

/// Glob expressions for the hosts of servers, regardless of case and port. Appendices, "Glob-style matching".
#[derive(Clone, Debug, Default)]
pub struct ServerPatterns {
    /// Those without wildcards, in lower case: most of a long list.
    names: HashSet<String>,
    globs: Vec<WildMatch>,
}

impl ServerPatterns {
    /// Whether one of them fits a server.
    #[must_use]
    pub fn fit(&self, server: &ServerName) -> bool {
        let host = server.host();
        self.names.contains(&host.to_ascii_lowercase()) || self.globs.iter().any(|glob| glob.matches(host))
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && self.globs.is_empty()
    }

    /// The memory that they take, roughly.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let of_globs = self.globs.iter().map(|glob| 32 + 4 * glob.pattern_chars().len());
        self.names.iter().map(|name| 48 + name.len()).chain(of_globs).sum()
    }
}

impl<T: AsRef<str>> FromIterator<T> for ServerPatterns {
    fn from_iter<I: IntoIterator<Item = T>>(patterns: I) -> Self {
        let mut all = Self::default();
        for pattern in patterns {
            let pattern = pattern.as_ref();
            if pattern.contains(['*', '?']) {
                all.globs.push(WildMatch::new_case_insensitive(pattern));
            } else {
                all.names.insert(pattern.to_ascii_lowercase());
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_fits_whole_hosts_regardless_of_case_and_port() {
        for (pattern, server, fits) in [
            ("evil.com", "evil.com", true),
            ("evil.com", "EVIL.com:8448", true),
            ("EVIL.com", "evil.com:1234", true),
            ("evil.com", "sub.evil.com", false),
            ("evil.com", "evil.com.org", false),
            ("*.evil.com", "a.b.Evil.com", true),
            ("*.evil.com", "evil.com", false),
            ("evil.co?", "evil.com:1", true),
            ("evil.co?", "evil.co", false),
            ("e*v*l.com", "eeevvvil.com", true),
            ("*", "[2001:db8::1]:8448", true),
            ("[2001:db8::*", "[2001:db8::1]:8448", true),
            ("1.2.3.*", "1.2.3.4", true),
            // A port in a pattern fits nothing.
            ("evil.com:8448", "evil.com:8448", false),
            ("", "evil.com", false),
            ("evil.[a-z]om", "evil.com", false),
        ] {
            let patterns: ServerPatterns = [pattern].into_iter().collect();
            assert_eq!(patterns.fit(server.try_into().unwrap()), fits, "{pattern} {server}");
        }
        assert!(ServerPatterns::default().is_empty() && !ServerPatterns::default().fit("a".try_into().unwrap()));
    }

    /// Whoever may write an ACL cannot keep everybody else's server busy with it.
    #[test]
    fn a_hostile_pattern_takes_no_exponential_time() {
        let pattern = "a*".repeat(20_000) + "b";
        let patterns: ServerPatterns = [pattern].into_iter().collect();
        let server = "a".repeat(230);
        assert!(!patterns.fit(server.as_str().try_into().unwrap()));
    }
}
