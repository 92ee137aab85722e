//! The log: sentences with fields, on standard error.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io::{IsTerminal as _, stderr},
    panic::{self, PanicHookInfo},
};

use tracing::error;
use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, ServerConfig};

/// Starts the log of this process as configured, panics included. A second start is ignored.
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
    panic::set_hook(Box::new(note_panic));
    Ok(())
}

/// Tells of a panic, once: nobody else logs it.
fn note_panic(panic: &PanicHookInfo<'_>) {
    let backtrace = Backtrace::capture();
    let has_backtrace = backtrace.status() == BacktraceStatus::Captured;
    error!(
        panic = panic.payload_as_str().unwrap_or("?"),
        location = panic.location().map(display),
        backtrace = has_backtrace.then(|| display(&backtrace)),
        "something panicked: this is a mistake of ours"
    );
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

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use axum::{Router, body::Body, routing::get};
    use http::{Request, StatusCode};
    use tower::Service as _;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_handler_that_panics_is_answered_and_logged_once() {
        let written = Written::default();
        let writer = written.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let standard = panic::take_hook();
        panic::set_hook(Box::new(note_panic));
        let mut router: Router =
            web::finish(Router::new().route("/", get(async || -> () { panic!("what a mistake") })));
        let answer = router.call(Request::get("/").body(Body::empty()).unwrap()).await.unwrap();
        panic::set_hook(standard);
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let log = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        assert_eq!(log.matches("something panicked").count(), 1, "{log}");
        assert!(log.contains("what a mistake") && log.contains("src/log.rs"), "{log}");
    }
}
