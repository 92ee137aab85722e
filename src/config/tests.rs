use std::{collections::BTreeSet, iter};

use super::{
    load::{field_names, parse, sections},
    *,
};

const DOCUMENTED: &str = include_str!("../../config.toml");

fn read(text: &str) -> Result<Config, String> {
    parse("config.toml", text, iter::empty()).map_err(|error| error.to_string())
}

fn with_variable(text: &str, variable: &str, value: &str) -> Result<Config, String> {
    parse("config.toml", text, iter::once((variable.to_owned(), value.to_owned()))).map_err(|error| error.to_string())
}

#[test]
fn the_documented_configuration_is_the_default() {
    let without_signs: Vec<&str> = DOCUMENTED
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(|first: char| first == '[' || first.is_ascii_lowercase()) => rest,
            _ => line,
        })
        .collect();
    assert_eq!(read(&without_signs.join("\n")).unwrap(), Config::default());
    assert_eq!(read(DOCUMENTED).unwrap(), Config::default());
    assert_eq!(read("").unwrap(), Config::default());
}

#[test]
fn every_option_is_documented_and_nothing_else() {
    let mut documented = BTreeSet::new();
    let mut section = "";
    for line in DOCUMENTED.lines() {
        let Some(line) = line.strip_prefix('#') else { continue };
        if line.trim_start().starts_with('[') {
            section = line.trim().trim_matches(['[', ']']);
        } else if let Some((key, _)) = line.split_once(" = ")
            && (!line.starts_with(' ') || line.starts_with("   "))
        {
            documented.insert(format!("{section}.{}", key.trim()));
        }
    }
    let options: BTreeSet<String> = sections()
        .into_iter()
        .flat_map(|(section, fields)| fields.iter().map(move |field| format!("{section}.{field}")))
        .collect();
    assert_eq!(documented, options);
    let named: Vec<&str> = sections().into_iter().map(|(section, _)| section).collect();
    assert_eq!(named, field_names::<Config>());
}

#[test]
fn the_examples_in_the_documentation_are_allowed() {
    let uncommented: Vec<&str> = DOCUMENTED
        .lines()
        .map(|line| match line.strip_prefix("#   ").or_else(|| line.strip_prefix('#')) {
            Some(rest) if rest.starts_with(|first: char| first == '[' || first.is_ascii_lowercase()) => rest,
            _ => line,
        })
        .collect();
    let config = read(&uncommented.join("\n")).unwrap();
    assert_eq!(config.accounts.registration, Some(Registration::Token));
    assert_eq!(config.application_services.registrations.len(), 2);
    assert!(config.listeners[0].tls.len() == 1 && config.client_api.public_url.is_some());
}

#[test]
fn a_listener_has_one_certificate_or_several() {
    let files = |name: &str| format!("{{ certificate = \"{name}.pem\", key = \"{name}.key\" }}");
    for (text, names) in [
        (files("one"), &["one"][..]),
        (format!("[{}, {}]", files("one"), files("two")), &["one", "two"]),
        ("[]".to_owned(), &[]),
    ] {
        let config = read(&format!("[[listeners]]\ntls = {text}")).unwrap();
        let expected: Vec<TlsConfig> = names
            .iter()
            .map(|name| TlsConfig { certificate: format!("{name}.pem").into(), key: format!("{name}.key").into() })
            .collect();
        assert_eq!(config.listeners[0].tls, expected);
    }
}

#[test]
fn a_wrong_key_type_or_value_is_told_with_its_line_and_what_is_allowed() {
    for (text, expected) in [
        (
            "\n[server]\nnmes = []",
            "config.toml:3: `server.nmes` is not an option; did you mean `names`? (options of `server`: names, data_folder, log, log_format, connections_max, address_connections_max, shutdown_timeout_seconds)",
        ),
        (
            "[serve]",
            "config.toml:1: `serve` is not a section; did you mean `server`? (sections: server, listeners, storage, event_bus, accounts, rooms, media, presence, client_api, federation, application_services, unsafe)",
        ),
        (
            "[accounts]\nregistration = \"opn\"",
            "config.toml:2: `accounts.registration` cannot be `opn`; did you mean `open`? (allowed: open, token, closed)",
        ),
        ("[server]\nnames = 3", "config.toml:2: `server.names`: invalid type: integer `3`, expected a sequence"),
        (
            "[server]\n\nconnections_max = 0",
            "config.toml:3: `server.connections_max`: invalid value: integer `0`, expected a nonzero u32",
        ),
        (
            "[[listeners]]\naddress = \"localhost\"",
            "config.toml:2: `listeners[0].address`: invalid socket address syntax",
        ),
        ("[[listeners]]\ntls = { certificate = \"x\" }", "config.toml:2: `listeners[0].tls`: missing field `key`"),
        (
            "[storage]\ndatabase = \"mysql://secret\"",
            "config.toml:2: `storage.database`: expected `sqlite:FILE` or `postgres://user:password@host/database`",
        ),
        (
            "[event_bus]\nurl = \"amqp://u:secret@h\"",
            "config.toml:2: `event_bus.url`: expected `memory` or a URL such as `redis://host:6379/`",
        ),
        (
            "[rooms]\ndefault_version = \"13\"",
            "config.toml:2: `rooms.default_version`: `13` is not a room version: expected \"1\" to \"12\"",
        ),
        ("listeners = []", "config.toml: `listeners` is empty: a server has at least one `[[listeners]]`"),
    ] {
        assert_eq!(read(text).unwrap_err(), expected, "{text}");
    }
    for text in ["[server", "x", "[server]\nnames = [\"not a name\"]", "[server]\nnames = [\"a\", \"a\"]"] {
        assert!(read(text).unwrap_err().starts_with("config.toml"), "{text}");
    }
}

