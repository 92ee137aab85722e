//! Reads the file and the environment, and says what is wrong with them.

use std::path::Path;

use serde::{Deserialize, Deserializer, de};
use toml::{Table, Value};

use super::{
    AccountsConfig, ApplicationServicesConfig, ClientApiConfig, Config, EventBusConfig, FederationConfig,
    ListenerConfig, MediaConfig, PresenceConfig, RoomsConfig, ServerConfig, StorageConfig, UnsafeConfig,
};

/// What every variable of the environment that sets an option begins with.
const PREFIX: &str = "SWIFTCHAT_";

/// The configuration cannot be used; the text says which key, where, and what is allowed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl ConfigError {
    pub(super) fn new(message: String) -> Self {
        Self(message)
    }
}

/// Reads the configuration: defaults, then the file, then the environment.
///
/// Without `file`, `config.toml` in the working folder is read if it is there. A variable is named after its option,
/// `SWIFTCHAT_SERVER__DATA_FOLDER`, and holds a text, any TOML value, or for a list its parts between commas.
///
/// # Errors
///
/// [`ConfigError`] when the file cannot be read, or a key, type or value is not allowed.
pub fn load(file: Option<&Path>, environment: impl Iterator<Item = (String, String)>) -> Result<Config, ConfigError> {
    let (name, text) = match file {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|error| ConfigError(format!("cannot read the configuration {}: {error}", path.display())))?;
            (path.display().to_string(), text)
        }
        None => ("config.toml".to_owned(), read_if_there(Path::new("config.toml"))?),
    };
    parse(&name, &text, environment)
}

fn read_if_there(path: &Path) -> Result<String, ConfigError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(ConfigError(format!("cannot read the configuration {}: {error}", path.display()))),
    }
}

