//! Signed requests to other servers. Server-Server API, "Request Authentication".

mod download;

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, header};
use model::{JsonShape, LocalServers};
use outbound::{Answer, Bounds, ServiceClient};
use ruma::{
    OwnedEventId, ServerName,
    api::{
        IncomingResponse, IncomingResponseExt as _, OutgoingBody as _, OutgoingRequest,
        auth_scheme::NoAuthentication,
        error::{Error as RumaError, FromHttpResponseError},
        federation::{
            authentication::{ServerSignatures, XMatrix},
            transactions::send_transaction_message,
        },
        path_builder::SinglePath,
    },
    serde::Base64,
    signatures::KeyPair as _,
};

use crate::{
    Error, ServerLists,
    outages::Outages,
    resolve::Resolver,
    sender::Transaction,
    shares::{Shares, site_of},
};

/// What an answer may be that is no list of events.
pub(crate) const SMALL: Bounds = Bounds { timeout: Duration::from_secs(30), body_bytes_max: 4 << 20 };

/// What an answer may be to a short question, for which somebody waits.
pub(crate) const SHORT: Bounds = Bounds { timeout: Duration::from_secs(10), body_bytes_max: 64 << 10 };

/// Most requests that are under way at the same time, and of them those to one host, and to all hosts of one site: a slow server holds no
/// more than these, whatever names it has.
const UNDER_WAY_MAX: usize = 2_000;
const UNDER_WAY_TO_HOST: usize = 20;
const UNDER_WAY_TO_SITE: usize = 200;

/// Most memory of a short answer that is taken apart, in bytes, and most members of the lists of any answer.
const SMALL_WEIGHT_MAX: usize = 48 << 20;
const MEMBERS_MAX: usize = 1_000_000;

/// Longest error that is read, in bytes: of a longer one the status is all that counts.
const ERROR_BYTES_MAX: usize = 64 << 10;

/// What begins when there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begins {
    Outage,
    Nothing,
}

/// Asks other servers in the name of ours.
pub(crate) struct Client {
    pub(crate) resolver: Resolver,
    http: ServiceClient,
    pub(crate) servers: LocalServers,
    lists: ServerLists,
    under_way: Shares,
    under_way_to_sites: Shares,
    pub(crate) outages: Outages,
}

impl Client {
    pub(crate) fn new(
        resolver: Resolver,
        http: ServiceClient,
        servers: LocalServers,
        lists: ServerLists,
        outages: Outages,
    ) -> Self {
        let (under_way, under_way_to_sites) =
            (Shares::new(UNDER_WAY_MAX, UNDER_WAY_TO_HOST), Shares::new(UNDER_WAY_MAX, UNDER_WAY_TO_SITE));
        Self { resolver, http, servers, lists, under_way, under_way_to_sites, outages }
    }

    /// Sends a request of `origin`, one of our names, to `destination`, and reads the answer.
    ///
    /// # Errors
    ///
    /// Those of [`Error`].
    pub(crate) async fn send<R>(
        &self,
        origin: &ServerName,
        destination: &ServerName,
        request: R,
        bounds: Bounds,
    ) -> Result<R::IncomingResponse, Error>
    where
        R: OutgoingRequest<Authentication = ServerSignatures, PathBuilder = SinglePath>,
        R::IncomingResponse: IncomingResponse<EndpointError = RumaError>,
    {
        self.outages.check(destination)?;
        let mut request = to_http(request)?;
        self.sign(origin, destination, &mut request)?;
        self.ask::<R::IncomingResponse>(destination, request, bounds, Begins::Outage).await
    }

    /// Signs a request of `origin`, one of our names, to `destination`.
    fn sign(
        &self,
        origin: &ServerName,
        destination: &ServerName,
        request: &mut http::Request<Bytes>,
    ) -> Result<(), Error> {
        let server = self.servers.get(origin).ok_or_else(|| Error::NotOurs(origin.to_owned()))?;
        let object = XMatrix::request_object(request, origin, destination)
            .map_err(|error| Error::BadRequest(error.to_string()))?;
        let object = serde_json::to_vec(&object).map_err(|error| Error::BadRequest(error.to_string()))?;
        let signature = Base64::new(server.key.sign(&object).as_bytes().to_vec());
        let header = XMatrix::new(origin.to_owned(), destination.to_owned(), server.key.id().clone(), signature);
        request.headers_mut().insert(header::AUTHORIZATION, HeaderValue::from(&header));
        Ok(())
    }

