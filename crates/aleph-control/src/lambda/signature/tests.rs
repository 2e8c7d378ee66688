use super::*;

/// As botocore 1.44 signed it; see `tests/lambda_boto3.rs` for a client that signs now.
fn signed() -> (Uri, HeaderMap) {
    let uri = "/2015-03-31/functions/arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Afunction\
               %3Ahello/invocations?Qualifier=%24LATEST"
        .parse()
        .unwrap();
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("host", "127.0.0.1:9000"),
        ("x-amz-date", "20261128T170000Z"),
        ("x-amz-log-type", "Tail"),
        ("authorization", SIGNATURE),
    ] {
        headers.insert(name, value.parse().unwrap());
    }
    (uri, headers)
}

const SIGNATURE: &str = "AWS4-HMAC-SHA256 \
    Credential=AKIDEXAMPLE/20261128/us-east-1/lambda/aws4_request, \
    SignedHeaders=host;x-amz-date;x-amz-log-type, \
    Signature=abca90abe6d21d4bde5472ce3e6e2ffca6a5019ef16a5f8f8e947216a5367845";

fn keys() -> Keys {
    Keys::new(vec![Credential {
        access_key_id: "AKIDEXAMPLE".into(),
        secret_access_key: Secret::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
        account: "team".into(),
    }])
}

fn check(headers: &HeaderMap, uri: &Uri, body: &[u8], now: &str) -> Result<String, LambdaError> {
    let keys = keys();
    let claim = keys.claim(uri, headers, ("us-east-1", "lambda"), now.parse().unwrap())?;
    claim.verify(&Method::POST, uri, headers, body)
}

const NOW: &str = "2026-11-28T17:05:00Z";

#[test]
fn what_botocore_signs_is_right() {
    let (uri, headers) = signed();
    assert_eq!(check(&headers, &uri, b"{\"a\": 1}", NOW).unwrap(), "team");
}

#[test]
fn any_change_makes_it_wrong() {
    let (uri, headers) = signed();
    let refused = |headers: &HeaderMap, uri: &Uri, body: &[u8], now: &str| {
        check(headers, uri, body, now).unwrap_err().name()
    };
    assert_eq!(
        refused(&headers, &uri, b"{}", NOW),
        "InvalidSignatureException"
    );
    let other = "/2015-03-31/functions/hello/invocations".parse().unwrap();
    let body = b"{\"a\": 1}";
    assert_eq!(
        refused(&headers, &other, body, NOW),
        "InvalidSignatureException"
    );
    let late = "2026-11-28T17:15:01Z";
    assert_eq!(
        refused(&headers, &uri, body, late),
        "InvalidSignatureException"
    );
    let mut changed = headers.clone();
    changed.insert("x-amz-log-type", "None".parse().unwrap());
    assert_eq!(
        refused(&changed, &uri, body, NOW),
        "InvalidSignatureException"
    );
    for (from, to, name) in [
        ("AKIDEXAMPLE", "AKIDOTHER", "UnrecognizedClientException"),
        ("us-east-1", "eu-west-1", "InvalidSignatureException"),
        ("host;x-amz-date", "x-amz-date", "InvalidSignatureException"),
        ("AWS4-HMAC", "AWS3-HMAC", "IncompleteSignatureException"),
    ] {
        let mut changed = headers.clone();
        let value = SIGNATURE.replace(from, to).parse().unwrap();
        changed.insert(AUTHORIZATION, value);
        assert_eq!(refused(&changed, &uri, body, NOW), name, "{to}");
    }
    let mut none = headers;
    none.remove(AUTHORIZATION);
    assert_eq!(
        refused(&none, &uri, body, NOW),
        "MissingAuthenticationTokenException"
    );
}

#[test]
fn paths_are_normal_without_empty_segments() {
    for (path, expected) in [
        ("/", "/"),
        ("//", "/"),
        ("/a/b", "/a/b"),
        ("/a//b/", "/a/b/"),
    ] {
        assert_eq!(normal(path), expected, "{path}");
    }
}