/// Reads `text`, called `name` in messages, and what of `environment` is meant for us.
pub(super) fn parse(
    name: &str,
    text: &str,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Config, ConfigError> {
    let in_file = |span: Option<std::ops::Range<usize>>, message: String| {
        let line = span.map_or(1, |span| 1 + text.bytes().take(span.start).filter(|byte| *byte == b'\n').count());
        ConfigError(format!("{name}:{line}: {message}"))
    };
    // 1. The file by itself, so that what is wrong is told with its line.
    let deserializer =
        toml::Deserializer::parse(text).map_err(|error| in_file(error.span(), error.message().to_owned()))?;
    serde_path_to_error::deserialize::<_, Config>(deserializer)
        .map_err(|error| in_file(error.inner().span(), explain(&error.path().to_string(), error.inner().message())))?;
    let mut table: Table = toml::from_str(text).map_err(|error| in_file(error.span(), error.message().to_owned()))?;
    // 2. The environment over it, each variable by itself for the same reason.
    for (variable, value) in environment {
        if let Some((path, value)) = read_variable(&variable, &value)? {
            set(&mut table, &path, value);
        }
    }
    // 3. All together.
    let config = Config::deserialize(table).map_err(|error| ConfigError(error.message().to_owned()))?;
    config.check().map_err(|message| ConfigError(format!("{name}: {message}")))?;
    Ok(config)
}

/// The path of the option that a variable sets and its value; nothing if the variable is not ours.
fn read_variable(variable: &str, text: &str) -> Result<Option<(Vec<String>, Value)>, ConfigError> {
    let Some(key) = variable.strip_prefix(PREFIX) else { return Ok(None) };
    let path: Vec<String> = key.to_lowercase().split("__").map(str::to_owned).collect();
    if path.len() == 1 && path[0] != "listeners" {
        // Others may have variables with our prefix. But a forgotten underscore should not pass in silence.
        let meant = sections().into_iter().find(|(section, _)| {
            path[0].strip_prefix(section).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
        });
        return match meant {
            Some((section, fields)) => {
                let field = path[0].strip_prefix(section).unwrap_or_default().trim_start_matches('_');
                let field = nearest(field, fields.iter().copied()).unwrap_or("OPTION");
                let meant = format!("{PREFIX}{}__{}", section.to_uppercase(), field.to_uppercase());
                Err(ConfigError(format!("{variable} in the environment sets no option; did you mean {meant}?")))
            }
            None => Ok(None),
        };
    }
    let mut candidates = vec![Value::String(text.to_owned())];
    candidates
        .extend(toml::from_str::<Table>(&format!("value = {text}")).ok().and_then(|mut table| table.remove("value")));
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    candidates.push(Value::Array(parts.map(|part| Value::String(part.to_owned())).collect()));
    let mut problem = None;
    for candidate in candidates {
        let mut alone = Table::new();
        set(&mut alone, &path, candidate.clone());
        match serde_path_to_error::deserialize::<_, Config>(alone) {
            Ok(_) => return Ok(Some((path, candidate))),
            Err(error) => {
                // What the last reading as a list says is of no use to who did not mean one.
                problem.get_or_insert_with(|| explain(&error.path().to_string(), error.inner().message()));
            }
        }
    }
    Err(ConfigError(format!("{variable} in the environment: {}", problem.unwrap_or_default())))
}

fn set(table: &mut Table, path: &[String], value: Value) {
    let Some((last, sections)) = path.split_last() else { return };
    let mut table = table;
    for section in sections {
        let entry = table.entry(section.clone()).or_insert_with(|| Value::Table(Table::new()));
        if !entry.is_table() {
            *entry = Value::Table(Table::new());
        }
        let Value::Table(inner) = entry else { return };
        table = inner;
    }
    table.insert(last.clone(), value);
}

/// The message of the parser, made to name the option and what is allowed.
fn explain(path: &str, message: &str) -> String {
    for (start, is_key) in [("unknown field `", true), ("unknown variant `", false)] {
        let Some((found, rest)) = message.strip_prefix(start).and_then(|rest| rest.split_once('`')) else { continue };
        let allowed: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
        let hint = nearest(found, allowed.iter().copied())
            .map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
        let allowed = allowed.join(", ");
        // The path of an unknown key ends with the key itself.
        let section = path.strip_suffix(found).map_or(path, |path| path.trim_end_matches('.'));
        return match (is_key, section) {
            (true, "" | ".") => format!("`{found}` is not a section{hint} (sections: {allowed})"),
            (true, section) => {
                format!("`{section}.{found}` is not an option{hint} (options of `{section}`: {allowed})")
            }
            (false, _) => format!("`{path}` cannot be `{found}`{hint} (allowed: {allowed})"),
        };
    }
    format!("`{path}`: {message}")
}

/// The name that was probably meant.
fn nearest<'a>(found: &str, allowed: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let found = found.to_lowercase();
    allowed
        .map(|name| (distance(&found, name), name))
        .filter(|(distance, name)| *distance <= 1 + name.len() / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// How many letters must be changed, added or taken away.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (index, letter) in from.chars().take(100).enumerate() {
        let mut diagonal = row[0];
        row[0] = index + 1;
        for (place, other) in to.iter().enumerate() {
            let changed = diagonal + usize::from(letter != *other);
            diagonal = row[place + 1];
            row[place + 1] = changed.min(row[place] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

/// The sections and their options.
pub(super) fn sections() -> Vec<(&'static str, &'static [&'static str])> {
    vec![
        ("server", field_names::<ServerConfig>()),
        ("listeners", field_names::<ListenerConfig>()),
        ("storage", field_names::<StorageConfig>()),
        ("event_bus", field_names::<EventBusConfig>()),
        ("accounts", field_names::<AccountsConfig>()),
        ("rooms", field_names::<RoomsConfig>()),
        ("media", field_names::<MediaConfig>()),
        ("presence", field_names::<PresenceConfig>()),
        ("client_api", field_names::<ClientApiConfig>()),
        ("federation", field_names::<FederationConfig>()),
        ("application_services", field_names::<ApplicationServicesConfig>()),
        ("unsafe", field_names::<UnsafeConfig>()),
    ]
}

/// The names of a struct's fields, as its deserialization tells them.
pub(super) fn field_names<T: for<'de> Deserialize<'de>>() -> &'static [&'static str] {
    let mut names: &'static [&'static str] = &[];
    let _ = T::deserialize(FieldNames(&mut names));
    names
}

/// A deserializer that notes which fields it is asked for.
struct FieldNames<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for FieldNames<'_> {
    type Error = de::value::Error;

    fn deserialize_struct<V: de::Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Self::Error> {
        *self.0 = fields;
        Err(de::Error::custom("only the names are asked for"))
    }

    fn deserialize_any<V: de::Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Self::Error> {
        Err(de::Error::custom("only the names are asked for"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}
