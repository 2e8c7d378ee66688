//! An HTTP server on `$PORT`, a thread for each connection, that does what it is asked:
//!
//! | path or event | what it does |
//! | --- | --- |
//! | `/events` with `"exit"` | ends the process with 3 |
//! | with `"hang"` | never answers |
//! | with `"fail"` | answers with 500 |
//! | with `"close"` | closes the connection instead of answering |
//! | with `"garbage"` | answers with what is no HTTP |
//! | with `"deaf"` | answers, and listens no more |
//! | with `"served"` | tells how many requests it has had |
//! | with another event | answers with it |
//! | `/stream/PIECES/SIZE` | answers in lines of their number, each of so many bytes |
//! | `/break` | begins to answer and closes the connection |
//! | `/exit` | begins to answer and ends the process with 4 |
//! | `/raw` | answers with bytes that are no text |
//! | another | tells the request that it got, with status 201 and two cookies |

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

static SERVED: AtomicUsize = AtomicUsize::new(0);
static DEAF: AtomicBool = AtomicBool::new(false);

struct Request {
    method: String,
    target: String,
    head: String,
    body: Vec<u8>,
}

/// `None` where the connection ends before there is one.
fn read(connection: &TcpStream) -> io::Result<Option<Request>> {
    let mut reader = BufReader::new(connection);
    let mut head = String::new();
    loop {
        let before = head.len();
        if reader.read_line(&mut head)? == 0 {
            return Ok(None);
        }
        if head[before..].trim_end().is_empty() {
            break;
        }
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let is_it = name.eq_ignore_ascii_case("content-length");
        is_it.then(|| value.trim().parse().ok()).flatten()
    });
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body)?;
    let mut words = head.split(' ').map(str::to_owned);
    Ok(Some(Request {
        method: words.next().unwrap_or_default(),
        target: words.next().unwrap_or_default(),
        head,
        body,
    }))
}

fn answer(out: &mut TcpStream, status: &str, kind: &str, body: &[u8]) -> io::Result<()> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}");
    // In two pieces, as many servers do.
    write!(out, "{head}\r\nset-cookie: a=1\r\nset-cookie: b=2\r\n\r\n")?;
    out.write_all(body)
}

fn begin(out: &mut TcpStream) -> io::Result<()> {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked";
    write!(out, "{head}\r\n\r\n")
}

fn chunk(out: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    write!(out, "{:x}\r\n", bytes.len())?;
    out.write_all(bytes)?;
    out.write_all(b"\r\n")
}

fn serve(mut out: TcpStream) -> io::Result<()> {
    let Some(request) = read(&out)? else {
        return Ok(());
    };
    let served = SERVED.fetch_add(1, Ordering::Relaxed) + 1;
    eprintln!("{} {}", request.method, request.target);
    let path = request.target.split('?').next().unwrap_or_default();
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match parts[..] {
        ["events"] => match &request.body[..] {
            b"\"exit\"" => std::process::exit(3),
            b"\"hang\"" => loop {
                thread::sleep(Duration::from_secs(1));
            },
            b"\"fail\"" => answer(&mut out, "500 Oops", "text/plain", b"as asked"),
            b"\"close\"" => Ok(()),
            b"\"garbage\"" => out.write_all(b"\0\x01 nonsense\r\n\r\n"),
            b"\"deaf\"" => {
                DEAF.store(true, Ordering::Relaxed);
                // The listener hears of it with the next connection, which is this one, unless it has
                // heard of it already and listens no more.
                drop(TcpStream::connect(out.local_addr()?));
                while TcpStream::connect(out.local_addr()?).is_ok() {
                    thread::sleep(Duration::from_millis(10));
                }
                answer(&mut out, "200 OK", "application/json", b"\"deaf\"")
            }
            b"\"served\"" => {
                let served = served.to_string();
                answer(&mut out, "200 OK", "application/json", served.as_bytes())
            }
            event => answer(&mut out, "200 OK", "application/json", event),
        },
        ["stream", pieces, size] => {
            begin(&mut out)?;
            let pieces = pieces.parse().unwrap_or(1_usize);
            let width = size.parse().unwrap_or(10_usize).saturating_sub(1);
            for piece in 0..pieces {
                chunk(&mut out, format!("{piece:>width$}\n").as_bytes())?;
            }
            out.write_all(b"0\r\n\r\n")
        }
        ["break"] => {
            begin(&mut out)?;
            chunk(&mut out, b"first")
        }
        ["exit"] => {
            begin(&mut out)?;
            chunk(&mut out, b"first")?;
            std::process::exit(4)
        }
        ["raw"] => answer(&mut out, "200 OK", "application/octet-stream", &[0xff, 0]),
        _ => {
            let mut told = request.head.into_bytes();
            told.extend(&request.body);
            answer(&mut out, "201 Created", "text/plain", &told)
        }
    }
}

fn main() -> io::Result<()> {
    let port = std::env::var("PORT").ok().and_then(|port| port.parse().ok());
    let port: u16 = port.ok_or(io::ErrorKind::InvalidInput)?;
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    eprintln!("listening on port {port}");
    while !DEAF.load(Ordering::Relaxed) {
        let (connection, _) = listener.accept()?;
        thread::spawn(move || serve(connection));
    }
    drop(listener);
    // Its requests go on.
    loop {
        thread::park();
    }
}
