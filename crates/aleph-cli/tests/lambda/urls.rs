//! Functions behind URLs and events of other systems, with real guests: curl, and the SDK of
//! CloudEvents.

use crate::support::LIMIT;
use crate::world::{World, app_zip, ran};
use aleph_image::Recipe;
use aleph_testkit::{functions, python_with_cloudevents, wait_until};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;

const TRACEPARENT: &str = "00-5759e988bd862e3fe1be46a994272793-53995c3f42cd8ad8-01";
const XRAY: &str = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1";

/// A function is called by its URL, and another one is sent events.
pub(crate) fn lead_to_guests() -> Result<()> {
    let world = World::up(&[Recipe::Python311, Recipe::Nodejs18])?;
    let zip = world.archive("app", &app_zip("one")?)?;
    for name in ["web", "told"] {
        let handler = format!("app.{name}");
        let how = ["--zip", &zip, "--handler", &handler, "-t", "60s", "--wait"];
        let create = ["fn", "create", name, "--runtime", "python3.11"];
        world.daemon.ok(&[&create[..], &how].concat())?;
    }
    answers(&world)?;
    streams(&world)?;
    servers(&world)?;
    events(&world)?;
    figures(&world)?;
    let url = world.daemon.ok(&["fn", "url", "web"])?;
    world.daemon.ok(&["fn", "rm", "web", "told"])?;
    let gone = curl(&world, &[&url])?;
    ensure!(gone.contains("HTTP/1.1 403"), "{gone}");
    world.end()
}

/// What curl says of an answer: its head and its body.
fn curl(world: &World, args: &[&str]) -> Result<String> {
    let mut command = world.client("curl");
    // Names below localhost are this host's, without a look anywhere else.
    command.args(["-s", "-i", "--max-time", "120"]);
    ran(command.args(args))
}

fn body(answer: &str) -> Result<Value> {
    let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;
    serde_json::from_str(body).with_context(|| answer.to_owned())
}

fn answers(world: &World) -> Result<()> {
    let none = world.daemon.aleph(&["fn", "url", "web"])?;
    ensure!(none.code == 125, "a URL was made unasked: {none:?}");
    let url = world.daemon.ok(&["fn", "url", "web", "--auth", "none"])?;
    let host = url.trim_start_matches("http://");
    ensure!(host.contains(".lambda-url.us-east-1.localhost:"), "{url}");
    let trace = format!("traceparent: {TRACEPARENT}");
    let to = format!("{url}a%20b?x=1&x=2");
    let posted = ["-H", &trace, "-H", "content-type: text/plain", "-d", "hi"];
    let answer = curl(world, &[&posted[..], &[&to]].concat())?;
    ensure!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    for line in [
        "\r\nx-own: yes\r\n",
        "\r\nset-cookie: a=1\r\nset-cookie: b=2; Secure\r\n",
        "\r\nx-amzn-trace-id: Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=1\r\n",
    ] {
        ensure!(answer.contains(line), "{line:?}: {answer}");
    }
    let told = json!({
        "method": "POST", "path": "/a%20b", "query": { "x": "1,2" }, "body": "hi",
        "encoded": false, "trace": XRAY, "request": true,
    });
    assert_eq!(body(&answer)?, told);
    let here = format!("{}/lambda-url/web/x", world.endpoint);
    let answer = curl(world, &["--data-binary", "@app.zip", &here])?;
    let told = body(&answer)?;
    assert_eq!(
        (&told["path"], &told["encoded"]),
        (&json!("/x"), &json!(true))
    );
    let failed = curl(world, &[&format!("{url}error")])?;
    ensure!(failed.starts_with("HTTP/1.1 502"), "{failed}");
    ensure!(
        failed.ends_with("\r\n\r\nInternal Server Error"),
        "{failed}"
    );
    Ok(())
}

/// What a function writes comes at once, and what it does not end is no whole answer.
fn streams(world: &World) -> Result<()> {
    let source = include_bytes!("web.js");
    let zip = world.archive("stream", &functions::zip(&[("web.js", 0o644, source)])?)?;
    let create = ["fn", "create", "stream", "--runtime", "nodejs18.x"];
    let how = ["--zip", &zip, "--handler", "web.handler", "-t", "10s"];
    let daemon = &world.daemon;
    daemon.ok(&[&create[..], &how, &["--wait"]].concat())?;
    let url = daemon.ok(&["fn", "url", "stream", "--stream", "--auth", "none"])?;
    let host = url.trim_start_matches("http://").trim_end_matches('/');
    let (_, port) = host.rsplit_once(':').context("no port")?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lambda/stream.py");
    ran(world.client("python3").arg(script).args([port, host]))?;
    daemon.ok(&["fn", "rm", "stream"])?;
    Ok(())
}

