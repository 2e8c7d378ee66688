//! Answers with its event; an event with a field of these names has it do something else: `error`
//! (text) fails, `exit` (a number) ends the process, and `stream` answers piece by piece, each of
//! which is a line of its number in `size` bytes:
//!
//! ```json
//! {"stream": {"pieces": 3, "size": 10, "exit": 7}}
//! ```
//! With `exit` the process ends behind the last piece, before the end of the answer.

use lambda_runtime::streaming::{Body, Response, channel};
use lambda_runtime::{Error, FunctionResponse, LambdaEvent, run, service_fn};
use serde_json::Value;

type Answer = FunctionResponse<Value, Body>;

async fn answer(event: LambdaEvent<Value>) -> Result<Answer, Error> {
    let (payload, _) = event.into_parts();
    if let Some(message) = payload.get("error").and_then(Value::as_str) {
        return Err(message.into());
    }
    if let Some(code) = payload.get("exit").and_then(Value::as_i64) {
        exit(code);
    }
    if let Some(wanted) = payload.get("stream") {
        return Ok(Answer::StreamingResponse(stream(wanted)));
    }
    Ok(Answer::BufferedResponse(payload))
}

fn stream(wanted: &Value) -> Response<Body> {
    let number = |name: &str| wanted.get(name).and_then(Value::as_u64);
    let (pieces, size) = (number("pieces").unwrap_or(1), number("size").unwrap_or(10));
    let code = wanted.get("exit").and_then(Value::as_i64);
    let (mut sender, body) = channel();
    tokio::spawn(async move {
        for piece in 0..pieces {
            let width = usize::try_from(size.saturating_sub(1)).unwrap_or(0);
            let line = format!("{piece:>width$}\n");
            if sender.send_data(line.into()).await.is_err() {
                return;
            }
        }
        if let Some(code) = code {
            // What was sent goes out first, on a busy host too.
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            exit(code);
        }
    });
    Response::from(body)
}

fn exit(code: i64) -> ! {
    std::process::exit(i32::try_from(code).unwrap_or(255));
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    run(service_fn(answer)).await
}