#[test]
fn the_environment_goes_over_the_file() {
    let text = "[server]\nnames = [\"file.example\"]\nlog = \"warn\"";
    let config = with_variable(text, "SWIFTCHAT_SERVER__NAMES", "one.example, two.example").unwrap();
    assert_eq!(config.server.names, ["one.example", "two.example"]);
    assert_eq!(config.server.log, "warn");
    let config = with_variable("", "SWIFTCHAT_UNSAFE__RATE_LIMITS_OFF", "true").unwrap();
    assert!(config.unsafe_options.rate_limits_off);
    let config = with_variable("", "SWIFTCHAT_ACCOUNTS__REGISTRATION_SHARED_SECRET", "123").unwrap();
    assert_eq!(config.accounts.registration_shared_secret.as_deref(), Some("123"));
    let config = with_variable("", "SWIFTCHAT_LISTENERS", "[{ address = \"[::1]:0\", apis = [\"client\"] }]").unwrap();
    assert_eq!(config.listeners[0].apis, [Api::Client]);
    for foreign in ["SWIFTCHAT_SERVICE_HOST", "SWIFTCHAT_PORT", "SWIFTCHAT_TEST_POSTGRES", "HOME"] {
        assert_eq!(with_variable("", foreign, "x").unwrap(), Config::default(), "{foreign}");
    }
}

#[test]
fn a_wrong_variable_is_told_by_its_name() {
    for (variable, value, expected) in [
        (
            "SWIFTCHAT_SERVER__NMAES",
            "x",
            "SWIFTCHAT_SERVER__NMAES in the environment: `server.nmaes` is not an option; did you mean `names`? (options of `server`: names, data_folder, log, log_format, connections_max, address_connections_max, shutdown_timeout_seconds)",
        ),
        (
            "SWIFTCHAT_SERVER_NAMES",
            "x",
            "SWIFTCHAT_SERVER_NAMES in the environment sets no option; did you mean SWIFTCHAT_SERVER__NAMES?",
        ),
        (
            "SWIFTCHAT_ACCOUNTS__GUESTS",
            "perhaps",
            "SWIFTCHAT_ACCOUNTS__GUESTS in the environment: `accounts.guests`: invalid type: string \"perhaps\", expected a boolean",
        ),
    ] {
        assert_eq!(with_variable("", variable, value).unwrap_err(), expected);
    }
}

#[test]
fn registration_is_open_only_on_a_server_for_itself() {
    let registration = |text: &str| read(text).unwrap().registration();
    assert_eq!(registration(""), Registration::Open);
    assert_eq!(registration("[[listeners]]\naddress = \"[::1]:80\""), Registration::Open);
    assert_eq!(registration("[server]\nnames = [\"example.org\"]"), Registration::Closed);
    assert_eq!(registration("[[listeners]]\naddress = \"0.0.0.0:80\""), Registration::Closed);
    assert_eq!(registration("[[listeners]]\n[[listeners]]\naddress = \"[::]:80\""), Registration::Closed);
    assert_eq!(registration("[[listeners]]\ntrusted_proxies = [\"127.0.0.1\"]"), Registration::Closed);
    assert_eq!(registration("[accounts]\nregistration = \"token\""), Registration::Token);
    let public = "[accounts]\nregistration = \"open\"\n[[listeners]]\naddress = \"0.0.0.0:80\"";
    assert!(read(public).unwrap_err().contains("unsafe.open_registration"));
    assert_eq!(registration(&format!("{public}\n[unsafe]\nopen_registration = true")), Registration::Open);
}

#[test]
fn secrets_are_not_shown() {
    let text =
        "[accounts]\nregistration_shared_secret = \"hidden\"\n[storage]\ndatabase = \"postgres://u:hidden@h/d\"\n";
    assert!(!format!("{:?}", read(text).unwrap()).contains("hidden"));
}
