//! Waiting for a condition.

/// Waits until the condition holds, trying it again and again; fails after 30 seconds.
///
/// ```
/// # test_kit::tokio::runtime::Runtime::new().unwrap().block_on(async {
/// let mut tries = 0;
/// test_kit::eventually!({
///     tries += 1;
///     tries == 3
/// });
/// # });
/// ```
#[macro_export]
macro_rules! eventually {
    ($condition:expr $(,)?) => {{
        let mut tries = 0_u32;
        while !$condition {
            tries += 1;
            assert!(tries < 1500, "it never came true: {}", stringify!($condition));
            $crate::tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }};
}

/// Writes a test twice: on SQLite, and on PostgreSQL if there is one for tests (`SWIFTCHAT_TEST_POSTGRES`).
///
/// ```ignore
/// on_each_database! {
///     /// Why it matters.
///     // shows: getTokenOwner
///     async fn a_user_is_told_who_they_are(server: TestServer) {
///         let alice = server.user("alice").await;
///     }
/// }
/// ```
#[macro_export]
macro_rules! on_each_database {
    ($($(#[$meta:meta])* async fn $name:ident($server:ident: TestServer) $body:block)+) => {$(
        mod $name {
            #[allow(unused_imports, reason = "not every test uses something of its module")]
            use super::*;

            $(#[$meta])*
            #[$crate::tokio::test(flavor = "multi_thread", worker_threads = 2, crate = "test_kit::tokio")]
            async fn on_sqlite() {
                let $server = $crate::TestServer::start().await;
                $body
            }

            $(#[$meta])*
            #[$crate::tokio::test(flavor = "multi_thread", worker_threads = 2, crate = "test_kit::tokio")]
            async fn on_postgres() {
                let Some($server) = $crate::TestServer::on_postgres().await else { return };
                $body
            }
        }
    )+};
}
