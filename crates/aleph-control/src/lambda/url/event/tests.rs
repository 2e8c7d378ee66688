use super::*;
use axum::http::Request;
use serde_json::{Value, json};

const TRACE: &str = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8";

fn made(
    request: axum::http::request::Builder,
    body: &[u8],
    signer: Option<Signer>,
) -> Result<Value, TooLong> {
    let (parts, ()) = request.body(()).unwrap().into_parts();
    let received = Received {
        path: parts.uri.path(),
        parts: &parts,
        url_id: "abc",
        domain: "abc.lambda-url.us-east-1.localhost",
        request_id: "id",
        trace: Trace::of_xray(TRACE).unwrap(),
        from: Some("::ffff:127.0.0.1".parse().unwrap()),
        port: Some(9000),
        now: "2020-03-12T19:03:58.390Z".parse().unwrap(),
        signer,
    };
    event(received, body).map(|event| serde_json::from_slice(&event).unwrap())
}

#[test]
fn a_request_is_told_as_documented() {
    let request = Request::post("/a%20b//c?p=1&p=2%2C3&q=%C3%BC+x&flag")
        .header("Host", "abc.lambda-url.us-east-1.localhost:9000")
        .header("X-Many", "one")
        .header("X-Many", "two")
        .header("Cookie", "a=1; b=2")
        .header("Cookie", "c=3")
        .header("Connection", "close")
        .header("User-Agent", "agent")
        .header("X-Forwarded-For", "192.0.2.1")
        .header("Content-Type", "application/json; charset=utf-8");
    let event = made(request, "{\"ü\":1}".as_bytes(), None).unwrap();
    let all = json!({
        "version": "2.0", "routeKey": "$default",
        "rawPath": "/a%20b//c", "rawQueryString": "p=1&p=2%2C3&q=%C3%BC+x&flag",
        "cookies": ["a=1", "b=2", "c=3"],
        "headers": {
            "host": "abc.lambda-url.us-east-1.localhost:9000", "x-many": "one,two",
            "cookie": "a=1; b=2; c=3", "user-agent": "agent", "content-type": "application/json; charset=utf-8",
            "x-amzn-trace-id": TRACE, "x-forwarded-for": "192.0.2.1, 127.0.0.1",
            "x-forwarded-proto": "http", "x-forwarded-port": "9000",
        },
        "queryStringParameters": { "p": "1,2,3", "q": "ü x", "flag": "" },
        "requestContext": {
            "accountId": "anonymous", "apiId": "abc",
            "domainName": "abc.lambda-url.us-east-1.localhost", "domainPrefix": "abc",
            "http": {
                "method": "POST", "path": "/a%20b//c", "protocol": "HTTP/1.1",
                "sourceIp": "127.0.0.1", "userAgent": "agent",
            },
            "requestId": "id", "routeKey": "$default", "stage": "$default",
            "time": "12/Mar/2020:19:03:58 +0000", "timeEpoch": 1_584_039_838_390_i64,
        },
        "body": "{\"ü\":1}", "isBase64Encoded": false,
    });
    assert_eq!(event, all);
}

#[test]
fn what_was_not_sent_is_not_there() {
    let event = made(Request::get("/"), b"", None).unwrap();
    for absent in ["body", "cookies", "queryStringParameters"] {
        assert!(event.get(absent).is_none(), "{absent}");
    }
    assert_eq!(event["rawQueryString"], "");
    assert_eq!(event["requestContext"]["http"]["userAgent"], Value::Null);
}

#[test]
fn bodies_that_are_no_text_come_in_base64() {
    let body = |kind: Option<&str>, encoding: Option<&str>, body: &[u8]| {
        let mut request = Request::post("/");
        if let Some(kind) = kind {
            request = request.header("content-type", kind);
        }
        if let Some(encoding) = encoding {
            request = request.header("content-encoding", encoding);
        }
        let event = made(request, body, None).unwrap();
        (event["body"].clone(), event["isBase64Encoded"] == true)
    };
    assert_eq!(body(Some("text/html"), None, b"a"), (json!("a"), false));
    assert_eq!(
        body(Some("application/ld+json"), None, b"1"),
        (json!("1"), false)
    );
    for (kind, encoding, sent) in [
        (None, None, &b"a"[..]),
        (Some("application/x-www-form-urlencoded"), None, b"a=b"),
        (Some("text/plain"), Some("gzip"), b"a"),
        (Some("text/plain"), None, b"\xff"),
    ] {
        let in_base64 = BASE64_STANDARD.encode(sent);
        assert_eq!(
            body(kind, encoding, sent),
            (json!(in_base64), true),
            "{kind:?}"
        );
    }
}

#[test]
fn who_signed_is_told_and_what_with_is_not() {
    let signer = Signer {
        access_key: "AK".into(),
        account_id: "111122223333".into(),
        account: "team".into(),
    };
    let request = Request::get("/").header("authorization", "AWS4-HMAC-SHA256 …");
    let event = made(request, b"", Some(signer)).unwrap();
    assert!(event["headers"].get("authorization").is_none());
    let context = &event["requestContext"];
    assert_eq!(context["accountId"], "111122223333");
    assert_eq!(
        context["authorizer"]["iam"],
        json!({
            "accessKey": "AK", "accountId": "111122223333", "callerId": "AK",
            "cognitoIdentity": null, "principalOrgId": null,
            "userArn": "arn:aws:iam::111122223333:user/team", "userId": "AK",
        })
    );
    let basic = Request::get("/").header("authorization", "Basic x");
    let event = made(basic, b"", None).unwrap();
    assert_eq!(event["headers"]["authorization"], "Basic x");
}

#[test]
fn an_event_that_grows_too_long_is_none() {
    let text = vec![1; MOST_EVENT / 5];
    let request = || Request::post("/").header("content-type", "text/plain");
    assert_eq!(made(request(), &text, None), Err(TooLong));
    assert!(made(request(), &vec![b'a'; MOST_EVENT / 5], None).is_ok());
}
