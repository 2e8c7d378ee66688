//! Functions by the AWS CLI, and by aleph's own.

use crate::world::{World, ran};
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::fs;

/// Debian's: another one may come first in the path.
const AWS: &str = "/usr/bin/aws";

fn aws(world: &World, line: &str) -> Result<Value> {
    let mut command = world.client(AWS);
    // Debian's is of the time before the variable that names an endpoint.
    command.args(["--endpoint-url", &world.endpoint, "lambda"]);
    let said = ran(command.args(line.split_whitespace()))?;
    match said.is_empty() {
        true => Ok(Value::Null),
        false => Ok(serde_json::from_str(&said)?),
    }
}

/// A native function from its making to its end.
pub(crate) fn the_aws_cli(world: &World) -> Result<()> {
    let made = aws(
        world,
        "create-function --function-name cli --runtime provided.al2023 --handler bootstrap \
         --role arn:aws:iam::000000000000:role/any --zip-file fileb://echo.zip --timeout 30",
    )?;
    assert_eq!(made["State"], "Pending");
    aws(world, "wait function-active-v2 --function-name cli")?;
    let done = aws(
        world,
        "invoke --function-name cli --cli-binary-format raw-in-base64-out --log-type Tail \
         --payload {\"a\":[1,2]} out.json",
    )?;
    assert_eq!(done["StatusCode"], 200);
    ensure!(done["LogResult"].is_string(), "{done}");
    let answer = fs::read(world.folder().join("out.json"))?;
    let answer: Value = serde_json::from_slice(&answer)?;
    assert_eq!(answer, json!({ "a": [1, 2] }));
    let failed = aws(
        world,
        "invoke --function-name cli --cli-binary-format raw-in-base64-out \
         --payload {\"error\":\"asked\"} out.json",
    )?;
    assert_eq!(failed["FunctionError"], "Unhandled");
    let answer = fs::read_to_string(world.folder().join("out.json"))?;
    ensure!(answer.contains("asked"), "{answer}");
    aws(world, "delete-function --function-name cli")?;
    let left = aws(world, "list-functions")?;
    assert_eq!(left["Functions"], json!([]));
    Ok(())
}

/// A function from its making to its end, by `aleph fn`.
pub(crate) fn aleph(world: &World) -> Result<()> {
    let daemon = &world.daemon;
    let node = world.folder().join("node.zip").display().to_string();
    let create = ["fn", "create", "hello", "--runtime", "nodejs18.x", "--zip"];
    let how = [&node, "--handler", "index.echo", "-t", "30s", "--wait"];
    let made = daemon.ok(&[&create[..], &how].concat())?;
    assert_eq!(made, "hello");
    let invoke = ["fn", "invoke", "hello", "--payload", r#"{"name":"you"}"#];
    for temperature in ["cold", "hot"] {
        let ran = daemon.aleph(&invoke)?;
        assert_eq!(
            (ran.code, ran.text().as_str()),
            (0, "{\"name\":\"you\"}\n"),
            "{ran:?}"
        );
        ensure!(says_where_time_went(&ran.stderr, temperature), "{ran:?}");
    }
    let ran = daemon.aleph(&[&invoke[..], &["--log", "--quiet"]].concat())?;
    ensure!(ran.stderr.contains("handling "), "{ran:?}");
    ensure!(ran.stderr.contains("\nREPORT RequestId: "), "{ran:?}");
    let update = [
        "fn",
        "update",
        "hello",
        "--handler",
        "index.error",
        "--wait",
    ];
    daemon.ok(&update)?;
    let ran = daemon.aleph(&invoke)?;
    assert_eq!(ran.code, 1, "{ran:?}");
    let error: Value = serde_json::from_slice(&ran.stdout)?;
    assert_eq!(error["errorType"], "TypeError");
    assert_eq!(error["errorMessage"], "as asked");
    ensure!(error["trace"].is_array(), "{error}");
    ensure!(ran.stderr.ends_with(" · failed (Unhandled)\n"), "{ran:?}");
    daemon.ok(&["fn", "rm", "hello"])?;
    Ok(())
}

/// Whether this is `aleph: hot · 3.1 ms (queue 0.1, resume 0, function 2.6)`.
fn says_where_time_went(line: &str, temperature: &str) -> bool {
    let number = |text: &str| text.parse::<f64>().is_ok();
    let parts = || {
        let rest = line.strip_prefix("aleph: ")?.strip_suffix(")\n")?;
        let (first, rest) = rest.split_once(" · ")?;
        let (all, rest) = rest.split_once(" ms (queue ")?;
        let (queue, rest) = rest.split_once(", resume ")?;
        let (resume, function) = rest.split_once(", function ")?;
        let numbers = [all, queue, resume, function].into_iter().all(number);
        Some(first == temperature && numbers)
    };
    parts().unwrap_or(false)
}
