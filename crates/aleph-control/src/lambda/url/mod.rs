//! Functions behind URLs of their own.
//!
//! | form | for |
//! | --- | --- |
//! | `http://ID.lambda-url.REGION.HOST:PORT/…` | whoever can set the name of a host; names below `localhost` lead to this host by themselves |
//! | `http://HOST:PORT/lambda-url/ID/…` | everybody else |
//! | `http://HOST:PORT/lambda-url/NAME[:ALIAS]/…` | people, and tools that know the function's name |
//!
//! What comes in is told to the function in payload format 2.0 (`event`), and what the function
//! gives is the answer: once it is whole (`answer`), or as it is written (`streamed`). Bodies are
//! bounded as [`gate`] bounds those of the API, and so is what answers hold that are read
//! (`reading`). Who may call is for the URL to say:
//!
//! | URL | who may call |
//! | --- | --- |
//! | `NONE` by its id | whoever reaches the listener: the id cannot be guessed |
//! | `NONE` by name | the same; without credentials in `[functions]` only this host, and of pages those that `Cors` names and what functions' pages by name show. A name is that of a function of `default`, or of who signed the request; one that is signed wrongly is refused |
//! | `AWS_IAM` | who signed with a key of the function's account; without credentials in `[functions]`, programs of this host, and no page |
//!
//! A preflight is answered here where `Cors` is set, and then `Cors` counts and not what the
//! function says of it.
//!
//! # Failure cases
//! | what | then |
//! | --- | --- |
//! | no such URL, or one of a function or alias that is gone | 403: nobody learns what is there |
//! | a wrong signature, or one of another account | 403 |
//! | a body or an event over 6 MB | 413 |
//! | too much runs | 429 with `Retry-After` |
//! | the function is not ready, or the node has no place for it | 503 |
//! | the function fails, or what it says makes no sense | 502, `Internal Server Error` |
//! | it fails when its answer has begun | the connection is broken |
//! | the client goes away | the function runs to its end |
//! | the client does not read in time | the connection is broken |

mod answer;
mod called;
mod cors;
mod event;
mod reading;
mod streamed;

pub(super) use cors::Cors;
pub(super) use event::is_text;
pub(super) use reading::Answers;

use super::arn::Target;
use super::error::{Kind, LambdaError};
use super::function::{Function, LATEST, UrlConfig};
use super::gate::{self, Bound, host_name, is_for_this_host, kib, only_of_this_host};
use super::invocation::{Answer, MOST_EVENT};
use super::signature::Claim;
use super::trace::Trace;
use super::{Functions, random_id};
use crate::accounts::DEFAULT_ACCOUNT;
use crate::peer::Peer;
use crate::server::connection::Slot;
use aleph_executor::functions::Invocation;
use aleph_types::Timestamp;
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::HeaderValue;
use axum::http::header::{AUTHORIZATION, ORIGIN};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use called::{Called, Name, PATH};
use event::{Received, Signer};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tower::ServiceExt;

/// Serves requests to URLs, and has `api` answer all others.
pub(super) fn before(functions: &Functions, api: Router) -> Router {
    let functions = functions.clone();
    Router::new().fallback(move |request: Request| {
        let (functions, api) = (functions.clone(), api.clone());
        async move {
            match Called::of(&request) {
                Some(called) => Box::pin(functions.serve(called, request)).await,
                None => api.oneshot(request).await.into_response(),
            }
        }
    })
}

/// A URL that was found.
struct Found {
    function: Arc<Function>,
    /// An alias, or `$LATEST`.
    key: String,
    config: UrlConfig,
    cors: Option<Cors>,
    by_name: bool,
}

fn forbidden() -> LambdaError {
    LambdaError::new(Kind::AccessDenied, "Forbidden")
}

impl Functions {
    /// The URL that leads to a function, as clients of this node can use it.
    pub(super) fn url_of(&self, id: &str) -> String {
        let region = &self.identity.region;
        let name = format!("{id}.lambda-url.{region}.localhost");
        match self.address.get() {
            Some(address) if is_localhost(address.ip()) => {
                format!("http://{name}:{}/", address.port())
            }
            // A name below that of another host is not this node's to give.
            Some(address) => format!("http://{address}{PATH}{id}/"),
            // Nobody listens: the URL is kept for when somebody does.
            None => format!("http://{name}/"),
        }
    }

