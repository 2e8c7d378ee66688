use super::*;
use axum::http::HeaderName;
use serde_json::json;

const FOUR: [(&str, &str); 4] = [
    ("ce-id", "1"),
    ("ce-source", "/a"),
    ("ce-specversion", "1.0"),
    ("ce-type", "t"),
];

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
        headers.append(name.parse::<HeaderName>().unwrap(), value);
    }
    headers
}

fn in_binary(more: &[(&str, &str)], body: &[u8]) -> Result<Value, Wrong> {
    let headers = headers(&[&FOUR, more].concat());
    match read(&headers, &Bytes::copy_from_slice(body))? {
        Sent::One(event) => Ok(serde_json::from_slice(&event.json).unwrap()),
        Sent::Batch(_) => panic!("a batch"),
    }
}

fn in_json(kind: &str, body: &str) -> Result<Sent, Wrong> {
    let headers = headers(&[("content-type", kind)]);
    read(&headers, &Bytes::copy_from_slice(body.as_bytes()))
}

#[test]
fn headers_become_attributes() {
    let event = in_binary(
        &[
            ("ce-subject", "Euro%20%E2%82%AC%20%F0%9F%98%80 %25"),
            ("ce-quoted", "\"a \\\"b\\\" %22\""),
            ("ce-sequence", "7"),
            ("ce-time", "2026-11-28T20:00:00Z"),
            ("x-other", "no"),
        ],
        b"",
    );
    let all = json!({
        "specversion": "1.0", "id": "1", "source": "/a", "type": "t",
        "subject": "Euro € 😀 %", "quoted": "a \"b\" \"", "sequence": "7",
        "time": "2026-11-28T20:00:00Z",
    });
    assert_eq!(event.unwrap(), all);
}

#[test]
fn data_is_what_its_type_says() {
    let kind = |kind: &'static str| [("content-type", kind)];
    let event = in_binary(&kind("application/json"), b"{\"n\": 1.10}").unwrap();
    assert_eq!(event["data"], json!({"n": 1.10}));
    assert_eq!(event["datacontenttype"], "application/json");
    let event = in_binary(&kind("application/ld+json; charset=utf-8"), b"[1]").unwrap();
    assert_eq!(event["data"], json!([1]));
    let event = in_binary(&kind("text/plain"), "ü".as_bytes()).unwrap();
    assert_eq!(event["data"], "ü");
    for (more, body) in [
        (&kind("text/plain")[..], &b"\xff"[..]),
        (&kind("application/octet-stream")[..], &b"a"[..]),
        (&[][..], &b"a"[..]),
    ] {
        let event = in_binary(more, body).unwrap();
        assert_eq!(event["data_base64"], BASE64_STANDARD.encode(body));
        assert!(event.get("data").is_none());
    }
    // Numbers are not read and written anew.
    let big = b"12345678901234567890123456789.10";
    let headers = headers(&[&FOUR[..], &kind("application/json")].concat());
    let Ok(Sent::One(event)) = read(&headers, &Bytes::from_static(big)) else {
        panic!("no event");
    };
    let text = String::from_utf8(event.json.to_vec()).unwrap();
    assert!(
        text.ends_with(",\"data\":12345678901234567890123456789.10}")
            || text.contains("\"data\":12345678901234567890123456789.10"),
        "{text}"
    );
}

#[test]
fn an_event_in_json_is_given_on_as_it_is() {
    let sent = r#" {"specversion":"1.0","id":"1","source":"/a","type":"t","n":5,"yes":true,
        "subject":null,"traceparent":"00-x","data":{"x":[1.50]}} "#;
    let kind = "application/CloudEvents+json; charset=UTF-8";
    let Ok(Sent::One(event)) = in_json(kind, sent) else {
        panic!("no event");
    };
    assert_eq!(event.json, sent);
    assert_eq!((&*event.id, &*event.source), ("1", "/a"));
    assert_eq!(event.traceparent.as_deref(), Some("00-x"));
    let batch = format!("[{sent}, {}]", sent.replace("\"1\"", "\"2\""));
    let Ok(Sent::Batch(events)) = in_json(BATCH, &batch) else {
        panic!("no batch");
    };
    assert_eq!(events[0].json, sent.trim());
    assert_eq!(events[1].id, "2");
    assert_eq!(in_json(BATCH, "[]"), Ok(Sent::Batch(Vec::new())));
}

#[test]
fn what_is_wrong_is_said() {
    let said = |result: Result<Sent, Wrong>| result.unwrap_err().to_string();
    let one = |more: &str| {
        let event = r#"{"specversion":"1.0","id":"1","source":"/a","type":"t""#;
        said(in_json(STRUCTURED, &format!("{event}{more}}}")))
    };
    for (more, about) in [
        (r#","id":"""#, "\"id\" is missing"),
        (r#","type":null"#, "\"type\" is missing"),
        (r#","type":1"#, "\"type\" has a value"),
        (r#","specversion":"0.3""#, "0.3"),
        (r#","time":"yesterday""#, "RFC 3339"),
        (r#","myExt":"x""#, "\"myExt\" is no name"),
        (r#","ext":{"a":1}"#, "\"ext\" has a value"),
        (r#","ext":1.5"#, "\"ext\" has a value"),
        (r#","ext":"a\u0000""#, "control"),
        (r#","data_base64":"%""#, "base64"),
        (r#","data":1,"data_base64":"YQ==""#, "not both"),
    ] {
        let said = one(more);
        assert!(said.contains(about), "{more}: {said}");
    }
    assert!(said(in_json(STRUCTURED, "[]")).contains("no object"));
    assert!(said(in_json(BATCH, "{}")).contains("no array"));
    let batch = r#"[{"specversion":"1.0","id":"1","source":"/a","type":"t"}, 5]"#;
    assert!(said(in_json(BATCH, batch)).starts_with("Event 1 of the batch: "));
    let avro = in_json("application/cloudevents+avro", "");
    assert!(matches!(avro, Err(Wrong::Format(_))), "{avro:?}");
    assert!(said(in_json("application/json", "{}")).contains("no event"));
    for (header, value) in [
        ("ce-id", "2"),
        ("ce-x", "%ff"),
        ("ce-x", "\"open"),
        ("ce-x", "%00"),
        ("ce-my-ext", "x"),
        ("ce-datacontenttype", "text/plain"),
        ("content-type", "application/json"),
    ] {
        let wrong = in_binary(&[(header, value)], b"{");
        assert!(matches!(wrong, Err(Wrong::Event(_))), "{header}: {wrong:?}");
    }
}

#[test]
fn an_event_is_as_long_as_its_json() {
    let long = vec![b'a'; MOST_ASYNCHRONOUS];
    let text = [("content-type", "text/plain")];
    let too_long = in_binary(&text, &long);
    assert!(matches!(too_long, Err(Wrong::TooLong(_))));
    in_binary(&text, &long[..MOST_ASYNCHRONOUS - 200]).unwrap();
    // In base64 it is longer.
    let bytes = in_binary(&[], &long[..MOST_ASYNCHRONOUS - 200]);
    assert!(matches!(bytes, Err(Wrong::TooLong(_))));
}
