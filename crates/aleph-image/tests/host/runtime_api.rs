//! The runtime API of AWS Lambda, played for one function.

use serde_json::Value;
use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);
const PREFIX: &str = "/2018-06-01/runtime/";

/// What a function's runtime asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    /// `GET invocation/next` and its like.
    pub(crate) what: String,
    /// Lower-case names.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

impl Asked {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

#[derive(Default)]
struct State {
    asked: Vec<Asked>,
    events: VecDeque<(String, String)>,
    restored: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// A server on loopback; it ends with the test's process.
pub(crate) struct RuntimeApi {
    pub(crate) address: String,
    shared: Arc<Shared>,
}

impl RuntimeApi {
    pub(crate) fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = Arc::<Shared>::default();
        let all = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let shared = Arc::clone(&all);
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { address, shared }
    }

    /// Gives the function an event.
    pub(crate) fn send(&self, id: &str, event: &str) {
        let mut state = self.shared.state.lock().unwrap();
        state.events.push_back((id.to_owned(), event.to_owned()));
        self.shared.changed.notify_all();
    }

    /// Answers `restore/next`.
    pub(crate) fn restore(&self) {
        self.shared.state.lock().unwrap().restored = true;
        self.shared.changed.notify_all();
    }

    /// Everything that was asked so far, in order.
    pub(crate) fn asked(&self) -> Vec<String> {
        let state = self.shared.state.lock().unwrap();
        state.asked.iter().map(|asked| asked.what.clone()).collect()
    }

    /// Waits until that was asked.
    pub(crate) fn wait(&self, what: &str) -> Asked {
        let end = Instant::now() + LIMIT;
        let mut state = self.shared.state.lock().unwrap();
        loop {
            if let Some(asked) = state.asked.iter().find(|asked| asked.what == what) {
                return asked.clone();
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "waited in vain for {what}: {:#?}",
                state.asked
            );
            state = self.shared.changed.wait_timeout(state, left).unwrap().0;
        }
    }
}

fn serve(mut stream: TcpStream, shared: &Shared) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    // Until the other side closes the connection.
    while let Some(asked) = read(&mut reader) {
        let what = asked.what.clone();
        let mut state = shared.state.lock().unwrap();
        state.asked.push(asked);
        shared.changed.notify_all();
        let answer = match &*what {
            "GET restore/next" => {
                let restored = |state: &mut State| !state.restored;
                drop(shared.changed.wait_while(state, restored).unwrap());
                "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned()
            }
            "GET invocation/next" => {
                let none = |state: &mut State| state.events.is_empty();
                let mut state = shared.changed.wait_while(state, none).unwrap();
                let (id, event) = state.events.pop_front()?;
                format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\
                     Lambda-Runtime-Aws-Request-Id: {id}\r\n\
                     Lambda-Runtime-Deadline-Ms: 4102444800000\r\n\
                     Lambda-Runtime-Invoked-Function-Arn: \
                     arn:aws:lambda:us-east-1:123456789012:function:test\r\n\
                     Content-Length: {}\r\n\r\n{event}",
                    event.len()
                )
            }
            _ => {
                drop(state);
                "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n".to_owned()
            }
        };
        stream.write_all(answer.as_bytes()).ok()?;
    }
    Some(())
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<Asked> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let body = if headers
        .get("transfer-encoding")
        .is_some_and(|e| e == "chunked")
    {
        chunks(reader)?
    } else {
        let length = headers.get("content-length").and_then(|n| n.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        reader.read_exact(&mut body).ok()?;
        body
    };
    Some(Asked {
        what: format!("{method} {}", path.strip_prefix(PREFIX).unwrap_or(&path)),
        headers,
        body: String::from_utf8(body).ok()?,
    })
}

fn chunks(reader: &mut BufReader<TcpStream>) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let size = usize::from_str_radix(line.trim_end(), 16).ok()?;
        let mut chunk = vec![0; size + 2];
        reader.read_exact(&mut chunk).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.extend(&chunk[..size]);
    }
}