    async fn serve(&self, called: Called, request: Request) -> Response {
        let id = random_id();
        let (parts, body) = request.into_parts();
        let trace = Trace::of(&parts.headers);
        let (mut response, cors, trace) = match self.find(&called, &parts) {
            Err(error) => (error.into_response(), None, trace),
            Ok((found, _)) if found.is_preflight(&parts) => {
                let mut response = Response::new(Body::empty());
                if let Some(cors) = &found.cors {
                    *response.headers_mut() = cors.preflight(&parts.headers);
                }
                (response, None, trace)
            }
            Ok((found, claim)) => {
                let version = found.function.resolve(found.qualifier(), || 0.0);
                let trace = trace.decided(version.is_some_and(|version| version.is_traced()));
                let call = Call {
                    found: &found,
                    called: &called,
                    parts: &parts,
                    id: &id,
                    trace,
                };
                let response = self.call(call, claim, body).await;
                let response =
                    response.unwrap_or_else(|error| error.for_strangers().into_response());
                (response, found.cors, trace)
            }
        };
        // What is kept of an answer to nobody's page is none to a page's.
        if let Some(cors) = cors {
            cors.apply(&parts.headers, response.headers_mut());
        }
        gate::sign(&mut response, &id, &trace.answer());
        response
    }

    /// The URL that a request calls, and who says that it is theirs.
    fn find(
        &self,
        called: &Called,
        parts: &Parts,
    ) -> Result<(Found, Option<Claim<'_>>), LambdaError> {
        let (id, name) = match &called.name {
            Name::Host { region, .. } if *region != self.identity.region => {
                return Err(forbidden());
            }
            Name::Host { id, .. } => (id.as_str(), None),
            Name::Path(name) => (name.as_str(), Some(name)),
        };
        let (place, now) = ((&*self.identity.region, "lambda"), Timestamp::now());
        let claim = self.keys.claim(&parts.uri, &parts.headers, place, now);
        let claim = claim.ok();
        // Whoever signs nothing is nobody; who signs wrongly is not.
        let wrong = claim.is_none() && !self.keys.is_empty() && is_signed(parts);
        let by_id = self.registry.by_url(id);
        let by_name = by_id.is_none();
        let (function, key) = match (by_id, name) {
            (Some(found), _) => found,
            (None, Some(_)) if wrong => return Err(forbidden()),
            (None, Some(name)) => {
                let account = claim.as_ref().map_or(DEFAULT_ACCOUNT, Claim::account);
                let Target { name, qualifier } = self
                    .identity
                    .target(account, name)
                    .map_err(|_| forbidden())?;
                let function = self.registry.get(account, &name).ok_or_else(forbidden)?;
                (function, qualifier.unwrap_or_else(|| LATEST.into()))
            }
            (None, None) => return Err(forbidden()),
        };
        let config = function.head.urls.get(&key).ok_or_else(forbidden)?.clone();
        // What an earlier node took without a look means nothing.
        let cors = config.cors.as_ref();
        let cors = cors.and_then(|cors| Cors::read(cors).ok());
        let found = Found {
            function,
            key,
            config,
            cors,
            by_name,
        };
        // An alias that is gone leads nowhere.
        let version = found.function.resolve(found.qualifier(), || 0.0);
        version.map(|_| ()).ok_or_else(forbidden)?;
        Ok((found, claim))
    }

