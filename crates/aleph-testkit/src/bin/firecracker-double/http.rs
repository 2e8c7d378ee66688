//! HTTP as Firecracker's own server speaks it, byte for byte: its limits of lines, its words of
//! refusal, its responses without a reason.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read};

/// The longest line, and what is read at once.
const BUFFER: usize = 1024;

/// Methods of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Get,
    Put,
    Patch,
    Delete,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        })
    }
}

/// A whole request.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) body: Option<Vec<u8>>,
}

/// A response.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) body: Option<String>,
    pub(crate) deprecated: bool,
}

impl Response {
    /// One without a body where `body` is none.
    pub(crate) fn new(status: u16, body: Option<String>) -> Self {
        Self {
            status,
            body,
            deprecated: false,
        }
    }

    /// What goes over the connection.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut text = format!(
            "HTTP/1.1 {} \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n",
            self.status
        );
        if self.deprecated {
            text.push_str("Deprecation: true\r\n");
        }
        if let Some(body) = &self.body {
            let length = body.len();
            text.push_str("Content-Type: application/json\r\n");
            text.push_str(&format!("Content-Length: {length}\r\n"));
        }
        text.push_str("\r\n");
        text.push_str(self.body.as_deref().unwrap_or_default());
        text.into_bytes()
    }
}

/// What a connection that is one too many gets, before it is closed.
pub(crate) const FULL: &[u8] = b"HTTP/1.1 503\r\nServer: Firecracker API\r\nConnection: close\r\n\
    Content-Length: 40\r\n\r\n{ \"error\": \"Too many open connections\" }";

/// Why what came is no request, in the server's words.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("Invalid request.")]
    Request,
    #[error("Invalid HTTP Method: Unsupported HTTP method.")]
    Method,
    #[error("Invalid HTTP Version: Unsupported HTTP version.")]
    Version,
    #[error("Invalid URI: {0}")]
    Uri(&'static str),
    #[error("Invalid header. Reason: Header is incorrectly formatted. Key: {0}")]
    HeaderForm(String),
    #[error("Invalid header. Reason: Invalid value. Key:{0}; Value:{1}")]
    HeaderValue(String, String),
    #[error("Invalid header. Reason: Header contains invalid characters. Key: {0}")]
    HeaderText(std::str::Utf8Error),
    #[error("Invalid header. Reason: Invalid content length. Header: {0}")]
    HeaderLength(String),
    #[error("Overflow occurred when parsing a request.")]
    Overflow,
    #[error("Request payload with size {1} is larger than the limit of {0} allowed by server.")]
    Payload(usize, usize),
}

impl Malformed {
    /// Not JSON, as the real one's is not.
    pub(crate) fn response(&self) -> Response {
        let body = format!(
            "{{ \"error\": \"{self}\nAll previous unanswered requests will be dropped.\" }}"
        );
        Response::new(400, Some(body))
    }
}

/// Reads requests off a connection.
#[derive(Debug)]
pub(crate) struct Reader {
    buffer: Vec<u8>,
    state: State,
    limit: usize,
    deletes: bool,
}

#[derive(Debug)]
enum State {
    Line,
    Headers(Request, Headers),
    Body(Request, usize),
}

#[derive(Debug, Default)]
struct Headers {
    length: usize,
    continues: bool,
}

/// What a read gave.
#[derive(Debug)]
pub(crate) enum Got {
    /// Whole requests, and how often the client is to be told to go on.
    Requests(VecDeque<Request>, usize),
    /// The client is gone.
    End,
}

impl Reader {
    /// `limit` is that of bodies in bytes; `deletes` says whether there is such a method.
    pub(crate) fn new(limit: usize, deletes: bool) -> Self {
        Self {
            buffer: Vec::with_capacity(BUFFER),
            state: State::Line,
            limit,
            deletes,
        }
    }

    /// Reads once.
    pub(crate) fn read(&mut self, from: &mut impl Read) -> Result<io::Result<Got>, Malformed> {
        let space = BUFFER - self.buffer.len();
        if space == 0 {
            return Err(Malformed::Overflow);
        }
        let mut bytes = [0; BUFFER];
        let read = match from.read(&mut bytes[..space]) {
            Ok(0) => return Ok(Ok(Got::End)),
            Ok(read) => read,
            Err(error) => return Ok(Err(error)),
        };
        self.buffer.extend_from_slice(&bytes[..read]);
        let parsed = self.parse();
        if parsed.is_err() {
            self.buffer.clear();
        }
        parsed.map(Ok)
    }

