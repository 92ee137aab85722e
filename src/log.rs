//! The log: sentences with fields, on standard error.

use std::io::{IsTerminal as _, stderr};

use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, ServerConfig};

/// Starts the log of this process as configured. A second start is ignored.
///
/// # Errors
///
/// When `log` is not a filter.
pub fn start(config: &ServerConfig) -> Result<(), String> {
    let filter = filter(&config.log)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    let _ = match config.log_format {
        LogFormat::Text => builder.with_ansi(stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}

/// Libraries that tell at `info` what only their makers want to know. The configuration may ask for it all the same.
const QUIETER: &str = "ruma_state_res=warn,ruma_signatures=warn,sqlx::postgres::notice=warn";

/// Reads a filter such as `info,rooms=debug`.
pub(crate) fn filter(text: &str) -> Result<EnvFilter, String> {
    // The more exact wins over a level for everything, and what comes later over the same before.
    EnvFilter::try_new(format!("{QUIETER},{text}")).map_err(|error| {
        format!("`server.log`: {error}; expected a level (error, warn, info, debug, trace), or parts as in \"info,rooms=debug\"")
    })
}