/// A function that is an HTTP server has requests as they came, and its answers are those of the
/// URL, whether they wait until they are whole or not.
fn servers(world: &World) -> Result<()> {
    let zip = world.archive("server", &functions::python_server_zip()?)?;
    let create = ["fn", "create", "server", "--runtime", "python3.11"];
    let how = ["--zip", &zip, "--handler", "server.py", "-t", "60s"];
    let daemon = &world.daemon;
    daemon.ok(&[&create[..], &how, &["--wait"]].concat())?;
    for mode in ["--no-stream", "--stream"] {
        let url = daemon.ok(&["fn", "url", "server", mode, "--auth", "none"])?;
        let to = format!("{url}a%20b?x=1&x=2");
        let cookie = ["-b", "c=3", "-H", "content-type: application/octet-stream"];
        let answer = curl(world, &[&cookie[..], &["-d", "raw", &to]].concat())?;
        ensure!(answer.starts_with("HTTP/1.1 201"), "{mode}: {answer}");
        ensure!(
            answer.contains("\r\nset-cookie: a=1\r\n"),
            "{mode}: {answer}"
        );
        let told = body(&answer)?;
        assert_eq!(
            (&told["method"], &told["path"]),
            (&json!("POST"), &json!("/a%20b?x=1&x=2"))
        );
        assert_eq!(
            (&told["body"], &told["headers"]["cookie"]),
            (&json!("raw"), &json!("c=3"))
        );
        let lines = curl(world, &[&format!("{url}stream?3")])?;
        let (_, lines) = lines.split_once("\r\n\r\n").context("no body")?;
        let lines: Vec<_> = lines.lines().map(str::trim).collect();
        assert_eq!(lines, ["0", "1", "2"], "{mode}");
    }
    daemon.ok(&["fn", "rm", "server"])?;
    Ok(())
}

/// The SDK sends events as it makes them; what the function says of them is in dead letters.
fn events(world: &World) -> Result<()> {
    let mut once = world.client("/usr/bin/aws");
    once.args(["--endpoint-url", &world.endpoint, "lambda"]);
    once.args([
        "put-function-event-invoke-config",
        "--function-name",
        "told",
    ]);
    ran(once.args(["--maximum-retry-attempts", "0"]))?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lambda/send.py");
    let mut sender = Command::new(python_with_cloudevents()?);
    sender.arg(script).env("NO_PROXY", "*");
    let to = format!("{}/cloudevents/told", world.endpoint);
    let said = ran(sender.args([&to, TRACEPARENT]))?;
    let sent = said.lines().map(serde_json::from_str);
    let sent: Vec<Value> = sent.collect::<Result<_, _>>()?;
    ensure!(sent.len() == 2, "{said}");
    let file = world
        .folder()
        .join("functions/dead-letters/default/letters.jsonl");
    let letters = wait_until("dead letters", LIMIT, || {
        let text = fs::read_to_string(&file).ok()?;
        // The last line may be half written.
        let (whole, _) = text.rsplit_once('\n')?;
        (whole.lines().count() >= sent.len()).then(|| whole.to_owned())
    });
    let letters = letters.lines().map(serde_json::from_str);
    let letters: Vec<Value> = letters.collect::<Result<_, _>>()?;
    for event in &sent {
        let letter = letters.iter().find(|one| one["requestPayload"] == *event);
        let letter = letter.with_context(|| format!("{event}: {letters:?}"))?;
        let said = letter["responsePayload"]["errorMessage"].as_str();
        let said: Value = serde_json::from_str(said.context("it said nothing")?)?;
        assert_eq!(said["event"], *event);
        assert_eq!(said["trace"], XRAY);
        assert_eq!(said["request"], letter["requestContext"]["requestId"]);
    }
    Ok(())
}

/// The node's figures tell of all that.
fn figures(world: &World) -> Result<()> {
    let socket = world.daemon.node.root.paths()?.run().join("aleph.sock");
    let socket = socket.to_str().context("a path that is no text")?;
    let lines = [
        "aleph_function_invocations_total{account=\"default\",function=\"web\",outcome=\"success\"} 2",
        "aleph_function_invocations_total{account=\"default\",function=\"web\",outcome=\"unhandled\"} 1",
        "aleph_function_duration_seconds_count{account=\"default\",function=\"web\",part=\"function\"} 3",
        "aleph_function_clones{account=\"default\",function=\"web\",state=\"busy\"} 0",
        "aleph_function_dead_letters_total{account=\"default\",function=\"told\"} 2",
        "aleph_function_events_waiting{account=\"default\",function=\"told\"} 0",
    ];
    // A dead letter is counted once its event has left the journal.
    wait_until("figures of functions", LIMIT, || {
        let text = curl(world, &["--unix-socket", socket, "http://node/metrics"]);
        let text = text.ok()?;
        let there = |line: &&str| text.lines().any(|other| other == *line);
        lines.iter().all(there).then_some(())
    });
    Ok(())
}
