//! The API of a real daemon, as far as it needs no guest.

mod support;

use aleph_control::{Daemon, DaemonError};
use aleph_executor::NodeError;
use aleph_testkit::TestRoot;
use aleph_types::{ErrorClass, Job};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::CONTENT_TYPE;
use hyper::{Method, StatusCode};
use rustix::fs::{Gid, Uid};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use support::{Client, Server, certificate, config, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn every_mistake_is_a_problem_with_its_status_and_code() -> Result<()> {
    let root = TestRoot::new()?;
    let server = Server::start(&config(&root)).await?;
    let client = server.local();
    client.make("web-1").await?;
    for (method, path, body, status, code) in [
        ("GET", "/v1/nothing", None, 404, "not_found"),
        ("GET", "/", None, 404, "not_found"),
        ("PATCH", "/v1/jobs", None, 405, "method_not_allowed"),
        ("DELETE", "/healthz", None, 405, "method_not_allowed"),
        ("GET", "/v1/jobs?limit=0", None, 400, "bad_query"),
        ("GET", "/v1/jobs?nonsense=1", None, 400, "bad_query"),
        ("GET", "/v1/jobs/absent", None, 404, "no_job"),
        ("GET", "/v1/jobs/%FF", None, 400, "bad_path"),
        ("DELETE", "/v1/jobs/absent", None, 404, "no_job"),
        (
            "DELETE",
            "/v1/jobs/web-1?force=maybe",
            None,
            400,
            "bad_query",
        ),
        ("POST", "/v1/jobs", Some("{"), 400, "bad_body"),
        ("POST", "/v1/jobs", Some("{}"), 400, "bad_body"),
        (
            "POST",
            "/v1/jobs",
            Some(r#"{"image":"busybox","resources":{"cpus":0}}"#),
            400,
            "no_cpus",
        ),
        (
            "POST",
            "/v1/jobs",
            Some(r#"{"image":"busybox","resources":{"memory":"3t"}}"#),
            429,
            "too_much_memory",
        ),
        (
            "POST",
            "/v1/jobs?start=false",
            Some(r#"{"image":"busybox","name":"web-1"}"#),
            409,
            "name_taken",
        ),
        ("POST", "/v1/jobs/web-1/pause", None, 409, "wrong_state"),
        (
            "POST",
            "/v1/jobs/web-1/kill?signal=BOO",
            None,
            400,
            "bad_signal",
        ),
        (
            "POST",
            "/v1/jobs/web-1/stop?timeout=x",
            None,
            400,
            "bad_query",
        ),
        (
            "GET",
            "/v1/jobs/web-1/wait?state=walking",
            None,
            400,
            "bad_query",
        ),
        (
            "GET",
            "/v1/jobs/web-1/wait?timeout=0",
            None,
            408,
            "wait_timeout",
        ),
        (
            "GET",
            "/v1/jobs/web-1/logs?since=now",
            None,
            400,
            "bad_query",
        ),
        ("GET", "/v1/jobs/web-1/stats", None, 409, "wrong_state"),
        (
            "GET",
            "/v1/jobs/web-1/exec",
            None,
            400,
            "websocket_required",
        ),
        (
            "GET",
            "/v1/jobs/web-1/attach",
            None,
            400,
            "websocket_required",
        ),
        ("GET", "/v1/jobs/web-1/archive", None, 400, "bad_query"),
        (
            "GET",
            "/v1/jobs/web-1/archive?path=x",
            None,
            400,
            "bad_path",
        ),
        (
            "GET",
            "/v1/jobs/web-1/archive?path=/x",
            None,
            409,
            "wrong_state",
        ),
        ("GET", "/v1/events?since_id=x", None, 400, "bad_query"),
        (
            "GET",
            "/v1/images/absent/one:1",
            None,
            404,
            "image_not_found",
        ),
        ("POST", "/v1/images/pull", Some("[]"), 400, "bad_body"),
        (
            "POST",
            "/v1/tokens",
            Some(r#"{"account":"A"}"#),
            400,
            "bad_account",
        ),
        ("DELETE", "/v1/tokens/00", None, 404, "no_token"),
        (
            "POST",
            "/v1/prune",
            Some(r#"{"all":true}"#),
            400,
            "bad_body",
        ),
    ] {
        let request = client
            .request(method.parse()?, path)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::from(body.unwrap_or_default()))?;
        let answer = client.send(request).await?;
        let what = format!("{method} {path} {body:?}: {answer:?}");
        let problem = answer.problem().context(what.clone())?;
        assert_eq!(
            (answer.status.as_u16(), &*problem.code),
            (status, code),
            "{what}"
        );
        assert!(!problem.message.is_empty());
    }
    let request = client
        .request(Method::POST, "/v1/jobs")
        .header(CONTENT_TYPE, "text/plain")
        .body(Full::from("x"))?;
    let answer = client.send(request).await?;
    assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let long = Bytes::from(vec![b' '; 3 << 20]);
    let request = client
        .request(Method::POST, "/v1/jobs")
        .body(Full::from(long))?;
    let answer = client.send(request).await?;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    server.close(&root).await
}

#[tokio::test]
async fn what_everybody_may_ask_is_answered() -> Result<()> {
    let root = TestRoot::new()?;
    let mut config = config(&root);
    config.api.listen = Some("127.0.0.1:0".parse()?);
    let server = Server::start(&config).await?;
    let stranger = server.remote("none")?;
    for path in ["/healthz", "/readyz"] {
        assert_eq!(stranger.get(path).await?.status, StatusCode::OK, "{path}");
    }
    let document: Value = stranger.get("/openapi.json").await?.json()?;
    assert!(document["paths"]["/v1/jobs"]["post"].is_object());
    for path in ["/v1/jobs", "/v1/node", "/metrics", "/v1/tokens"] {
        let answer = stranger.get(path).await?;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{path}");
        assert!(answer.headers.contains_key("www-authenticate"));
        assert_eq!(answer.problem()?.class, ErrorClass::Forbidden);
    }
    let node: Value = server.local().get("/v1/node").await?.json()?;
    assert!(node["total"]["memory"].as_u64() > Some(0));
    let metrics = server.local().get("/metrics").await?;
    let text = String::from_utf8(metrics.body.to_vec())?;
    assert!(text.contains("route=\"/v1/node\""), "{text}");
    let images: Vec<Value> = server.local().get("/v1/images").await?.json()?;
    assert!(
        images.iter().any(|i| i["names"] == json!(["busybox"])),
        "{images:?}"
    );
    let image: Value = server.local().get("/v1/images/busybox").await?.json()?;
    assert_eq!(image["filesystem"], "erofs");
    server.close(&root).await
}

#[tokio::test]
async fn a_token_speaks_for_its_account_until_it_ends() -> Result<()> {
    let root = TestRoot::new()?;
    let mut config = config(&root);
    config.api.listen = Some("127.0.0.1:0".parse()?);
    let server = Server::start(&config).await?;
    let operator = server.local();
    let request = json!({"account": "ann", "label": "laptop"});
    let answer = operator.post("/v1/tokens", request).await?;
    assert_eq!(answer.status, StatusCode::CREATED);
    let made: Value = answer.json()?;
    let token = made["token"].as_str().context("no token")?;
    let secret = token.rsplit('_').next().context("no secret")?;
    assert_eq!(secret.len(), 64);
    let listed = String::from_utf8(operator.get("/v1/tokens").await?.body.to_vec())?;
    assert!(listed.contains("laptop") && !listed.contains(secret));
    assert!(
        !holds(root.path(), secret.as_bytes())?,
        "the secret is on disk"
    );

    let ann = server.remote(token)?;
    assert_eq!(ann.get("/v1/jobs").await?.status, StatusCode::OK);
    for (client, path) in [(&ann, "/v1/tokens"), (&ann, "/v1/tokens/00")] {
        let answer = client.delete(path).await?;
        let wanted = [StatusCode::FORBIDDEN, StatusCode::METHOD_NOT_ALLOWED];
        assert!(wanted.contains(&answer.status), "{path}: {answer:?}");
    }
    assert_eq!(ann.get("/v1/tokens").await?.status, StatusCode::FORBIDDEN);
    assert_eq!(
        ann.delete("/v1/images/busybox").await?.status,
        StatusCode::FORBIDDEN
    );
    let images = ann.post("/v1/prune", json!({"images": true})).await?;
    assert_eq!(images.problem()?.code, "operators_only");
    let images = ann.post("/v1/prune", json!({"all_images": true})).await?;
    assert_eq!(images.problem()?.code, "operators_only");
    // What an account names makes the node ask no host that nobody listed for accounts.
    let far = json!({"image": "127.0.0.1:1/none:1", "command": ["true"]});
    let again = json!({"image": "busybox", "command": ["true"], "pull": "always"});
    for (path, request) in [
        ("/v1/jobs", &far),
        ("/v1/jobs", &again),
        (
            "/v1/images/pull",
            &json!({"reference": "127.0.0.1:1/none:1"}),
        ),
    ] {
        let refused = ann.post(path, request.clone()).await?;
        assert_eq!(refused.status, StatusCode::FORBIDDEN, "{path} {request}");
        assert_eq!(refused.problem()?.code, "registry_not_allowed");
    }
    // A disk of its own is a volume, and comes from nowhere.
    let own = json!({"image": "none", "mode": "vm", "cloud_init": {}});
    let refused = ann.post("/v1/jobs", own).await?;
    assert_eq!(refused.problem()?.code, "no_volume");
    let id = made["id"].as_str().context("no id")?;
    let wrong = format!("aleph_{id}_{}", "0".repeat(64));
    for wrong in [
        wrong.as_str(),
        "aleph_x_y",
        "",
        "basic",
        &token[..token.len() - 1],
    ] {
        let answer = server.remote(wrong)?.get("/v1/jobs").await?;
        assert_eq!(answer.problem()?.code, "bad_token", "{wrong:?}");
    }

    // It outlives the daemon, and ends when it is revoked.
    let address = server.address;
    server.stop().await?;
    let mut again = config.clone();
    again.api.listen = address;
    let server = Server::start(&again).await?;
    assert_eq!(ann.get("/v1/jobs").await?.status, StatusCode::OK);
    let path = format!("/v1/tokens/{id}");
    assert_eq!(
        server.local().delete(&path).await?.status,
        StatusCode::NO_CONTENT
    );
    assert_eq!(ann.get("/v1/jobs").await?.status, StatusCode::UNAUTHORIZED);

    let short = json!({"account": "ann", "expires_in_seconds": 5});
    let made: Value = server.local().post("/v1/tokens", short).await?.json()?;
    let brief = server.remote(made["token"].as_str().context("no token")?)?;
    assert_eq!(brief.get("/v1/jobs").await?.status, StatusCode::OK);
    until("the token to expire", async || {
        let status = brief.get("/v1/jobs").await?.status;
        Ok((status == StatusCode::UNAUTHORIZED).then_some(()))
    })
    .await?;
    server.close(&root).await
}

/// Whether any file below a folder has these bytes.
fn holds(dir: &Path, bytes: &[u8]) -> Result<bool> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let found = if kind.is_dir() {
            holds(&entry.path(), bytes)?
        } else {
            kind.is_file()
                && std::fs::read(entry.path())?
                    .windows(bytes.len())
                    .any(|window| window == bytes)
        };
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}

#[tokio::test]
async fn two_accounts_know_nothing_of_each_other() -> Result<()> {
    let root = TestRoot::new()?;
    let (tls, trusted) = certificate(root.path())?;
    let mut config = config(&root);
    config.api.listen = Some("127.0.0.1:0".parse()?);
    config.api.tls = Some(tls);
    let server = Server::start(&config).await?;
    let address = server.address.context("no address")?;
    let (mut clients, mut jobs) = (Vec::new(), Vec::new());
    for account in ["ann", "bob"] {
        let token = server.local().token(account).await?;
        let client = Client::tls(address, trusted.clone(), &token)?;
        // One name in two accounts is two jobs.
        jobs.push(client.make("web").await?);
        clients.push(client);
    }
    for (mine, other) in [(0, 1), (1, 0)] {
        let (client, job, hidden) = (&clients[mine], &jobs[mine], &jobs[other]);
        let found: Job = client.get("/v1/jobs/web").await?.json()?;
        assert_eq!(found.id, job.id);
        let list: Value = client.get("/v1/jobs").await?.json()?;
        assert_eq!(list["jobs"].as_array().map(Vec::len), Some(1));
        let id = hidden.id.to_string();
        for (method, path) in [
            ("GET", ""),
            ("DELETE", ""),
            ("POST", "/start"),
            ("POST", "/stop"),
            ("POST", "/restart"),
            ("POST", "/kill"),
            ("POST", "/pause"),
            ("POST", "/resume"),
            ("GET", "/wait"),
            ("GET", "/stats"),
            ("GET", "/logs"),
            ("GET", "/exec"),
            ("GET", "/attach"),
            ("GET", "/archive?path=/"),
            ("PUT", "/archive?path=/"),
        ] {
            let path = format!("/v1/jobs/{id}{path}");
            let answer = client.call(method.parse()?, &path, None).await?;
            assert_eq!(answer.status, StatusCode::NOT_FOUND, "{method} {path}");
            assert_eq!(answer.problem()?.code, "no_job", "{method} {path}");
        }
        // A beginning of the other's id leads nowhere either.
        let answer = client.get(&format!("/v1/jobs/{}", &id[..12])).await?;
        assert_eq!(answer.status, StatusCode::NOT_FOUND);
        let events = client.get("/v1/events?follow=false").await?;
        let events: Vec<Value> = events.json()?;
        assert!(!events.is_empty());
        assert!(
            events
                .iter()
                .all(|event| event["job"] == job.id.to_string())
        );
        let of = client
            .get(&format!("/v1/events?follow=false&job={id}"))
            .await?;
        assert_eq!(of.json::<Vec<Value>>()?, Vec::<Value>::new());
        let metrics = client.get("/metrics").await?;
        assert!(!String::from_utf8(metrics.body.to_vec())?.contains(&id));
        let acting = client
            .request(Method::GET, "/v1/jobs")
            .header("x-aleph-account", if mine == 0 { "bob" } else { "ann" })
            .body(Full::default())?;
        assert_eq!(client.send(acting).await?.status, StatusCode::FORBIDDEN);
    }
    // An operator sees both, and one of them where it acts for somebody.
    let operator = server.local();
    let list: Value = operator.get("/v1/jobs").await?.json()?;
    assert_eq!(list["jobs"].as_array().map(Vec::len), Some(2));
    let request = operator
        .request(Method::GET, "/v1/jobs/web")
        .header("x-aleph-account", "bob")
        .body(Full::default())?;
    let found: Job = operator.send(request).await?.json()?;
    assert_eq!(found.id, jobs[1].id);
    // Who does not speak TLS is not answered.
    let mut plain = tokio::net::TcpStream::connect(address).await?;
    plain
        .write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        .await?;
    let mut heard = Vec::new();
    let _ = plain.read_to_end(&mut heard).await;
    assert!(!heard.starts_with(b"HTTP"), "{heard:?}");
    server.close(&root).await
}

#[tokio::test]
async fn fifty_identical_creates_at_once_make_one_job() -> Result<()> {
    let root = TestRoot::new()?;
    let server = Server::start(&config(&root)).await?;
    let create = |image: &str, key: &str| {
        let client = server.local();
        let body = json!({"image": image, "command": ["true"]}).to_string();
        let request = client
            .request(Method::POST, "/v1/jobs?start=false")
            .header(CONTENT_TYPE, "application/json")
            .header("idempotency-key", key)
            .body(Full::from(body));
        async move { client.send(request?).await }
    };
    let all = (0..50).map(|_| tokio::spawn(create("busybox", "key-1")));
    let (mut ids, mut new) = (BTreeSet::new(), 0);
    for answer in all.collect::<Vec<_>>() {
        let answer = answer.await??;
        new += u32::from(answer.status == StatusCode::CREATED);
        ensure!(answer.status.is_success(), "{answer:?}");
        ids.insert(answer.json::<Job>()?.id);
    }
    assert_eq!((ids.len(), new), (1, 1));
    let other = create("debian", "key-1").await?;
    assert_eq!(other.status, StatusCode::CONFLICT);
    assert_eq!(other.problem()?.code, "idempotency_mismatch");
    let bad = create("busybox", &"k".repeat(129)).await?;
    assert_eq!(bad.problem()?.code, "bad_idempotency_key");
    server.close(&root).await
}

#[tokio::test]
async fn events_are_heard_as_they_come_and_resume_from_an_id() -> Result<()> {
    let root = TestRoot::new()?;
    let server = Server::start(&config(&root)).await?;
    let client = server.local();
    client.make("one").await?;
    let stored: Vec<Value> = client.get("/v1/events?follow=false").await?.json()?;
    let first = stored.last().context("no event")?["id"]
        .as_u64()
        .context("no id")?;
    let listen = async |after: Option<u64>, header: bool| -> Result<_> {
        let path = match after {
            Some(id) if !header => format!("/v1/events?kind=job&since_id={id}"),
            _ => "/v1/events?kind=job".to_owned(),
        };
        let mut request = client.request(Method::GET, &path);
        if let (Some(id), true) = (after, header) {
            request = request.header("last-event-id", id);
        }
        let answer = client.begin(request.body(Full::default())?).await?;
        assert_eq!(answer.headers()[CONTENT_TYPE], "text/event-stream");
        Ok(answer.into_body())
    };
    let mut live = listen(None, false).await?;
    client.make("two").await?;
    let heard = next_event(&mut live).await?;
    assert_eq!(heard["name"], "two", "what was before is not told");
    // Somebody who was away gets all that happened since.
    client.make("three").await?;
    for header in [false, true] {
        let mut resumed = listen(Some(first), header).await?;
        for name in ["two", "three"] {
            assert_eq!(next_event(&mut resumed).await?["name"], name);
        }
    }
    // It ends with the node.
    server.stop().await?;
    while let Some(frame) = live.frame().await {
        let _ = frame?;
    }
    Ok(())
}

/// The next event of a stream, which has its id and kind twice.
async fn next_event(body: &mut hyper::body::Incoming) -> Result<Value> {
    let mut text = String::new();
    while !text.contains("\n\n") {
        let frame = tokio::time::timeout(support::LIMIT, body.frame()).await?;
        let frame = frame.context("the stream ended")??;
        if let Ok(data) = frame.into_data() {
            text.push_str(std::str::from_utf8(&data)?);
        }
    }
    let field = |name: &str| {
        let prefix = format!("{name}: ");
        text.lines().find_map(|line| line.strip_prefix(&prefix))
    };
    let event: Value = serde_json::from_str(field("data").context(text.clone())?)?;
    assert_eq!(
        field("id").map(str::to_owned),
        Some(event["id"].to_string())
    );
    assert_eq!(field("event"), event["kind"].as_str());
    Ok(event)
}

/// Whom a process is may be asked of the kernel alone.
#[tokio::test]
async fn the_socket_is_for_root_and_its_group() -> Result<()> {
    const GROUP: u32 = 54_321;
    const USER: u32 = 54_322;
    if !rustix::process::geteuid().is_root() {
        eprintln!("this test changes its user, which needs root");
        return Ok(());
    }
    let root = TestRoot::new()?;
    let dir = tempfile::tempdir()?;
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755))?;
    let mut config = config(&root);
    config.api.socket = Some(dir.path().join("aleph.sock"));
    config.api.socket_group = GROUP.to_string();
    let server = Server::start(&config).await?;
    let ask = async |groups: &'static [u32]| {
        let path = server.socket.clone();
        // Users and groups belong to threads, for the kernel.
        tokio::task::spawn_blocking(move || {
            std::thread::spawn(move || ask_as(USER, groups, &path)).join()
        })
        .await?
        .map_err(|_| anyhow::anyhow!("panicked"))?
    };
    let member = ask(&[GROUP]).await?;
    assert!(member.starts_with("HTTP/1.1 200"), "{member}");
    let stranger = ask(&[]).await.unwrap_err();
    assert!(
        stranger.to_string().contains("Permission denied"),
        "{stranger}"
    );
    // Even where the file is open to all.
    std::fs::set_permissions(&server.socket, PermissionsExt::from_mode(0o666))?;
    let stranger = ask(&[]).await?;
    assert!(stranger.starts_with("HTTP/1.1 403"), "{stranger}");
    assert!(stranger.contains("not_operator"), "{stranger}");
    server.close(&root).await
}

fn ask_as(user: u32, groups: &[u32], socket: &Path) -> Result<String> {
    let groups: Vec<Gid> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    rustix::thread::set_thread_groups(&groups)?;
    let (gid, uid) = (Gid::from_raw(user), Uid::from_raw(user));
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    let mut stream = std::os::unix::net::UnixStream::connect(socket)?;
    stream.write_all(b"GET /v1/jobs HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[tokio::test]
async fn clients_that_stall_cost_only_themselves() -> Result<()> {
    let root = TestRoot::new()?;
    let mut config = config(&root);
    config.api.listen = Some("127.0.0.1:0".parse()?);
    config.api.max_connections = 80;
    let server = Server::start(&config).await?;
    let token = server.local().token("ann").await?;
    let remote = server.remote(&token)?;
    let mut stalled = Vec::new();
    // Half of a head, half of a body, and an answer that nobody reads.
    for begin in [
        "GET /v1/jobs HTTP/1.1\r\nhos",
        "POST /v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{",
        "GET /v1/events?since_id=0 HTTP/1.1\r\nhost: x\r\n\r\n",
    ] {
        let with_token = begin.replace(
            "host: x\r\n",
            &format!("host: x\r\nauthorization: Bearer {token}\r\n"),
        );
        for _ in 0..3 {
            let mut stream = remote.connect().await?;
            stream.write_all(with_token.as_bytes()).await?;
            stalled.push(stream);
        }
    }
    for _ in 0..50 {
        assert_eq!(remote.get("/v1/jobs").await?.status, StatusCode::OK);
    }
    // One address gets half of the slots; the next is told so, and others still have theirs.
    let refused = until("the slots to be taken", async || {
        stalled.push(remote.connect().await?);
        let answer = remote.get("/v1/jobs").await?;
        Ok((!answer.status.is_success()).then_some(answer))
    })
    .await?;
    assert!((20..=40).contains(&stalled.len()), "{}", stalled.len());
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.problem()?.code, "too_many_connections");
    assert_eq!(server.local().get("/v1/jobs").await?.status, StatusCode::OK);
    drop(stalled);
    until("the slots to be free", async || {
        let answer = remote.get("/v1/jobs").await;
        Ok(answer.is_ok_and(|a| a.status.is_success()).then_some(()))
    })
    .await?;
    server.close(&root).await
}

#[tokio::test]
async fn a_second_daemon_on_the_same_root_does_not_begin() -> Result<()> {
    let root = TestRoot::new()?;
    let server = Server::start(&config(&root)).await?;
    let second = Box::pin(Daemon::open(&config(&root))).await;
    let Err(DaemonError::Node(NodeError::Owned(_))) = second else {
        panic!("{second:?}");
    };
    // The first one's socket is where it was.
    assert_eq!(server.local().get("/healthz").await?.status, StatusCode::OK);
    server.close(&root).await
}

#[tokio::test]
async fn a_pull_that_fails_says_why_in_its_last_line() -> Result<()> {
    let root = TestRoot::new()?;
    let server = Server::start(&config(&root)).await?;
    // Nobody listens on port 1 of this host.
    let request = json!({"reference": "127.0.0.1:1/none:1"});
    let answer = server.local().post("/v1/images/pull", request).await?;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.headers[CONTENT_TYPE], "application/x-ndjson");
    let last = answer
        .body
        .split(|b| *b == b'\n')
        .rfind(|line| !line.is_empty());
    let last: Value = serde_json::from_slice(last.context("no line")?)?;
    assert_eq!(last["error"]["class"], "unavailable", "{last}");
    let there = json!({"reference": "busybox"});
    let answer = server.local().post("/v1/images/pull", there).await?;
    let line: Value = answer.json()?;
    assert_eq!(line["image"]["names"], json!(["busybox"]));
    server.close(&root).await
}

#[tokio::test]
async fn jobs_are_listed_in_parts_and_by_what_they_are() -> Result<()> {
    let root = TestRoot::new()?;
    let server = Server::start(&config(&root)).await?;
    let client = server.local();
    for n in 0..5 {
        let spec = json!({
            "name": format!("job-{n}"), "image": "busybox", "command": ["true"],
            "labels": {"parity": if n % 2 == 0 { "even" } else { "odd" }},
        });
        let made = client.post("/v1/jobs?start=false", spec).await?;
        assert_eq!(made.status, StatusCode::CREATED);
    }
    let names = async |query: &str| -> Result<Vec<String>> {
        let list: Value = client.get(&format!("/v1/jobs{query}")).await?.json()?;
        let jobs = list["jobs"].as_array().context("no list")?;
        Ok(jobs
            .iter()
            .filter_map(|job| Some(job["name"].as_str()?.to_owned()))
            .collect())
    };
    assert_eq!(names("?label=parity%3Dodd").await?, ["job-3", "job-1"]);
    assert_eq!(names("?name=job-4").await?, ["job-4"]);
    assert_eq!(names("?state=running").await?, Vec::<String>::new());
    assert_eq!(names("?state=created&limit=2").await?, ["job-4", "job-3"]);
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let list: Value = client
            .get(&format!("/v1/jobs?limit=2{cursor}"))
            .await?
            .json()?;
        seen.extend(list["jobs"].as_array().context("no list")?.clone());
        match list["cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen.len(), 5);
    server.close(&root).await
}
