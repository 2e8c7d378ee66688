//! Responses that functions write piece by piece, with real VMs and a runtime of shell.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where it cannot go on"
)]

mod function_world;

use aleph_executor::functions::{
    Deployment, FunctionError, FunctionsConfig, HTTP_INTEGRATION, HttpPrelude, ResponseStream,
    Temperature,
};
use anyhow::{Context, Result, ensure};
use function_world::{LIMIT, Program, World, is_told_late, log, pool, text};
use std::time::Duration;

/// Each event names what is written, over a connection of its own to the runtime API.
const RUNTIME: &str = r#"
api=http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime
begin() {
  printf 'POST /2018-06-01/runtime/invocation/%s/response HTTP/1.1\r\nhost: api\r\n' $id
  printf 'connection: close\r\ntransfer-encoding: chunked\r\ncontent-type: %s\r\n' $1
  printf 'lambda-runtime-function-response-mode: streaming\r\n'
  printf 'trailer: Lambda-Runtime-Function-Error-Type\r\n\r\n'
}
piece() { printf '%x\r\n%s\r\n' ${#1} "$1"; }
many() { printf '%x\r\n' $1; head -c $1 /dev/zero; printf '\r\n'; }
over() { printf '0\r\n%b\r\n' "$1"; }
answer() {
  case $event in
    '"two"') begin text/plain; piece one; piece two; over ;;
    '"none"') begin text/plain; over ;;
    '"http"') begin application/vnd.awslambda.http-integration-response
      piece '{"statusCode":418,"cookies":["a=1"]}'; printf '8\r\n\0\0\0\0\0\0\0\0\r\n'; piece body; over ;;
    '"fail"') begin text/plain; piece first
      over 'Lambda-Runtime-Function-Error-Type: Own.Kind\r\nLambda-Runtime-Function-Error-Body: eyJhIjoxfQ==\r\n' ;;
    '"hang"') begin text/plain; piece first; sleep 1000 ;;
    '"crash"') begin text/plain; piece first; sleep 0.2; kill -9 $$ ;;
    '"cut"') begin text/plain; piece first; printf '5\r\nab' ;;
    '"much"') begin text/plain; piece first; many 10000000; piece last; over ;;
    '"endless"') begin text/plain; piece first; while :; do many 1000000; done ;;
  esac
}
while :; do
  event=$(wget -q -S -O - $api/invocation/next 2>/tmp/headers) || exit 9
  id=$(sed -n 's/^ *[Ll]ambda-[Rr]untime-[Aa]ws-[Rr]equest-[Ii]d: *//p' /tmp/headers | tr -d '\r')
  case $event in
    '"whole"') wget -q -O - --header 'content-type: text/html' --post-data whole $api/invocation/$id/response >/dev/null; continue ;;
    '"error"') wget -q -O - --post-data '{"errorType":"Oops"}' $api/invocation/$id/error >/dev/null; continue ;;
  esac
  said=$(answer | nc ${AWS_LAMBDA_RUNTIME_API%:*} ${AWS_LAMBDA_RUNTIME_API#*:} | head -n 1)
  echo "heard $said" >&2
done
"#;

async fn world() -> Result<World> {
    let config = FunctionsConfig {
        pool: pool(),
        ..FunctionsConfig::default()
    };
    let program = Program {
        files: &[],
        command: &["sh", "-c", RUNTIME],
    };
    World::new(config, &program).await
}

fn for_seconds(world: &World, seconds: u64) -> Deployment {
    Deployment {
        timeout: Duration::from_secs(seconds),
        ..world.deployment.clone()
    }
}

/// All that still comes.
async fn rest(stream: &mut ResponseStream) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    while let Some(piece) = tokio::time::timeout(LIMIT, stream.next()).await? {
        all.extend(piece);
    }
    Ok(all)
}

/// So many bytes of what comes, which is all that comes until nobody reads any more.
async fn first(stream: &mut ResponseStream, length: usize) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    while all.len() < length {
        let piece = tokio::time::timeout(LIMIT, stream.next()).await?;
        all.extend(piece.context("the response ended early")?);
    }
    Ok(all)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_comes_as_it_is_written() -> Result<()> {
    let world = world().await?;
    let (mut stream, running) = world.stream(&world.deployment, "\"two\"");
    let head = stream.head().await.context("no head")?;
    assert_eq!(
        (&*head.content_type, &*head.version),
        ("text/plain", "$LATEST")
    );
    assert_eq!(head.temperature, Temperature::Cold);
    assert_eq!(rest(&mut stream).await?, b"onetwo");
    let done = running.await??;
    assert_eq!((done.error, text(&done)), (None, String::new()));
    assert!(
        log(&done).contains("REPORT RequestId: id-two"),
        "{}",
        log(&done)
    );

    // More than all that is under way holds: its end is not written before its beginning is read.
    let (mut stream, running) = world.stream(&world.deployment, "\"much\"");
    let head = stream.head().await.context("no head")?;
    assert_eq!(head.temperature, Temperature::Hot);
    let mut all = first(&mut stream, 5).await?;
    assert!(all.starts_with(b"first") && !running.is_finished());
    all.extend(rest(&mut stream).await?);
    assert_eq!(all.len(), 10_000_000 + "firstlast".len());
    assert!(all.ends_with(b"\0last"));
    assert_eq!(running.await??.error, None);

    let (mut stream, running) = world.stream(&world.deployment, "\"none\"");
    let head = stream.head().await;
    assert_eq!(rest(&mut stream).await?, b"");
    let done = running.await??;
    assert_eq!(
        (done.error, head.is_some()),
        (None, true),
        "{} {}",
        text(&done),
        log(&done)
    );

    let (mut stream, running) = world.stream(&world.deployment, "\"http\"");
    let head = stream.head().await.context("no head")?;
    assert!(head.has_prelude(), "{head:?}");
    let (prelude, body) = HttpPrelude::read(&mut stream).await?;
    assert_eq!(
        (prelude.status_code, &prelude.cookies[..]),
        (418, &["a=1".to_owned()][..])
    );
    let body = [&body[..], &rest(&mut stream).await?].concat();
    assert_eq!(
        (body, running.await??.temperature),
        (b"body".to_vec(), Temperature::Hot)
    );

    // One that is written whole goes the same way.
    let (mut stream, running) = world.stream(&world.deployment, "\"whole\"");
    let head = stream.head().await.context("no head")?;
    assert_eq!(head.content_type, "text/html");
    assert_eq!(rest(&mut stream).await?, b"whole");
    assert_eq!(running.await??.error, None);
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_all_of_it_gets_all_of_it() -> Result<()> {
    let world = world().await?;
    let whole = world.invoke("\"two\"").await?;
    assert_eq!((&*text(&whole), whole.error), ("onetwo", None));
    assert_eq!(whole.content_type, "text/plain");
    let http = world.invoke("\"http\"").await?;
    assert_eq!(http.content_type, HTTP_INTEGRATION);
    let (prelude, body) = HttpPrelude::parse(&http.payload)?;
    assert_eq!((prelude.status_code, &body[..]), (418, &b"body"[..]));
    let failed = world.invoke("\"fail\"").await?;
    assert_eq!(
        (&*text(&failed), failed.error),
        (r#"{"a":1}"#, Some(FunctionError::Unhandled))
    );
    let long = world.invoke("\"much\"").await?;
    assert!(
        text(&long).contains("Function.ResponseSizeTooLarge"),
        "{}",
        text(&long)
    );
    assert!(text(&long).contains("6291556"), "{}", text(&long));
    let after = world.invoke("\"two\"").await?;
    assert_eq!(
        (&*text(&after), after.temperature),
        ("onetwo", Temperature::Hot)
    );
    assert!(log(&long).contains("Status: error"), "{}", log(&long));
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_within_a_response_is_told_behind_it() -> Result<()> {
    let world = world().await?;
    let few = for_seconds(&world, 12);
    for (event, kind, serves_on) in [
        ("\"fail\"", "Own.Kind", true),
        ("\"crash\"", "Runtime.ExitError", false),
        ("\"cut\"", "Runtime.TruncatedResponse", false),
        ("\"hang\"", "Sandbox.Timedout", false),
    ] {
        let mut tries = 0;
        let done = loop {
            let (mut stream, running) = world.stream(&few, event);
            assert!(stream.head().await.is_some(), "{event}");
            let came = rest(&mut stream).await?;
            assert!(came.starts_with(b"first"), "{event}: {came:?}");
            let done = running.await??;
            tries += 1;
            if kind != "Runtime.ExitError" || !is_told_late(&done, tries) {
                break done;
            }
        };
        assert_eq!(done.error, Some(FunctionError::Unhandled), "{event}");
        match event {
            "\"fail\"" => {
                assert_eq!(done.error_type.as_deref(), Some(kind));
                assert_eq!(text(&done), r#"{"a":1}"#);
            }
            _ => assert!(text(&done).contains(kind), "{event}: {}", text(&done)),
        }
        // Another event meets the same clone where that can serve, and is well served in any case.
        let (mut stream, running) = world.stream(&few, "\"two\"");
        let head = stream.head().await.context("no head")?;
        let want = if serves_on {
            Temperature::Hot
        } else {
            Temperature::Cold
        };
        assert_eq!(
            (rest(&mut stream).await?, head.temperature),
            (b"onetwo".to_vec(), want),
            "{event}"
        );
        assert_eq!(running.await??.error, None);
    }
    // What fails before it has begun to answer has no head.
    let (mut stream, running) = world.stream(&few, "\"error\"");
    assert_eq!((stream.head().await, stream.next().await), (None, None));
    let done = running.await??;
    assert_eq!(
        (&*text(&done), done.error_type),
        (r#"{"errorType":"Oops"}"#, None)
    );
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_response_is_longer_than_it_may_be() -> Result<()> {
    let world = world().await?;
    let (mut stream, running) = world.stream(&world.deployment, "\"endless\"");
    let came = rest(&mut stream).await?;
    assert!(
        came.len() <= 20 << 20 && came.len() > 19 << 20,
        "{}",
        came.len()
    );
    let done = running.await??;
    assert!(
        text(&done).contains("Function.ResponseSizeTooLarge"),
        "{}",
        text(&done)
    );
    assert!(text(&done).contains("20971520"), "{}", text(&done));
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_that_read_slowly_or_go_away_hold_no_clone() -> Result<()> {
    let world = world().await?;
    let long = for_seconds(&world, 30);
    // Who goes away costs nothing: the function runs to its end, and its clone serves on.
    let (mut stream, running) = world.stream(&long, "\"much\"");
    first(&mut stream, 5).await?;
    drop(stream);
    let done = running.await??;
    assert_eq!((done.error, text(&done)), (None, String::new()));
    let (mut stream, running) = world.stream(&long, "\"two\"");
    let head = stream.head().await.context("no head")?;
    assert_eq!(
        (rest(&mut stream).await?, head.temperature),
        (b"onetwo".to_vec(), Temperature::Hot)
    );
    running.await??;
    // Who does not read has the function wait, until its time is over.
    let short = for_seconds(&world, 12);
    let (mut stream, running) = world.stream(&short, "\"much\"");
    assert!(stream.head().await.is_some());
    let done = running.await??;
    assert!(text(&done).contains("Sandbox.Timedout"), "{}", text(&done));
    let came = rest(&mut stream).await?;
    ensure!(
        came.starts_with(b"first") && came.len() < 5_000_000,
        "{}",
        came.len()
    );
    let next = world.stream(&short, "\"two\"").1.await??;
    assert_eq!((next.temperature, next.error), (Temperature::Cold, None));
    world.end().await
}
