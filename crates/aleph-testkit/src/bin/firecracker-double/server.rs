//! The API's socket: ten connections, one request at a time over all of them.

use crate::http::{FULL, Got, Reader, Response};
use crate::log;
use crate::misbehaviour::{self, Misbehaviour};
use crate::route::{self, Parsed};
use crate::version::Version;
use crate::vmm::{Answer, Event};
use rustix::event::{PollFd, PollFlags, poll};
use std::io::{self, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, Sender, channel};

/// The most connections at a time.
const MOST: usize = 10;

/// How the API is served.
pub(crate) struct Server {
    pub(crate) listener: UnixListener,
    pub(crate) version: Version,
    /// The longest body.
    pub(crate) limit: usize,
    /// Where requests go.
    pub(crate) vmm: Sender<Event>,
    /// What goes wrong.
    pub(crate) misbehaviour: Option<Misbehaviour>,
}

struct Connection {
    stream: UnixStream,
    reader: Reader,
    ended: bool,
}

impl Server {
    /// Serves until the VMM is gone.
    pub(crate) fn run(self) -> io::Result<()> {
        log!(Info, "API server started.");
        self.listener.set_nonblocking(true)?;
        let mut connections: Vec<Connection> = Vec::new();
        loop {
            let ready = wait(&self.listener, &connections)?;
            if ready[0] {
                self.accept(&mut connections)?;
            }
            for (connection, ready) in connections.iter_mut().zip(&ready[1..]) {
                if *ready && self.serve(connection).is_err() {
                    connection.ended = true;
                }
            }
            connections.retain(|connection| !connection.ended);
        }
    }

    fn accept(&self, connections: &mut Vec<Connection>) -> io::Result<()> {
        let mut stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        if connections.len() >= MOST {
            // It may be gone already.
            let _ = stream.write_all(FULL);
            return Ok(());
        }
        connections.push(Connection {
            stream,
            reader: Reader::new(self.limit, self.version.has(16)),
            ended: false,
        });
        Ok(())
    }

    fn serve(&self, connection: &mut Connection) -> io::Result<()> {
        let (requests, continues) = match connection.reader.read(&mut connection.stream) {
            Err(malformed) => return connection.stream.write_all(&malformed.response().bytes()),
            Ok(got) => match got? {
                Got::End => {
                    connection.ended = true;
                    return Ok(());
                }
                Got::Requests(requests, continues) => (requests, continues),
            },
        };
        for _ in 0..continues {
            let response = Response::new(100, None);
            connection.stream.write_all(&response.bytes())?;
        }
        for request in requests {
            log!(
                Info,
                "The API server received a {}.",
                route::describe(&request)
            );
            let misbehaviour = self.misbehaviour.as_ref();
            let wrong = misbehaviour.and_then(|misbehaviour| misbehaviour.at(&request));
            if let Some(wrong) = wrong
                && misbehaviour::before(wrong, &mut connection.stream)?
            {
                continue;
            }
            let parsed = match route::parse(&request, self.version) {
                Ok(parsed) => parsed,
                Err(refused) => {
                    log!(Error, "{refused}");
                    let response = Response::new(400, Some(fault(&refused.to_string())));
                    connection.stream.write_all(&response.bytes())?;
                    continue;
                }
            };
            // The VMM may end after it, and waits until the answer is on its way.
            let (written, wait) = channel();
            let response = self.ask(parsed, wait);
            if let Some(wrong) = wrong {
                misbehaviour::done(wrong);
            }
            let done = connection.stream.write_all(&response.bytes());
            if let Some(wrong) = wrong {
                misbehaviour::answered(wrong);
            }
            drop::<Sender<()>>(written);
            done?;
        }
        Ok(())
    }

    fn ask(&self, parsed: Parsed, written: Receiver<()>) -> Response {
        let (answer, answered) = channel();
        let request = Event::Request {
            action: Box::new(parsed.action),
            answer,
            written,
        };
        // Where the VMM is gone, so is this process in a moment.
        let gone = || Err("VMM disconnected".to_owned().into());
        let answered = match self.vmm.send(request) {
            Ok(()) => answered.recv().unwrap_or_else(|_| gone()),
            Err(_) => gone(),
        };
        let mut response = response(answered);
        if let Some(message) = parsed.deprecated {
            log!(Warn, "{message}");
            response.deprecated = true;
        }
        response
    }
}

fn response(answer: Answer) -> Response {
    match answer {
        Ok(None) => {
            log!(
                Info,
                "The request was executed successfully. Status code: 204 No Content."
            );
            Response::new(204, None)
        }
        Ok(body) => {
            log!(
                Info,
                "The request was executed successfully. Status code: 200 OK."
            );
            Response::new(200, body)
        }
        Err(refused) => {
            let status = match refused.status {
                413 => "413 Payload too large",
                _ => "400 Bad Request",
            };
            log!(
                Error,
                "Received Error. Status code: {status}. Message: {}",
                refused.text
            );
            Response::new(refused.status, Some(fault(&refused.text)))
        }
    }
}

fn fault(text: &str) -> String {
    serde_json::json!({ "fault_message": text }).to_string()
}

/// Waits until something can be read; says where, the listener first.
fn wait(listener: &UnixListener, connections: &[Connection]) -> io::Result<Vec<bool>> {
    let mut all = vec![PollFd::new(listener, PollFlags::IN)];
    all.extend(
        connections
            .iter()
            .map(|connection| PollFd::new(&connection.stream, PollFlags::IN)),
    );
    match poll(&mut all, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(all.iter().map(|one| !one.revents().is_empty()).collect())
}