    /// Refuses who may not call a URL, as far as the head of a request tells.
    fn admit<'k>(
        &self,
        found: &Found,
        claim: Option<Claim<'k>>,
        parts: &Parts,
    ) -> Result<Option<Claim<'k>>, LambdaError> {
        let (open, signed) = (self.keys.is_empty(), found.config.auth == "AWS_IAM");
        match (open, signed) {
            (false, true) => {
                let own = claim.filter(|claim| claim.account() == found.function.account);
                own.map(Some).ok_or_else(forbidden)
            }
            (true, true) => only_of_this_host(&parts.headers).map(|()| None),
            (true, false) if found.by_name => {
                let page = match parts.headers.get(ORIGIN) {
                    Some(origin) => found.cors.as_ref().is_some_and(|cors| cors.allows(origin)),
                    // A picture on a page of others is asked for without its origin. What is on
                    // a function's own page has the listener's.
                    None => gate::sites(&parts.headers)
                        .all(|site| site == "none" || site == "same-origin"),
                };
                match page && is_for_this_host(&parts.headers) {
                    true => Ok(None),
                    false => Err(forbidden()),
                }
            }
            // The account whose function has that name has to be theirs.
            (false, false) if found.by_name => Ok(claim),
            (_, false) => Ok(None),
        }
    }

    async fn call(
        &self,
        call: Call<'_>,
        claim: Option<Claim<'_>>,
        body: Body,
    ) -> Result<Response, LambdaError> {
        let (found, parts) = (call.found, call.parts);
        let function = &found.function;
        let claim = self.admit(found, claim, parts)?;
        let account = &function.account;
        let taken = gate::take(self, account, &parts.headers, body, Bound::URL);
        let (body, mut memory) = taken.await?;
        let signer = match claim {
            Some(claim) => {
                let account = claim
                    .verify(&parts.method, &parts.uri, &parts.headers, &body)
                    .map_err(|_| forbidden())?;
                if let Some(slot) = parts.extensions.get::<Slot>() {
                    slot.know();
                }
                Some(Signer {
                    access_key: claim.key().to_owned(),
                    account_id: self.identity.account_id(&account),
                    account,
                })
            }
            None => None,
        };
        let event = self.event(&call, signer, &body)?;
        drop(body);
        memory.shrink(kib(event.len(), MOST_EVENT));
        let qualifier = found.qualifier().map(str::to_owned);
        let identity = &self.identity;
        let invocation = Invocation {
            request_id: call.id.to_owned(),
            payload: event.into(),
            arn: identity.arn(&function.account, &function.name, qualifier.as_deref()),
            client_context: None,
            trace: Some(call.trace.to_string()),
        };
        if found.config.mode == "RESPONSE_STREAM" {
            let streamed = self.stream_out(Arc::clone(function), qualifier, invocation, memory);
            return streamed::respond(streamed.await?).await;
        }
        let (functions, function) = (self.clone(), Arc::clone(function));
        let done = self.settle(async move {
            let done = functions.carry_out(&function, qualifier.as_deref(), invocation);
            let done = done.await.map_err(LambdaError::from);
            drop(memory);
            done
        });
        let Answer { completed, .. } = done.await?;
        let answer = answer::answer(&completed);
        drop(completed);
        let held = self.answers.hold(answer);
        held.map_err(|_| {
            let message = "Rate Exceeded. Answers that are read hold as much memory as they may.";
            LambdaError::throttled(Duration::from_secs(5), "CallerRateLimitExceeded", message)
        })
    }

    fn event(
        &self,
        call: &Call<'_>,
        signer: Option<Signer>,
        body: &Bytes,
    ) -> Result<Vec<u8>, LambdaError> {
        let Call {
            found,
            called,
            parts,
            id,
            trace,
        } = call;
        let from = match parts.extensions.get::<Peer>() {
            Some(Peer::Remote { address, .. }) => Some(address.ip()),
            _ => None,
        };
        let domain = host_name(&parts.headers).unwrap_or_default();
        let received = Received {
            parts,
            path: &called.path,
            url_id: &found.config.id,
            domain: &domain.to_ascii_lowercase(),
            request_id: id,
            trace: *trace,
            from,
            port: self.address.get().map(SocketAddr::port),
            now: Timestamp::now(),
            signer,
        };
        event::event(received, body).map_err(|_| gate::too_large(MOST_EVENT))
    }
}

/// A request to a URL.
struct Call<'r> {
    found: &'r Found,
    called: &'r Called,
    parts: &'r Parts,
    id: &'r str,
    trace: Trace,
}

impl Found {
    fn qualifier(&self) -> Option<&str> {
        (self.key != LATEST).then_some(self.key.as_str())
    }

    fn is_preflight(&self, parts: &Parts) -> bool {
        self.cors.is_some() && cors::is_preflight(&parts.method, &parts.headers)
    }
}

/// Whether a request claims to be signed as those for AWS are.
fn is_signed(parts: &Parts) -> bool {
    let headers = parts.headers.get_all(AUTHORIZATION).iter();
    let header = |value: &HeaderValue| value.as_bytes().starts_with(b"AWS4-");
    let query = parts.uri.query().unwrap_or_default();
    let pairs: Vec<(String, String)> = serde_urlencoded::from_str(query).unwrap_or_default();
    headers.into_iter().any(header) || pairs.iter().any(|(name, _)| name == "X-Amz-Algorithm")
}

/// Whether names below `localhost` lead to a listener on this address.
fn is_localhost(ip: IpAddr) -> bool {
    ip == Ipv4Addr::LOCALHOST || ip == Ipv6Addr::LOCALHOST || ip.is_unspecified()
}
