//! Subscriptions to threads. MSC4306, "Thread Subscriptions", and MSC4308, "Companion endpoint for backpaginating thread subscription
//! changes".

use ::rooms::{Rooms, SubscribedThread};
use axum::{Router, extract::State};
use model::{Position, SlidingToken, StreamToken};
use ruma::{
    UInt,
    api::client::threads::{
        get_thread_subscription, get_thread_subscriptions_changes, subscribe_thread, unsubscribe_thread,
    },
};
use storage::{Storage, ThreadSubscription};
use web::{MatrixError, Requester, Ruma, RumaRoutes as _};

use crate::ClientApi;

/// Most changes in one answer.
const CHANGES_MAX: u32 = 100;

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new()
        .ruma_route(subscribe_thread)
        .ruma_route(unsubscribe_thread)
        .ruma_route(get_thread_subscription)
        .ruma_route(get_thread_subscriptions_changes)
}

/// `PUT /rooms/{roomId}/thread/{eventId}/subscription`.
async fn subscribe_thread(
    State(rooms): State<Rooms>,
    requester: Requester,
    Ruma(request): Ruma<subscribe_thread::unstable::Request>,
) -> Result<Ruma<subscribe_thread::unstable::Response>, MatrixError> {
    let cause = request.automatic.as_deref();
    rooms.subscribe_thread(&requester, &request.room_id, &request.thread_root, cause).await?;
    Ok(Ruma(subscribe_thread::unstable::Response::new()))
}

/// `DELETE /rooms/{roomId}/thread/{eventId}/subscription`.
async fn unsubscribe_thread(
    State(rooms): State<Rooms>,
    requester: Requester,
    Ruma(request): Ruma<unsubscribe_thread::unstable::Request>,
) -> Result<Ruma<unsubscribe_thread::unstable::Response>, MatrixError> {
    rooms.unsubscribe_thread(&requester, &request.room_id, &request.thread_root).await?;
    Ok(Ruma(unsubscribe_thread::unstable::Response::new()))
}

/// `GET /rooms/{roomId}/thread/{eventId}/subscription`.
async fn get_thread_subscription(
    State(rooms): State<Rooms>,
    requester: Requester,
    Ruma(request): Ruma<get_thread_subscription::unstable::Request>,
) -> Result<Ruma<get_thread_subscription::unstable::Response>, MatrixError> {
    let state = rooms.thread_subscription(&requester, &request.room_id, &request.thread_root).await?;
    Ok(Ruma(get_thread_subscription::unstable::Response::new(state == ThreadSubscription::Automatic)))
}

/// `GET /thread_subscriptions`.
async fn get_thread_subscriptions_changes(
    State(rooms): State<Rooms>,
    State(storage): State<Storage>,
    requester: Requester,
    Ruma(request): Ruma<get_thread_subscriptions_changes::unstable::Request>,
) -> Result<Ruma<get_thread_subscriptions_changes::unstable::Response>, MatrixError> {
    let newest = storage.published();
    let from = request.from.as_deref().map(position).transpose()?.unwrap_or(newest);
    let to = request.to.as_deref().map(position).transpose()?.unwrap_or_default();
    let limit = request.limit.map_or(CHANGES_MAX, |limit| u32::try_from(limit).unwrap_or(CHANGES_MAX));
    if limit == 0 {
        return Err(MatrixError::invalid_param("`limit` is zero"));
    }
    let (changes, rest) = rooms.thread_subscriptions(&requester, to, from.min(newest), limit.min(CHANGES_MAX)).await?;
    let mut response = get_thread_subscriptions_changes::unstable::Response::new();
    for SubscribedThread { room_id, root_id, state, position } in changes {
        use get_thread_subscriptions_changes::unstable::{ThreadSubscription as Subscribed, ThreadUnsubscription};
        let bump_stamp = UInt::try_from(position.0).unwrap_or(UInt::MAX);
        match state {
            ThreadSubscription::Unsubscribed => {
                let rooms = response.unsubscribed.entry(room_id).or_default();
                rooms.insert(root_id, ThreadUnsubscription::new(bump_stamp));
            }
            other => {
                let rooms = response.subscribed.entry(room_id).or_default();
                rooms.insert(root_id, Subscribed::new(other == ThreadSubscription::Automatic, bump_stamp));
            }
        }
    }
    response.end = rest.map(|position| StreamToken::at(position).to_string());
    Ok(Ruma(response))
}

/// The place of a token: of the endpoint's own kind, or a `pos`.
fn position(token: &str) -> Result<Position, MatrixError> {
    let stream = token.parse::<StreamToken>().or_else(|_| token.parse::<SlidingToken>().map(|token| token.stream));
    Ok(stream.map_err(|_| MatrixError::invalid_param("this is not a token that this server gave out"))?.position)
}
