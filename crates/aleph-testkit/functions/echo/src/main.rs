//! Answers with its event; an event with a field of these names has it do something else.

use lambda_runtime::{Error, LambdaEvent, run, service_fn};
use serde_json::Value;

async fn answer(event: LambdaEvent<Value>) -> Result<Value, Error> {
    let (payload, _) = event.into_parts();
    if let Some(message) = payload.get("error").and_then(Value::as_str) {
        return Err(message.into());
    }
    if let Some(code) = payload.get("exit").and_then(Value::as_i64) {
        std::process::exit(i32::try_from(code).unwrap_or(255));
    }
    Ok(payload)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    run(service_fn(answer)).await
}
