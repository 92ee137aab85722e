//! What the server is and can do: versions, capabilities, well-known.

use std::{collections::BTreeMap, sync::Arc};

use axum::{Router, extract::State};
use rooms::Rooms;
use ruma::api::client::discovery::{
    discover_homeserver::{self, HomeserverInfo},
    get_capabilities::{
        self,
        v3::{
            Capabilities, GetLoginTokenCapability, ProfileFieldsCapability, RoomVersionStability,
            RoomVersionsCapability, ThirdPartyIdChangesCapability,
        },
    },
    get_supported_versions,
};
use web::{MatrixError, OptionalRequester, Ruma, RumaRoutes as _};

use accounts::Accounts;
use model::ROOM_VERSIONS;

use crate::{ClientApi, Options, releases::RELEASES, requester::Requester};

// Without any version clients refuse to talk at all.
const _: () = assert!(!RELEASES.is_empty(), "not even v1.1 is complete");

/// What clients may use where threads notify those who subscribed to them. MSC4306, "Unstable amendments".
const THREAD_SUBSCRIPTIONS: &str = "org.matrix.msc4306";

/// What clients may use beyond the specification.
const UNSTABLE_FEATURES: &[&str] = &[
    // Files with a token, under the path of the release, and URIs that are made before their files: clients go by these before the releases
    // are complete. MSC3916, MSC2246.
    "org.matrix.msc3916.stable",
    "fi.mau.msc2246.stable",
    // The summary of a room: matrix-js-sdk asks for it under the path of the release when it sees this, before that release is complete.
    "org.matrix.msc3266",
    // Sliding sync. MSC4186, "Unstable prefix".
    "org.matrix.simplified_msc3575",
    // Redaction of related events.
    "org.matrix.msc3912",
    // Profiles with fields of any name, under both paths: clients go by these before the release is complete. MSC4133, "Unstable client
    // features".
    "uk.tcpip.msc4133",
    "uk.tcpip.msc4133.stable",
    // Dehydrated devices.
    "org.matrix.msc3814",
];

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new().ruma_route(get_supported_versions).ruma_route(get_capabilities).ruma_route(discover_homeserver)
}

/// `GET /versions`. Client-Server API, "API Versions".
async fn get_supported_versions(
    State(rooms): State<Rooms>,
    _requester: OptionalRequester,
    Ruma(_request): Ruma<get_supported_versions::Request>,
) -> Ruma<get_supported_versions::Response> {
    let mut response =
        get_supported_versions::Response::new(RELEASES.iter().map(|&release| release.to_owned()).collect());
    let of_threads = rooms.has_thread_subscriptions().then_some(&THREAD_SUBSCRIPTIONS);
    let features = UNSTABLE_FEATURES.iter().chain(of_threads);
    response.unstable_features = features.map(|&feature| (feature.to_owned(), true)).collect();
    Ruma(response)
}

/// `GET /capabilities`. Client-Server API, "Capabilities negotiation".
async fn get_capabilities(
    State(accounts): State<Accounts>,
    State(rooms): State<Rooms>,
    _requester: Requester,
    Ruma(_request): Ruma<get_capabilities::v3::Request>,
) -> Ruma<get_capabilities::v3::Response> {
    let stable: BTreeMap<_, _> =
        ROOM_VERSIONS.into_iter().map(|version| (version, RoomVersionStability::Stable)).collect();
    let mut capabilities = Capabilities::new();
    capabilities.room_versions = RoomVersionsCapability::new(rooms.default_version().clone(), stable);
    capabilities.thirdparty_id_changes = ThirdPartyIdChangesCapability::new(false);
    capabilities.get_login_token = GetLoginTokenCapability::new(accounts.options().login_tokens);
    capabilities.profile_fields = Some(ProfileFieldsCapability::new(true));
    Ruma(get_capabilities::v3::Response::new(capabilities))
}

/// `GET /.well-known/matrix/client`. Client-Server API, "Well-known URIs".
async fn discover_homeserver(
    State(options): State<Arc<Options>>,
    Ruma(_request): Ruma<discover_homeserver::Request>,
) -> Result<Ruma<discover_homeserver::Response>, MatrixError> {
    let url = options.public_url.clone().ok_or_else(|| MatrixError::not_found("no public URL is configured"))?;
    Ok(Ruma(discover_homeserver::Response::new(HomeserverInfo::new(url))))
}
