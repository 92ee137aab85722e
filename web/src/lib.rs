//! The axum pieces that the doors share.