#[test]
fn a_signature_for_one_path_opens_no_other() {
    let (_, headers) = signed();
    let keys = keys();
    let uri: Uri = "/lambda-url/hello/x".parse().unwrap();
    let place = ("us-east-1", "lambda");
    let mut claim = keys
        .claim(&uri, &headers, place, NOW.parse().unwrap())
        .unwrap();
    // What a client signs for `hello`, which a client of no account could have changed on its way.
    let canonical = claim.canonical(
        (&Method::GET, uri.path(), None),
        &headers,
        &hex(&Sha256::digest(b"")),
    );
    let hash = hex(&Sha256::digest(canonical.as_bytes()));
    let text = format!("AWS4-HMAC-SHA256\n{}\n{}\n{hash}", claim.time, claim.scope);
    let mut key = format!("AWS4{}", claim.credential.secret_access_key.0).into_bytes();
    for part in claim.scope.split('/') {
        key = mac(&key, part.as_bytes());
    }
    claim.signature = mac(&key, text.as_bytes());
    let check = |path: &str| claim.verify(&Method::GET, &path.parse().unwrap(), &headers, b"");
    assert_eq!(check("/lambda-url/hello/x").unwrap(), "team");
    assert_eq!(check("/lambda-url/hello//x").unwrap(), "team");
    for path in [
        "/lambda-url/admin/../hello/x",
        "/lambda-url/./hello/x",
        "/lambda-url/hello/x/.",
    ] {
        assert!(check(path).is_err(), "{path}");
    }
    for path in [
        "/a/../b",
        "/a/%2e%2E/b",
        "/a/.%2e",
        "/./a",
        "/%2E",
        "/a%2f..%2fb",
        "/a%5c..",
    ] {
        assert!(has_dots(path), "{path}");
    }
    for path in ["/", "/a/b.c/..d/...", "/a//b", "/%2e%2e%2e"] {
        assert!(!has_dots(path), "{path}");
    }
}

#[test]
fn queries_are_sorted_and_encoded_in_one_way() {
    assert_eq!(
        canonical_query("b=2&a=%7e+x&a=$", false),
        "a=%24&a=~%20x&b=2"
    );
    assert_eq!(canonical_query("List=ALL&flag", false), "List=ALL&flag=");
    assert_eq!(canonical_query("", false), "");
}

#[test]
fn a_secret_is_not_shown() {
    let shown = format!("{:?}", keys());
    assert!(!shown.contains("wJalr"), "{shown}");
}

/// As botocore's `SigV4QueryAuth` signed it, for an hour.
const PRESIGNED: &str = "/a/b?x=1&X-Amz-Algorithm=AWS4-HMAC-SHA256&\
    X-Amz-Credential=AKIDEXAMPLE%2F20261128%2Fus-east-1%2Flambda%2Faws4_request&\
    X-Amz-Date=20261128T170000Z&X-Amz-Expires=3600&X-Amz-SignedHeaders=host&\
    X-Amz-Signature=c80521e31a6cfa703efa5cdbe20504e21051ef339ac39a8330b3eac1d3bfcca0";

#[test]
fn a_url_that_was_signed_is_good_for_its_time() {
    let uri: Uri = PRESIGNED.parse().unwrap();
    let mut headers = HeaderMap::new();
    headers.insert(
        "host",
        "abc.lambda-url.us-east-1.localhost:9000".parse().unwrap(),
    );
    let check = |uri: &Uri, now: &str| {
        let keys = keys();
        let claim = keys.claim(uri, &headers, ("us-east-1", "lambda"), now.parse().unwrap())?;
        claim.verify(&Method::GET, uri, &headers, b"")
    };
    for now in ["2026-11-28T16:50:00Z", NOW, "2026-11-28T18:00:00Z"] {
        assert_eq!(check(&uri, now).unwrap(), "team", "{now}");
    }
    for now in ["2026-11-28T16:44:59Z", "2026-11-28T18:00:01Z"] {
        let error = check(&uri, now).unwrap_err();
        assert_eq!(error.name(), "InvalidSignatureException", "{now}");
    }
    for (from, to, name) in [
        ("x=1", "x=2", "InvalidSignatureException"),
        ("Expires=3600", "Expires=7200", "InvalidSignatureException"),
        (
            "Expires=3600",
            "Expires=604801",
            "IncompleteSignatureException",
        ),
        ("X-Amz-Date", "X-Amz-Data", "IncompleteSignatureException"),
        ("AKIDEXAMPLE", "AKIDOTHER", "UnrecognizedClientException"),
        (
            "X-Amz-Algorithm",
            "X-Amz-Other",
            "MissingAuthenticationTokenException",
        ),
    ] {
        let changed: Uri = PRESIGNED.replace(from, to).parse().unwrap();
        assert_eq!(check(&changed, NOW).unwrap_err().name(), name, "{to}");
    }
}
