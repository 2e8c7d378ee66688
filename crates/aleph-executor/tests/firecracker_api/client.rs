//! The client, with peers that do what they should and peers that do not.

use crate::peer::{Act, Peer, answer, done, send};
use aleph_executor::firecracker::api::*;
use aleph_executor::firecracker::{Client, ClientError, Version};
use aleph_types::MiB;
use std::error::Error;
use std::time::Duration;

/// What only a hang exceeds.
const LONG: Duration = Duration::from_secs(30);

/// For answers that never come.
const SHORT: Duration = Duration::from_millis(100);

fn client(peer: &Peer) -> Client {
    Client::new(peer.socket(), Version::NEWEST)
}

fn start() -> Call {
    Call::Action(Action::InstanceStart)
}

const INFO: &str =
    r#"{"id":"vm","state":"Not started","vmm_version":"1.17.0","app_name":"Firecracker","more":1}"#;

#[tokio::test]
async fn calls_share_a_connection_and_say_what_they_mean() {
    let peer = Peer::play(vec![vec![done()], vec![done()], vec![answer(200, INFO)]]);
    let client = client(&peer);
    let machine = Call::MachineConfig(MachineConfig::new(2, MiB(256)));
    client.call(&machine, LONG).await.unwrap();
    client.call(&Call::BalloonHintingStop, LONG).await.unwrap();
    let info: InstanceInfo = client.get(LONG).await.unwrap();
    assert_eq!(info.state, InstanceState::NotStarted);
    assert_eq!(info.vmm_version, "1.17.0");
    assert_eq!(peer.connections(), 1);
    let requests = peer.requests();
    let body = r#"{"vcpu_count":2,"mem_size_mib":256}"#;
    let first = &requests[0];
    assert!(
        first.starts_with("PUT /machine-config HTTP/1.1\r\n"),
        "{first}"
    );
    assert!(first.ends_with(&format!("\r\n\r\n{body}")), "{first}");
    let length = format!("content-length: {}\r\n", body.len());
    assert!(first.contains(&length), "{first}");
    assert!(
        first.contains("content-type: application/json\r\n"),
        "{first}"
    );
    let second = &requests[1];
    assert!(
        second.starts_with("PATCH /balloon/hinting/stop HTTP/1.1\r\n"),
        "{second}"
    );
    assert!(!second.contains("transfer-encoding"), "{second}");
    let third = &requests[2];
    assert!(third.starts_with("GET / HTTP/1.1\r\n"), "{third}");
    assert!(!third.contains("content-length"), "{third}");
}

#[tokio::test]
async fn a_refusal_says_what_was_refused_and_why() {
    let fault = r#"{"fault_message":"Boot source error: no \u001b[31msuch\nfile"}"#;
    let peer = Peer::play(vec![vec![answer(400, fault)], vec![done()]]);
    let client = client(&peer);
    let refused = client.call(&start(), LONG).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "Firecracker refused PUT /actions (400): Boot source error: no \\u{1b}[31msuch\\nfile"
    );
    assert!(!refused.may_have_acted());
    // The connection is as good as before.
    client.call(&start(), LONG).await.unwrap();
    assert_eq!(peer.connections(), 1);
}

/// Errors of HTTP are not JSON, and the eleventh connection is told off in a line of its own kind.
#[tokio::test]
async fn refusals_without_a_fault_message_are_shown_as_they_are() {
    let http = "{ \"error\": \"Invalid header.\nAll previous unanswered requests are dropped.\" }";
    let many = "{ \"error\": \"Too many open connections\" }";
    let full = format!(
        "HTTP/1.1 503\r\nContent-Length: {}\r\n\r\n{many}",
        many.len()
    );
    let peer = Peer::play(vec![
        vec![answer(400, http)],
        vec![send(&full), Act::Close],
        vec![answer(413, ""), Act::Close],
    ]);
    let client = client(&peer);
    for (status, text) in [
        (400, http.replace('\n', "\\n")),
        (503, many.into()),
        (413, "".into()),
    ] {
        match client.call(&start(), LONG).await.unwrap_err() {
            ClientError::Refused {
                status: found,
                fault_message,
                ..
            } => assert_eq!((found, fault_message), (status, text)),
            other => panic!("{other:?}"),
        }
    }
    // What a server takes for a request after one that it could not read is not known.
    assert_eq!(peer.connections(), 3);
}