    /// Sends a transaction of `origin`, one of our names, to `destination`, whether that gave answers lately or not; tells the events that
    /// it will not have, with its reasons. Server-Server API, "Transactions".
    ///
    /// # Errors
    ///
    /// Those of [`Error`].
    pub(crate) async fn send_transaction(
        &self,
        origin: &ServerName,
        destination: &ServerName,
        transaction: &Transaction,
    ) -> Result<Vec<(OwnedEventId, String)>, Error> {
        let server = self.servers.get(origin).ok_or_else(|| Error::NotOurs(origin.to_owned()))?;
        let signature =
            Base64::new(server.key.sign(&transaction.signed_object(origin, destination)).as_bytes().to_vec());
        let header = XMatrix::new(origin.to_owned(), destination.to_owned(), server.key.id().clone(), signature);
        let request = http::Request::put(format!("https://server{}", transaction.path()))
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::AUTHORIZATION, HeaderValue::from(&header))
            .body(transaction.body.clone())
            .map_err(|error| Error::BadRequest(error.to_string()))?;
        let response =
            self.ask::<send_transaction_message::v1::Response>(destination, request, SMALL, Begins::Outage).await;
        match response {
            Ok(response) => {
                Ok(response.pdus.into_iter().filter_map(|(id, result)| Some((id, result.err()?))).collect())
            }
            // It took it: what it says of single events is for the log only.
            Err(Error::Misbehaved { .. }) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Sends a request that needs no signature. Strangers have us send it to whom they like: that there is no answer is remembered only of
    /// servers that gave none before.
    ///
    /// # Errors
    ///
    /// Those of [`Error`].
    pub(crate) async fn send_unsigned<R>(
        &self,
        destination: &ServerName,
        request: R,
        bounds: Bounds,
    ) -> Result<R::IncomingResponse, Error>
    where
        R: OutgoingRequest<Authentication = NoAuthentication, PathBuilder = SinglePath>,
        R::IncomingResponse: IncomingResponse<EndpointError = RumaError>,
    {
        let request = to_http(request)?;
        self.ask::<R::IncomingResponse>(destination, request, bounds, Begins::Nothing).await
    }

    async fn ask<A: IncomingResponse<EndpointError = RumaError>>(
        &self,
        name: &ServerName,
        mut request: http::Request<Bytes>,
        bounds: Bounds,
        begins: Begins,
    ) -> Result<A, Error> {
        self.check(name)?;
        // Who waits for the share of their site has none of what all have in common.
        let _of_site = self.under_way_to_sites.take(&site_of(name), 1, bounds.timeout).await.ok_or(Error::Busy)?;
        let _share = self.under_way.take(name.host(), 1, bounds.timeout).await.ok_or(Error::Busy)?;
        let by_service = self.direct(name, &mut request).await?;
        let asking = self.outages.asking(name);
        let answer = self.http.send(request, by_service, bounds).await;
        match &answer {
            Ok(_) => self.outages.answered(name),
            Err(error) if begins == Begins::Outage || self.outages.next_try(name, true).is_some() => {
                self.outages.unanswered(asking, error);
            }
            Err(_) => {}
        }
        read(name, answer.map_err(|source| Error::Unreachable { server: name.to_owned(), source })?, bounds)
    }

    /// Whether a server may be asked at all.
    fn check(&self, name: &ServerName) -> Result<(), Error> {
        if self.servers.is_local(name) {
            return Err(Error::Ours(name.to_owned()));
        }
        if self.lists.allow(name) { Ok(()) } else { Err(Error::Denied(name.to_owned())) }
    }

    /// Says in a request where the server is that it goes to; and whether that is found by its service.
    async fn direct(&self, name: &ServerName, request: &mut http::Request<Bytes>) -> Result<bool, Error> {
        let bad = |error: &dyn std::fmt::Display| Error::BadRequest(error.to_string());
        let destination = self.resolver.resolve(name).await?;
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let uri = format!("https://{}{path}", destination.authority);
        *request.uri_mut() = uri.parse().map_err(|error: http::uri::InvalidUri| bad(&error))?;
        let host = HeaderValue::from_str(&destination.host).map_err(|error| bad(&error))?;
        request.headers_mut().insert(header::HOST, host);
        Ok(destination.by_service)
    }
}

/// The request with its path and body, and nothing of where it goes.
pub(crate) fn to_http<R: OutgoingRequest<PathBuilder = SinglePath>>(request: R) -> Result<http::Request<Bytes>, Error> {
    let bad = |error: &dyn std::fmt::Display| Error::BadRequest(error.to_string());
    let request = request.try_into_http_request_inner("https://server", ()).map_err(|error| bad(&error))?;
    let (mut parts, body) = request.into_parts();
    if let Some(content_type) = body.content_type() {
        parts.headers.entry(header::CONTENT_TYPE).or_insert(content_type);
    }
    let body: BytesMut = body.try_into_buf().map_err(|error| bad(&error.into()))?;
    Ok(http::Request::from_parts(parts, body.freeze()))
}

fn read<A: IncomingResponse<EndpointError = RumaError>>(
    server: &ServerName,
    answer: Answer,
    bounds: Bounds,
) -> Result<A, Error> {
    let Answer { status, headers, mut body } = answer;
    if status.as_u16() >= 400 && body.len() > ERROR_BYTES_MAX {
        body.clear();
    }
    // A page of another host, or a redirect, is no success, whatever ruma takes it for.
    let is_json = matches!(body.iter().find(|byte| !byte.is_ascii_whitespace()), Some(b'{' | b'['));
    if status.as_u16() < 400 && !(status.is_success() && is_json) {
        return Err(Error::NoMatrix { server: server.to_owned(), status });
    }
    let shape = JsonShape::of(&body);
    let is_short = bounds.body_bytes_max <= SMALL.body_bytes_max;
    if shape.members > MEMBERS_MAX || (is_short && shape.weight > SMALL_WEIGHT_MAX) {
        let what = "its answer would take too much memory".to_owned();
        return Err(Error::Misbehaved { server: server.to_owned(), what });
    }
    let mut response = http::Response::new(&*body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    A::try_from_http_response(response).map_err(|error| match error {
        FromHttpResponseError::Server(error) => Error::Refused { server: server.to_owned(), error: Box::new(error) },
        error => Error::Misbehaved { server: server.to_owned(), what: error.to_string() },
    })
}
