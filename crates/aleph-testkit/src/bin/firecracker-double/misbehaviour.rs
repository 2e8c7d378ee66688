//! What goes wrong at a request, as a test says: see [`FaultyFirecracker`].

use crate::http::{Request, Response};
use aleph_testkit::{Fault, FaultyFirecracker};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What its answer is when it refuses.
const REFUSAL: &str = "the test refuses this";

/// A test's file, and the requests so far.
#[derive(Debug)]
pub(crate) struct Misbehaviour {
    wrong: Option<(usize, Fault)>,
    requests: PathBuf,
    so_far: AtomicUsize,
}

impl Misbehaviour {
    /// What a test says; nothing where there is no file of one.
    pub(crate) fn asked_for() -> Option<Self> {
        let program = std::env::current_exe().ok()?;
        let text = fs::read_to_string(FaultyFirecracker::faults(&program)).ok()?;
        let wrong = text
            .split_once(' ')
            .and_then(|(number, word)| Some((number.parse().ok()?, Fault::of_word(word.trim())?)));
        Some(Self {
            wrong,
            requests: FaultyFirecracker::requests(&program),
            so_far: AtomicUsize::new(0),
        })
    }

    /// Whether it never listens.
    pub(crate) fn is_deaf(&self) -> bool {
        self.wrong == Some((0, Fault::Deaf))
    }

    /// Notes a request; says what goes wrong with it.
    pub(crate) fn at(&self, request: &Request) -> Option<Fault> {
        let number = 1 + self.so_far.fetch_add(1, Ordering::SeqCst);
        let noted = File::options()
            .append(true)
            .create(true)
            .open(&self.requests)
            .and_then(|mut file| writeln!(file, "{} {}", request.method, request.path));
        if let Err(error) = noted {
            crate::log!(Error, "a request is not noted: {error}");
        }
        self.wrong
            .filter(|(at, _)| *at == number)
            .map(|(_, fault)| fault)
    }
}

/// What goes wrong before a request is done. Whether it is answered.
pub(crate) fn before(fault: Fault, stream: &mut UnixStream) -> io::Result<bool> {
    match fault {
        Fault::Dies => die(),
        Fault::Hangs => hang(),
        Fault::Refuses => {
            let body = serde_json::json!({ "fault_message": REFUSAL }).to_string();
            stream.write_all(&Response::new(400, Some(body)).bytes())?;
            Ok(true)
        }
        Fault::Garbles => {
            stream.write_all(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")?;
            Ok(true)
        }
        Fault::Floods => {
            let length = i64::MAX;
            let head = format!("HTTP/1.1 200 \r\nContent-Length: {length}\r\n\r\n{{\"a\": \"");
            stream.write_all(head.as_bytes())?;
            // Until nobody reads any more.
            loop {
                stream.write_all(&[b'x'; 4096])?;
            }
        }
        Fault::Deaf | Fault::DiesDone | Fault::DiesAnswered | Fault::HangsDone => Ok(false),
    }
}

/// What goes wrong when it is done.
pub(crate) fn done(fault: Fault) {
    match fault {
        Fault::DiesDone => die(),
        Fault::HangsDone => hang(),
        _ => {}
    }
}

/// What goes wrong when it is answered.
pub(crate) fn answered(fault: Fault) {
    if fault == Fault::DiesAnswered {
        die();
    }
}

/// In a namespace of its own it is the first process, which it cannot kill itself.
fn die() -> ! {
    std::process::exit(Fault::DEATH)
}

fn hang() -> ! {
    loop {
        std::thread::park();
    }
}
