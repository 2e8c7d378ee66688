//! One request and its answer.

use super::{Client, ClientError};
use aleph_types::{ErrorClass, Problem};
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue,
    SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::{client::generate_key, derive_accept_key};
use tokio_tungstenite::tungstenite::protocol::Role;

/// A JSON answer is never longer than this: a thousand jobs with their files.
const MOST_JSON: usize = 256 * 1024 * 1024;

type AnyError = Box<dyn std::error::Error + Send + Sync>;
/// A request's body.
pub(super) type Content = UnsyncBoxBody<Bytes, AnyError>;
/// A WebSocket over whatever reaches the node.
pub(super) type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

/// A request before it is sent.
#[derive(Debug)]
pub(super) struct Asking {
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Content,
}

impl Asking {
    pub(super) fn new(method: Method, path: impl Into<String>) -> Self {
        Self {
            method,
            path: path.into(),
            headers: HeaderMap::new(),
            body: full(Bytes::new()),
        }
    }

    pub(super) fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    pub(super) fn post(path: impl Into<String>) -> Self {
        Self::new(Method::POST, path)
    }

    pub(super) fn header(mut self, name: HeaderName, value: &str) -> Self {
        // All values are ours or checked before; one that no header can hold is left out.
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
        self
    }

    pub(super) fn json(self, value: &impl Serialize) -> Result<Self, ClientError> {
        let text = serde_json::to_vec(value).map_err(|error| ClientError::Strange {
            what: format!("nothing yet: the request has no JSON form: {error}"),
        })?;
        Ok(self.bytes("application/json", text))
    }

    pub(super) fn bytes(self, kind: &str, bytes: impl Into<Bytes>) -> Self {
        let mut asking = self.header(CONTENT_TYPE, kind);
        asking.body = full(bytes.into());
        asking
    }

    /// A body that is sent while it is made.
    pub(super) fn stream<B>(self, kind: &str, body: B) -> Self
    where
        B: Body<Data = Bytes, Error = std::io::Error> + Send + 'static,
    {
        let mut asking = self.header(CONTENT_TYPE, kind);
        asking.body = body.map_err(AnyError::from).boxed_unsync();
        asking
    }
}

fn full(bytes: Bytes) -> Content {
    Full::new(bytes)
        .map_err(|never: std::convert::Infallible| match never {})
        .boxed_unsync()
}

/// An answer whose status was good.
#[derive(Debug)]
pub(crate) struct Answer(Response<Incoming>);

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.0.headers().get(name)?.to_str().ok()
    }

    /// The whole answer as JSON.
    pub(super) async fn json<T: DeserializeOwned>(self) -> Result<T, ClientError> {
        let bytes = collect(self.0.into_body()).await?;
        serde_json::from_slice(&bytes).map_err(|error| ClientError::Strange {
            what: format!("with JSON that this program cannot read: {error}"),
        })
    }

    /// The next piece of the answer; `None` at its end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        while let Some(frame) = self.0.body_mut().frame().await {
            let frame = frame.map_err(|error| ClientError::broken("reading its answer", error))?;
            if let Ok(bytes) = frame.into_data() {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }
}

/// All bytes of an answer.
pub(super) async fn whole(answer: Answer) -> Result<Bytes, ClientError> {
    collect(answer.0.into_body()).await
}

async fn collect(body: Incoming) -> Result<Bytes, ClientError> {
    let whole = Limited::new(body, MOST_JSON).collect().await;
    let whole = whole.map_err(|error| ClientError::broken("reading its answer", error))?;
    Ok(whole.to_bytes())
}

impl Client {
    /// Sends a request, and gives the answer once its head is there.
    pub(super) async fn ask(&self, asking: Asking) -> Result<Answer, ClientError> {
        let response = self.send(asking).await?;
        if response.status().is_success() {
            Ok(Answer(response))
        } else {
            Err(refusal(response).await)
        }
    }

    /// Sends a request and reads the answer as JSON.
    pub(super) async fn ask_json<T: DeserializeOwned>(
        &self,
        asking: Asking,
    ) -> Result<T, ClientError> {
        let accept = asking.header(ACCEPT, "application/json");
        self.ask(accept).await?.json().await
    }