    fn parse(&mut self) -> Result<Got, Malformed> {
        let (mut requests, mut continues, mut start) = (VecDeque::new(), 0, 0);
        loop {
            let rest = &self.buffer[start..];
            let whole = start == 0 && self.buffer.len() == BUFFER;
            match &mut self.state {
                State::Line => {
                    let Some(end) = line_end(rest) else {
                        if whole {
                            return Err(Malformed::Request);
                        }
                        break;
                    };
                    let request = request_line(&rest[..end], self.deletes)?;
                    start += end + 2;
                    self.state = State::Headers(request, Headers::default());
                }
                State::Headers(request, headers) => {
                    let Some(end) = line_end(rest) else {
                        if whole {
                            let text = String::from_utf8_lossy(rest).into_owned();
                            return Err(Malformed::HeaderLength(text));
                        }
                        break;
                    };
                    if end > 0 {
                        headers.line(&rest[..end])?;
                        start += end + 2;
                        continue;
                    }
                    if headers.length > self.limit {
                        return Err(Malformed::Payload(self.limit, headers.length));
                    }
                    start += 2;
                    let mut request = request.clone();
                    if headers.length == 0 {
                        requests.push_back(request);
                        self.state = State::Line;
                    } else {
                        continues += usize::from(headers.continues);
                        request.body = Some(Vec::new());
                        self.state = State::Body(request, headers.length);
                    }
                }
                State::Body(request, left) => {
                    let take = rest.len().min(*left);
                    request.body.get_or_insert_default().extend(&rest[..take]);
                    start += take;
                    *left -= take;
                    if *left > 0 {
                        break;
                    }
                    requests.push_back(request.clone());
                    self.state = State::Line;
                }
            }
        }
        self.buffer.drain(..start);
        Ok(Got::Requests(requests, continues))
    }
}

fn line_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(2).position(|two| two == b"\r\n")
}

fn request_line(line: &[u8], deletes: bool) -> Result<Request, Malformed> {
    let mut words = line.splitn(3, |byte| *byte == b' ');
    let (Some(method), Some(uri), Some(version)) = (words.next(), words.next(), words.next())
    else {
        return Err(Malformed::Request);
    };
    let method = match method {
        b"GET" => Method::Get,
        b"PUT" => Method::Put,
        b"PATCH" => Method::Patch,
        b"DELETE" if deletes => Method::Delete,
        _ => return Err(Malformed::Method),
    };
    if uri.is_empty() {
        return Err(Malformed::Uri("Empty URI not allowed."));
    }
    let uri = std::str::from_utf8(uri).map_err(|_| Malformed::Uri("Cannot parse URI as UTF-8."))?;
    if !matches!(version, b"HTTP/1.0" | b"HTTP/1.1") {
        return Err(Malformed::Version);
    }
    let path = match uri.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("", |at| &rest[at..]),
        None if uri.starts_with('/') => uri,
        None => "",
    };
    Ok(Request {
        method,
        path: path.to_owned(),
        body: None,
    })
}

impl Headers {
    fn line(&mut self, line: &[u8]) -> Result<(), Malformed> {
        let text = std::str::from_utf8(line).map_err(Malformed::HeaderText)?;
        let Some((name, value)) = text.split_once(':') else {
            return Err(Malformed::HeaderForm(text.to_owned()));
        };
        let invalid = |value: &str| Malformed::HeaderValue(name.to_owned(), value.to_owned());
        match name.trim().to_ascii_lowercase().as_str() {
            "content-length" => {
                let length: u32 = value.trim().parse().map_err(|_| invalid(value))?;
                self.length = usize::try_from(length).map_err(|_| Malformed::Overflow)?;
            }
            // Another expectation is one that the server does not know, and passes over.
            "expect" => self.continues |= value.trim() == "100-continue",
            "accept-encoding" => {
                if value.trim().is_empty() {
                    return Err(Malformed::Request);
                }
                for encoding in value.split(',').map(str::trim) {
                    let none = encoding == "*;q=0" && !value.contains("identity");
                    if encoding == "identity;q=0" || none {
                        let name = "Accept-Encoding".to_owned();
                        return Err(Malformed::HeaderValue(name, encoding.to_owned()));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}
