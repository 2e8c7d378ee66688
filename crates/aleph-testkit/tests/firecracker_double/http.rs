//! HTTP, byte for byte.

use crate::double::{Double, LIMIT, read_reply};
use anyhow::Result;
use std::io::{Read, Write};

const TAIL: &str = "\nAll previous unanswered requests will be dropped.\" }";

#[test]
fn responses_have_no_reason_and_these_headers() -> Result<()> {
    let double = Double::start("1.16.1")?;
    let told = double.ask("GET", "/version", None)?;
    assert_eq!(
        told.head,
        "HTTP/1.1 200 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\
         Content-Type: application/json\r\nContent-Length: 32\r\n\r\n"
    );
    assert_eq!(told.body, r#"{"firecracker_version":"1.16.1"}"#);
    let done = double.ask_text(
        "PUT",
        "/machine-config",
        Some(r#"{"vcpu_count":1,"mem_size_mib":128}"#),
    )?;
    let empty = "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n";
    assert_eq!(done.head, empty);
    // What is deprecated is said where it is refused, too.
    let body = r#"{"vcpu_count":0,"mem_size_mib":128,"cpu_template":"T2"}"#;
    let refused = double.ask_text("PUT", "/machine-config", Some(body))?;
    assert!(refused.head.starts_with(
        "HTTP/1.1 400 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\nDeprecation: true\r\n"
    ));
    let info = double.ask("GET", "/", None)?;
    assert_eq!(
        info.body,
        r#"{"id":"test","state":"Not started","vmm_version":"1.16.1","app_name":"Firecracker"}"#
    );
    Ok(())
}

#[test]
fn what_is_no_request_is_refused_in_what_is_no_json() -> Result<()> {
    let long = "x".repeat(1100);
    let cases = [
        (
            "1.16.1",
            "POST / HTTP/1.1\r\n\r\n".to_owned(),
            "Invalid HTTP Method: Unsupported HTTP method.",
        ),
        (
            "1.15.1",
            "DELETE /drives/a HTTP/1.1\r\n\r\n".to_owned(),
            "Invalid HTTP Method: Unsupported HTTP method.",
        ),
        (
            "1.16.1",
            "GET / HTTP/2\r\n\r\n".to_owned(),
            "Invalid HTTP Version: Unsupported HTTP version.",
        ),
        (
            "1.16.1",
            "GET  HTTP/1.1\r\n\r\n".to_owned(),
            "Invalid URI: Empty URI not allowed.",
        ),
        ("1.16.1", "nonsense\r\n\r\n".to_owned(), "Invalid request."),
        (
            "1.16.1",
            format!("GET /{long} HTTP/1.1\r\n\r\n"),
            "Invalid request.",
        ),
        (
            "1.16.1",
            "GET / HTTP/1.1\r\nnone\r\n\r\n".to_owned(),
            "Invalid header. Reason: Header is incorrectly formatted. Key: none",
        ),
        (
            "1.16.1",
            "PUT /mmds HTTP/1.1\r\nContent-Length: 51201\r\n\r\n".to_owned(),
            "Request payload with size 51201 is larger than the limit of 51200 allowed by server.",
        ),
    ];
    for (version, request, why) in cases {
        let double = Double::start(version)?;
        let mut stream = double.connect()?;
        stream.write_all(request.as_bytes())?;
        let reply = read_reply(&mut stream)?;
        assert_eq!(reply.status, 400, "{request}");
        assert_eq!(
            reply.body,
            format!("{{ \"error\": \"{why}{TAIL}"),
            "{request}"
        );
    }
    Ok(())
}

#[test]
fn the_limit_of_bodies_is_an_option() -> Result<()> {
    let double = Double::start_with("1.13.2", &["--http-api-max-payload-size", "20"])?;
    let reply = double.ask_text("PUT", "/mmds", Some(r#"{"a":"bcdefghijklmnop"}"#))?;
    assert!(
        reply
            .body
            .contains("size 23 is larger than the limit of 20"),
        "{reply:?}"
    );
    // The store's own limit follows it, unless it is said.
    let double = Double::start_with("1.13.2", &["--mmds-size-limit", "20"])?;
    let reply = double.ask_text("PUT", "/mmds", Some(r#"{"a":"bcdefghijklmnop"}"#))?;
    assert_eq!(reply.status, 413);
    assert_eq!(
        reply.fault()?,
        "MMDS limit exceeded error: The MMDS patch request doesn't fit."
    );
    Ok(())
}

#[test]
fn requests_come_in_pieces_and_in_rows_on_one_connection() -> Result<()> {
    let double = Double::start("1.16.1")?;
    let mut stream = double.connect()?;
    for piece in ["GET /ver", "sion HTTP/1.1\r\nConnection: close\r", "\n\r\n"] {
        stream.write_all(piece.as_bytes())?;
    }
    assert_eq!(read_reply(&mut stream)?.status, 200);
    let two = "PUT /mmds HTTP/1.1\r\nContent-Length: 7\r\n\r\n{\"a\":1}GET /mmds HTTP/1.0\r\n\r\n";
    stream.write_all(two.as_bytes())?;
    assert_eq!(read_reply(&mut stream)?.status, 204);
    assert_eq!(read_reply(&mut stream)?.body, r#"{"a":1}"#);
    // A body that is announced piece by piece is none.
    stream.write_all(b"PUT /mmds HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    assert_eq!(read_reply(&mut stream)?.fault()?, "Empty PUT request.");
    stream.write_all(b"PUT /mmds HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")?;
    assert_eq!(read_reply(&mut stream)?.status, 100);
    stream.write_all(b"{}")?;
    assert_eq!(read_reply(&mut stream)?.status, 204);
    Ok(())
}

#[test]
fn the_eleventh_connection_is_sent_away() -> Result<()> {
    let double = Double::start("1.16.1")?;
    // The one that the start waited with may still be noticed to be gone.
    let mut held = Vec::new();
    for _ in 0..10 {
        let mut stream = double.connect()?;
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
        assert_eq!(read_reply(&mut stream)?.status, 200);
        held.push(stream);
    }
    let mut text = String::new();
    double.connect()?.read_to_string(&mut text)?;
    assert_eq!(
        text,
        "HTTP/1.1 503\r\nServer: Firecracker API\r\nConnection: close\r\nContent-Length: 40\r\n\r\n\
         { \"error\": \"Too many open connections\" }"
    );
    // One that ends makes room.
    held.pop();
    aleph_testkit::wait_until("room", LIMIT, || {
        let mut stream = double.connect().ok()?;
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").ok()?;
        read_reply(&mut stream)
            .ok()
            .filter(|reply| reply.status == 200)
    });
    Ok(())
}