#[tokio::test]
async fn a_long_message_is_cut() {
    let long = format!(r#"{{"fault_message":"{}"}}"#, "é".repeat(100_000));
    let peer = Peer::play(vec![vec![answer(400, &long)]]);
    let refused = client(&peer).call(&start(), LONG).await.unwrap_err();
    let ClientError::Refused { fault_message, .. } = &refused else {
        panic!("{refused:?}");
    };
    assert_eq!(fault_message.chars().count(), 2049);
}

/// What is wrong is not sent: nobody even connects.
#[tokio::test]
async fn what_is_wrong_is_not_sent() {
    let peer = Peer::play(vec![vec![done()]]);
    let old = Client::new(peer.socket(), Version::OLDEST);
    let wrong = Call::MachineConfig(MachineConfig::new(0, MiB(1)));
    let refused = old.call(&wrong, LONG).await.unwrap_err();
    assert!(matches!(refused, ClientError::Invalid(_)), "{refused:?}");
    let lacking = old.call(&Call::BalloonHintingStop, LONG).await.unwrap_err();
    assert!(matches!(lacking, ClientError::Invalid(_)), "{lacking:?}");
    let lacking = old.get::<MemoryHotplugStatus>(LONG).await.unwrap_err();
    assert!(matches!(lacking, ClientError::Lacking(_)), "{lacking:?}");
    assert!(!lacking.may_have_acted());
    assert_eq!(peer.connections(), 0);
}

#[tokio::test]
async fn nobody_there() {
    let folder = tempfile::tempdir().unwrap();
    let client = Client::new(folder.path().join("api.sock"), Version::NEWEST);
    let gone = client.call(&start(), LONG).await.unwrap_err();
    assert!(matches!(gone, ClientError::Connect { .. }), "{gone:?}");
    assert!(!gone.may_have_acted());
    // A socket file that its owner left behind.
    let socket = folder.path().join("api.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let gone = client.call(&start(), LONG).await.unwrap_err();
    assert!(matches!(gone, ClientError::Connect { .. }), "{gone:?}");
}

/// A peer that dies with a request has perhaps done it: it is sent once.
#[tokio::test]
async fn nothing_is_sent_twice() {
    let peer = Peer::play(vec![vec![Act::Close], vec![done()]]);
    let client = client(&peer);
    let broken = client.call(&start(), LONG).await.unwrap_err();
    assert!(matches!(broken, ClientError::Broken { .. }), "{broken:?}");
    assert!(broken.may_have_acted());
    assert!(broken.source().is_some());
    assert_eq!(peer.requests().len(), 1);
    client.call(&start(), LONG).await.unwrap();
    assert_eq!((peer.requests().len(), peer.connections()), (2, 2));
}

/// A connection that the peer closed after an answer is made anew, and nobody notices.
#[tokio::test]
async fn a_closed_connection_is_made_anew() {
    let closing = "HTTP/1.1 204 \r\nConnection: close\r\n\r\n";
    let peer = Peer::play(vec![vec![send(closing), Act::Close], vec![done()]]);
    let client = client(&peer);
    client.call(&start(), LONG).await.unwrap();
    client.call(&start(), LONG).await.unwrap();
    assert_eq!(peer.connections(), 2);
}

#[tokio::test]
async fn truncated_answers() {
    for text in [
        "HTTP/1.1 20",
        "HTTP/1.1 400 \r\nContent-Length: 100\r\n\r\n{\"fault_mess",
        "HTTP/1.1 400 \r\nTransfer-Encoding: chunked\r\n\r\n10\r\nabc",
    ] {
        let peer = Peer::play(vec![vec![send(text), Act::Close]]);
        let broken = client(&peer).call(&start(), LONG).await.unwrap_err();
        assert!(
            matches!(broken, ClientError::Broken { .. }),
            "{text:?}: {broken:?}"
        );
    }
}

#[tokio::test]
async fn what_is_not_http() {
    for text in [
        "OK 1073741824\n",
        "\0\0\0\0\r\n\r\n",
        "HTTP/9.9 204 \r\n\r\n",
        "HTTP/1.1 400 \r\nContent-Length: -1\r\n\r\n",
        "{}\r\n\r\n",
    ] {
        let peer = Peer::play(vec![vec![send(text), Act::Close]]);
        let broken = client(&peer).call(&start(), LONG).await.unwrap_err();
        let is_wrong = matches!(
            broken,
            ClientError::Broken { .. } | ClientError::Malformed { .. }
        );
        assert!(is_wrong, "{text:?}: {broken:?}");
    }
}

/// Statuses that this API has not got, or not there.
#[tokio::test]
async fn answers_that_are_none_of_the_api() {
    for text in [
        "HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\n{}",
        "HTTP/1.1 302 \r\nLocation: /\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 999 \r\nContent-Length: 0\r\n\r\n",
    ] {
        let peer = Peer::play(vec![vec![send(text)]]);
        let wrong = client(&peer).call(&start(), LONG).await.unwrap_err();
        assert!(
            matches!(wrong, ClientError::Malformed { .. }),
            "{text:?}: {wrong:?}"
        );
    }
    for (answer, told) in [
        (done(), "a status that this API does not have there"),
        (answer(200, "{"), "its body is not what it should be"),
        (
            answer(200, r#"{"id":"vm"}"#),
            "its body is not what it should be",
        ),
        (
            answer(200, &INFO.replace("Not started", "Gone")),
            "unknown variant",
        ),
    ] {
        let peer = Peer::play(vec![vec![answer]]);
        let wrong = client(&peer).get::<InstanceInfo>(LONG).await.unwrap_err();
        assert!(matches!(wrong, ClientError::Malformed { .. }), "{wrong:?}");
        assert!(wrong.to_string().contains(told), "{wrong}");
    }
}

/// Each of these would go on for ever, and costs no more than what is bounded.
#[tokio::test]
async fn answers_without_an_end() {
    let head = "HTTP/1.1 400 \r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = format!("1000\r\n{}\r\n", "a".repeat(4096));
    let peer = Peer::play(vec![vec![send(head), Act::Flood(chunk.into())]]);
    let wrong = client(&peer).call(&start(), LONG).await.unwrap_err();
    assert!(
        wrong.to_string().contains("more than 1048576 bytes"),
        "{wrong}"
    );

    let head = "HTTP/1.1 200 \r\nContent-Length: 99999999999999\r\n\r\n";
    let peer = Peer::play(vec![vec![send(head), Act::Flood(vec![b'a'; 4096])]]);
    let wrong = client(&peer).get::<InstanceInfo>(LONG).await.unwrap_err();
    assert!(
        wrong.to_string().contains("more than 1048576 bytes"),
        "{wrong}"
    );

    for line in ["a: b\r\n", "a"] {
        let flood = Act::Flood(line.repeat(100).into());
        let peer = Peer::play(vec![vec![send("HTTP/1.1 204 \r\n"), flood]]);
        let broken = client(&peer).call(&start(), LONG).await.unwrap_err();
        assert!(
            matches!(broken, ClientError::Broken { .. }),
            "{line:?}: {broken:?}"
        );
    }

    // Interim answers, of which HTTP allows any number: the deadline ends it.
    let flood = Act::Flood(b"HTTP/1.1 100 \r\n\r\n".to_vec());
    let peer = Peer::play(vec![vec![flood]]);
    let silent = client(&peer).call(&start(), SHORT).await.unwrap_err();
    assert!(matches!(silent, ClientError::Silent { .. }), "{silent:?}");
}

#[tokio::test]
async fn silence_ends_with_the_deadline() {
    for before in [
        "",
        "HTTP/1.1 204",
        "HTTP/1.1 400 \r\nContent-Length: 9\r\n\r\n{",
    ] {
        let peer = Peer::play(vec![vec![send(before), Act::Wait]]);
        let silent = client(&peer).call(&start(), SHORT).await.unwrap_err();
        assert!(
            matches!(silent, ClientError::Silent { .. }),
            "{before:?}: {silent:?}"
        );
        assert!(silent.may_have_acted());
    }
}

/// An answer that comes too late is not the next call's.
#[tokio::test]
async fn a_late_answer_is_nobodys() {
    let late = answer(400, r#"{"fault_message":"late"}"#);
    let peer = Peer::play(vec![vec![Act::Wait, late.clone()], vec![done()]]);
    let client = client(&peer);
    let silent = client.call(&start(), SHORT).await.unwrap_err();
    assert!(matches!(silent, ClientError::Silent { .. }), "{silent:?}");
    peer.go_on();
    client.call(&start(), LONG).await.unwrap();
    assert_eq!(peer.connections(), 2);

    // The same where whoever called no longer wants to know.
    let peer = Peer::play(vec![vec![Act::Wait, late], vec![done()]]);
    let client = Client::new(peer.socket(), Version::NEWEST);
    {
        let call = start();
        let mut call = Box::pin(client.call(&call, LONG));
        tokio::select! {
            answer = &mut call => panic!("{answer:?}"),
            () = peer.request() => {}
        }
    }
    peer.go_on();
    client.call(&start(), LONG).await.unwrap();
    assert_eq!(peer.connections(), 2);
}

/// Calls of one client take turns, and each gets its own answer.
#[tokio::test]
async fn calls_take_turns() {
    let refused = |text: &str| vec![answer(400, &format!(r#"{{"fault_message":"{text}"}}"#))];
    let peer = Peer::play(vec![refused("first"), refused("second")]);
    let client = client(&peer);
    let (a, b) = (start(), Call::VmState(VmState::Paused));
    let (a, b) = tokio::join!(client.call(&a, LONG), client.call(&b, LONG));
    let (a, b) = (a.unwrap_err().to_string(), b.unwrap_err().to_string());
    assert_eq!(a, "Firecracker refused PUT /actions (400): first");
    assert_eq!(b, "Firecracker refused PATCH /vm (400): second");
    assert_eq!(peer.connections(), 1);
}

/// Whatever comes, a call ends: well, or with an error that can be shown.
#[test]
fn any_bytes() {
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let fault = r#"{"fault_message":"no"}"#;
    let right = [
        "HTTP/1.1 204 \r\nServer: a\r\n\r\n".to_owned(),
        format!(
            "HTTP/1.1 400 \r\nContent-Length: {}\r\n\r\n{fault}",
            fault.len()
        ),
        format!("HTTP/1.1 400 \r\nTransfer-Encoding: chunked\r\n\r\n16\r\n{fault}\r\n0\r\n\r\n"),
    ];
    let bent = (
        proptest::sample::select(right.to_vec()),
        proptest::collection::vec((any::<u16>(), any::<u8>()), 0..4),
        any::<u16>(),
    );
    let bent = bent.prop_map(|(text, changes, cut)| {
        let mut bytes = text.into_bytes();
        for (place, byte) in changes {
            let place = usize::from(place) % bytes.len();
            bytes[place] = byte;
        }
        let cut = usize::from(cut) % (bytes.len() * 2);
        bytes.truncate(cut.max(1));
        bytes
    });
    let mut runner = TestRunner::new(Config::with_cases(512));
    let outcome = runner.run(&bent, |bytes| {
        runtime.block_on(async {
            let peer = Peer::play(vec![vec![Act::Send(bytes), Act::Close]]);
            if let Err(error) = client(&peer).call(&start(), LONG).await {
                prop_assert!(!matches!(error, ClientError::Silent { .. }), "{}", error);
                let shown = error.to_string();
                prop_assert!(!shown.chars().any(char::is_control), "{:?}", shown);
            }
            Ok(())
        })
    });
    outcome.unwrap();
}
