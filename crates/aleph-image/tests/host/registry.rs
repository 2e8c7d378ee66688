//! Debian's docker-registry on a port of this machine, and something in front of it that
//! misbehaves as a test says.

#![allow(dead_code, reason = "each test program uses its own part")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The user and password that a registry with logins knows.
pub(crate) const LOGIN: (&str, &str) = ("tester", "secret");
/// Blowfish at its cheapest.
const HTPASSWD: &str = "tester:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// A registry that ends with the test.
pub(crate) struct Registry {
    child: Child,
    pub(crate) host: String,
    logins: bool,
    _dir: tempfile::TempDir,
}

impl Registry {
    pub(crate) fn start() -> Self {
        Self::with("", false)
    }

    /// One that gives nothing to those who are not logged in.
    pub(crate) fn with_logins() -> Self {
        Self::with(
            "auth:\n  htpasswd:\n    realm: here\n    path: DIR/htpasswd\n",
            true,
        )
    }

    /// One that speaks TLS with the certificate and key in two PEM files.
    pub(crate) fn with_tls(certificate: &Path, key: &Path) -> Self {
        let tls = format!(
            "  tls:\n    certificate: {}\n    key: {}\n",
            certificate.display(),
            key.display()
        );
        Self::with(&tls, false)
    }

    fn with(more: &str, logins: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().display().to_string();
        fs::write(dir.path().join("htpasswd"), HTPASSWD).unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        // A port that is free now may be taken when the registry wants it.
        while Instant::now() < end {
            let free = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = free.local_addr().unwrap();
            drop(free);
            let config = format!(
                "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\n\
                 storage:\n  filesystem:\n    rootdirectory: {path}/storage\n\
                 http:\n  addr: {address}\n{}",
                more.replace("DIR", &path)
            );
            let file = dir.path().join("config.yml");
            fs::write(&file, config).unwrap();
            let mut child = Command::new("docker-registry")
                .arg("serve")
                .arg(&file)
                .env("OTEL_TRACES_EXPORTER", "none")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            while Instant::now() < end && child.try_wait().unwrap().is_none() {
                if TcpStream::connect(address).is_ok() {
                    return Self {
                        child,
                        host: address.to_string(),
                        logins,
                        _dir: dir,
                    };
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        panic!("docker-registry does not start");
    }

    /// Copies an image of an OCI layout to `repository:tag`, indexes with all that is in them.
    pub(crate) fn push(&self, layout: &Path, tag: &str, to: &str) {
        let mut command = Command::new("skopeo");
        command.args(["--insecure-policy", "copy", "--quiet", "--all"]);
        // Layers as they are: it would compress those that are not.
        command.args(["--preserve-digests", "--dest-tls-verify=false"]);
        if self.logins {
            command.args(["--dest-creds", &format!("{}:{}", LOGIN.0, LOGIN.1)]);
        }
        let output = command
            .arg(format!("oci:{}:{tag}", layout.display()))
            .arg(format!("docker://{}/{to}", self.host))
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "skopeo: {stderr}");
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request, as far as a test wants to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// With its query.
    pub(crate) path: String,
    /// Lower-case names.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

impl Request {
    pub(crate) fn is_blob(&self) -> bool {
        self.path.contains("/blobs/")
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// What to do with a request.
pub(crate) enum Act {
    Forward,
    /// Forwards it, and hangs up after so many bytes of the answer's body.
    Cut(usize),
    /// Forwards it with a header less.
    Without(&'static str),
    /// Forwards it, and gives only so many bytes for a moment.
    Slow,
    /// Forwards it, and gives a byte of the body at a time: some 20 a second.
    Trickle,
    /// Answers by itself: status, headers, body.
    Answer(u16, Vec<(String, String)>, Vec<u8>),
}

/// Stands before a registry, notes what it is asked, and does as it is told.
pub(crate) struct Front {
    pub(crate) host: String,
    seen: Arc<Mutex<Vec<Request>>>,
}

type Script = dyn Fn(&Request, usize) -> Act + Send + Sync;

impl Front {
    /// `script` gets each request and the number of requests for blobs before it.
    pub(crate) fn before(
        registry: &str,
        script: impl Fn(&Request, usize) -> Act + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let seen = Arc::<Mutex<Vec<Request>>>::default();
        let (registry, script) = (registry.to_owned(), Arc::new(script) as Arc<Script>);
        let shared = Arc::clone(&seen);
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (registry, script) = (registry.clone(), Arc::clone(&script));
                let seen = Arc::clone(&shared);
                std::thread::spawn(move || serve(stream, &registry, &*script, &seen));
            }
        });
        Self { host, seen }
    }

    pub(crate) fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn blobs(&self) -> Vec<Request> {
        self.seen().into_iter().filter(Request::is_blob).collect()
    }
}

/// One request for each connection: `Connection: close` is in every answer.
fn serve(
    mut stream: TcpStream,
    registry: &str,
    script: &Script,
    seen: &Mutex<Vec<Request>>,
) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").and_then(|n| n.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    let mut request = Request {
        method,
        path,
        headers,
        body: String::from_utf8(body).ok()?,
    };
    let blobs = {
        let mut seen = seen.lock().unwrap();
        let blobs = seen.iter().filter(|r| r.is_blob()).count();
        seen.push(request.clone());
        blobs
    };
    let (mut cut, mut most, mut pause) = (usize::MAX, 8192, 0);
    match script(&request, blobs) {
        Act::Forward => {}
        Act::Cut(n) => cut = n,
        Act::Slow => pause = 20,
        Act::Trickle => (most, pause) = (1, 50),
        Act::Without(header) => drop(request.headers.remove(header)),
        Act::Answer(status, headers, body) => {
            let mut head = format!("HTTP/1.1 {status} x\r\nconnection: close\r\n");
            for (name, value) in headers {
                head += &format!("{name}: {value}\r\n");
            }
            head += &format!("content-length: {}\r\n\r\n", body.len());
            stream.write_all(head.as_bytes()).ok()?;
            return stream.write_all(&body).ok();
        }
    }
    let address: SocketAddr = registry.parse().ok()?;
    let mut upstream = TcpStream::connect(address).ok()?;
    let mut head = format!("{} {} HTTP/1.1\r\n", request.method, request.path);
    for (name, value) in &request.headers {
        if name != "connection" {
            head += &format!("{name}: {value}\r\n");
        }
    }
    head += "connection: close\r\n\r\n";
    upstream.write_all(head.as_bytes()).ok()?;
    let mut answer = BufReader::new(upstream);
    loop {
        let mut line = String::new();
        answer.read_line(&mut line).ok()?;
        stream.write_all(line.as_bytes()).ok()?;
        if line.trim_end().is_empty() {
            break;
        }
    }
    let mut buffer = [0; 8192];
    while cut > 0 {
        let n = answer.read(&mut buffer[..most]).ok()?;
        if n == 0 {
            break;
        }
        let n = n.min(cut);
        cut -= n;
        stream.write_all(&buffer[..n]).ok()?;
        std::thread::sleep(Duration::from_millis(pause));
    }
    Some(())
}