    /// Asks for the head of an answer; `None` where there is nothing of that name.
    pub(super) async fn ask_head(&self, path: String) -> Result<Option<Answer>, ClientError> {
        let response = self.send(Asking::new(Method::HEAD, path)).await?;
        match response.status() {
            status if status.is_success() => Ok(Some(Answer(response))),
            // A head says no more than its status.
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(refusal(response).await),
        }
    }

    /// Opens a WebSocket.
    pub(super) async fn open_socket(&self, path: String) -> Result<Socket, ClientError> {
        let key = generate_key();
        let asking = Asking::get(path)
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "websocket")
            .header(SEC_WEBSOCKET_VERSION, "13")
            .header(SEC_WEBSOCKET_KEY, &key);
        let response = self.send(asking).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refusal(response).await);
        }
        let accepted = response.headers().get(SEC_WEBSOCKET_ACCEPT);
        if accepted.is_none_or(|accepted| *accepted != derive_accept_key(key.as_bytes())) {
            return Err(ClientError::Strange {
                what: "a WebSocket that was not asked for".into(),
            });
        }
        let upgraded = hyper::upgrade::on(response).await;
        let upgraded = upgraded.map_err(|error| ClientError::broken("opening a stream", error))?;
        let stream = TokioIo::new(upgraded);
        Ok(WebSocketStream::from_raw_socket(stream, Role::Client, None).await)
    }

    async fn send(&self, asking: Asking) -> Result<Response<Incoming>, ClientError> {
        let during = "asking it";
        if self.access.token.is_some() && self.endpoint.is_in_the_clear() {
            return Err(ClientError::InTheClear {
                endpoint: self.endpoint.clone(),
            });
        }
        let stream = self
            .endpoint
            .connect(self.access.authorities.as_deref())
            .await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, Content>(TokioIo::new(stream))
                .await
                .map_err(|error| ClientError::broken(during, error))?;
        // Its errors are told to whoever reads the answer.
        tokio::spawn(connection.with_upgrades());
        let request = self.request(asking)?;
        let answered = sender.send_request(request).await;
        answered.map_err(|error| ClientError::broken(during, error))
    }

    fn request(&self, asking: Asking) -> Result<Request<Content>, ClientError> {
        let mut asking = asking.header(HOST, &self.endpoint.authority());
        if let Some(token) = &self.access.token {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
                .map_err(|_| ClientError::BadToken)?;
            value.set_sensitive(true);
            asking.headers.insert(AUTHORIZATION, value);
        }
        if let Some(account) = &self.access.account {
            asking = asking.header(HeaderName::from_static("x-aleph-account"), account);
        }
        let mut request = Request::new(asking.body);
        *request.method_mut() = asking.method;
        *request.uri_mut() = asking.path.parse().map_err(|_| ClientError::Strange {
            what: format!("nothing yet: {:?} is no path", asking.path),
        })?;
        *request.headers_mut() = asking.headers;
        Ok(request)
    }
}

/// What a node says when it refuses.
async fn refusal(response: Response<Incoming>) -> ClientError {
    let status = response.status();
    // Routes of functions have errors of AWS Lambda's form.
    let name = response.headers().get("x-amzn-errortype").cloned();
    let bytes = match collect(response.into_body()).await {
        Ok(bytes) => bytes,
        Err(error) => return error,
    };
    if let Ok(problem) = serde_json::from_slice::<Problem>(&bytes) {
        return problem.into();
    }
    let name = name.and_then(|name| Some(name.to_str().ok()?.to_owned()));
    match (name, serde_json::from_slice::<FunctionError>(&bytes)) {
        (Some(code), Ok(FunctionError { message })) => Problem {
            class: class_of(status),
            code,
            message,
            advice: None,
        }
        .into(),
        _ => ClientError::Strange {
            what: format!("{status} without saying why"),
        },
    }
}

/// What the routes of functions say when they refuse.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct FunctionError {
    message: String,
}

fn class_of(status: StatusCode) -> ErrorClass {
    match status.as_u16() {
        401 | 403 => ErrorClass::Forbidden,
        404 => ErrorClass::NotFound,
        409 | 412 => ErrorClass::Conflict,
        429 => ErrorClass::Capacity,
        502 | 503 => ErrorClass::Unavailable,
        400..500 => ErrorClass::Invalid,
        _ => ErrorClass::Internal,
    }
}
