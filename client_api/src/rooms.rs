//! Rooms: making them, coming and going, sending, reading, finding.

mod aliases;
mod create;
mod directory;
mod event_filter;
mod hierarchy;
mod members;
mod membership;
mod peeking;
mod pieces;
mod receipts;
mod redact_request;
mod relations;
mod reports;
mod send;
mod state;
mod summary;
mod timeline;
mod typing;
mod upgrade;

use axum::Router;

use crate::ClientApi;

/// The endpoints of rooms.
pub(crate) fn routes() -> Router<ClientApi> {
    Router::new()
        .merge(create::routes())
        .merge(membership::routes())
        .merge(send::routes())
        .merge(state::routes())
        .merge(members::routes())
        .merge(timeline::routes())
        .merge(relations::routes())
        .merge(reports::routes())
        .merge(aliases::routes())
        .merge(directory::routes())
        .merge(receipts::routes())
        .merge(typing::routes())
        .merge(upgrade::routes())
        .merge(hierarchy::routes())
        .merge(peeking::routes())
        .merge(summary::routes())
}
