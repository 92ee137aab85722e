//! Questions by which a few bytes have us read all of a large room.

use std::time::Duration;

use ruma::ServerName;
use web::MatrixError;

use crate::{
    Federation,
    shares::{Share, site_of},
};

/// Most states and auth chains that are put together at the same time, and of them those for one site.
pub(crate) const WHOLES_AT_ONCE: usize = 16;
pub(crate) const WHOLES_AT_ONCE_OF_SITE: usize = 4;

/// How long a server waits for its turn.
const WAIT: Duration = Duration::from_secs(20);

/// Waits for a server's turn to be told of a whole state.
///
/// # Errors
///
/// Busy when it did not come.
pub(super) async fn turn(federation: &Federation, server: &ServerName) -> Result<Share, MatrixError> {
    federation.wholes().take(&site_of(server), 1, WAIT).await.ok_or_else(MatrixError::busy)
}
