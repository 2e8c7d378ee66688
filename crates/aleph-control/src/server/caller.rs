//! Who makes a request, and what it may see.
//!
//! This is decided once, before any handler and before any body is read. A handler gets a
//! [`Caller`] and gives its scope to the node, so that a job of somebody else is not found,
//! rather than found and refused.

use super::Service;
use super::connection::Slot;
use super::problem::Refusal;
use crate::accounts::{DEFAULT_ACCOUNT, is_account_name};
use crate::peer::Peer;
use aleph_executor::node::Scope;
use aleph_types::{ErrorClass, Timestamp};
use axum::extract::{FromRequestParts, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// The header by which an operator acts for an account.
pub const ACCOUNT_HEADER: &str = "x-aleph-account";

/// Who makes a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Whose jobs it sees and touches.
    pub scope: Scope,
    /// Whose jobs it makes.
    pub account: String,
}

impl Caller {
    fn account(name: impl Into<String>) -> Self {
        let account = name.into();
        Self {
            scope: Scope::Account(account.clone()),
            account,
        }
    }

    fn operator() -> Self {
        Self {
            scope: Scope::All,
            account: DEFAULT_ACCOUNT.to_owned(),
        }
    }

    /// Whether it is an operator, and acts as one.
    #[must_use]
    pub fn is_operator(&self) -> bool {
        self.scope == Scope::All
    }

    /// Refuses all but operators.
    pub(crate) fn only_operators(&self) -> Result<(), Refusal> {
        if self.is_operator() {
            return Ok(());
        }
        let refusal =
            Refusal::forbidden("operators_only", "only operators of the node may do this");
        Err(refusal.advise("Ask an operator, or use the node's Unix socket as root."))
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Refusal> {
        let caller = parts.extensions.get::<Self>().cloned();
        caller.ok_or_else(|| Refusal::internal("a route does not know who asks"))
    }
}

/// The layer that finds the caller out, and ends requests of nobody.
pub(crate) async fn identify(
    State(service): State<Service>,
    mut request: Request,
    next: Next,
) -> Response {
    let peer = request.extensions().get::<Peer>();
    match caller(&service, peer, request.headers()) {
        Ok(caller) => {
            if let Some(slot) = request.extensions().get::<Slot>() {
                slot.know();
            }
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(refusal) => refusal.into_response(),
    }
}

fn caller(service: &Service, peer: Option<&Peer>, headers: &HeaderMap) -> Result<Caller, Refusal> {
    // A token counts wherever it comes from: an operator tries out with it what an account sees.
    let caller = match (bearer(headers)?, peer) {
        (Some(token), _) => service
            .accounts
            .account_of(token, Timestamp::now())
            .map(Caller::account)
            .ok_or_else(|| unauthorised("bad_token", "the token is unknown, revoked or expired"))?,
        (None, Some(Peer::Local(who))) if service.operators.contain(who) => Caller::operator(),
        (None, Some(Peer::Local(who))) => {
            let message = format!("user {} is no operator of this node", who.uid);
            let refusal = Refusal::forbidden("not_operator", message);
            return Err(refusal.advise("Join the group aleph, or send a token."));
        }
        (None, Some(Peer::Remote { .. })) => {
            return Err(unauthorised("no_token_sent", "the request has no token"));
        }
        (None, None) => return Err(Refusal::internal("a connection has no peer")),
    };
    act_for(caller, headers)
}

fn act_for(caller: Caller, headers: &HeaderMap) -> Result<Caller, Refusal> {
    let Some(value) = headers.get(ACCOUNT_HEADER) else {
        return Ok(caller);
    };
    let name = value.to_str().unwrap_or_default();
    if !is_account_name(name) {
        let message = format!("{name:?} cannot be an account's name");
        return Err(Refusal::invalid("bad_account", message));
    }
    if caller.is_operator() || caller.account == name {
        return Ok(Caller::account(name));
    }
    let message = "only operators may act for another account";
    Err(Refusal::forbidden("operators_only", message))
}

/// The token in the header, if there is one.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let Some(value) = headers.get(AUTHORIZATION) else {
        return Ok(None);
    };
    let token = value.to_str().ok().and_then(|text| {
        let (scheme, token) = text.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    token
        .map(Some)
        .ok_or_else(|| unauthorised("bad_token", "the header Authorization has no bearer token"))
}

fn unauthorised(code: &str, message: &str) -> Refusal {
    let (status, class) = (StatusCode::UNAUTHORIZED, ErrorClass::Forbidden);
    Refusal::new(status, class, code, message)
        .advise("Send Authorization: Bearer TOKEN; an operator makes one with aleph token create.")
}
