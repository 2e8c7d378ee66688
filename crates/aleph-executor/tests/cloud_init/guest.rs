//! Questions to cloud-init's modules, many at once.

use aleph_executor::cloud_init::Seed;
use aleph_testkit::python_with_cloud_init;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use std::io::Write;
use std::process::Stdio;

const PROGRAM: &str = include_str!("guest.py");

/// The answers of one Python to these questions, in their order.
pub(crate) fn ask(questions: &[Value]) -> Vec<Value> {
    let mut python = python_with_cloud_init()
        .unwrap()
        .args(["-c", PROGRAM])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = python.stdin.take().unwrap();
    let text = serde_json::to_vec(questions).unwrap();
    // It reads all before it writes.
    stdin.write_all(&text).unwrap();
    drop(stdin);
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "{:?}", output.status);
    let answers: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answers.len(), questions.len());
    for (answer, question) in answers.iter().zip(questions) {
        assert!(answer.get("failed").is_none(), "{answer}\n{question}");
    }
    answers
}

/// What a guest with this seed would carry out.
pub(crate) fn seed(seed: &Seed) -> Value {
    json!({
        "ask": "seed",
        "user_data": BASE64.encode(seed.user_data.expose()),
        "meta_data": seed.meta_data,
        "vendor_data": seed.vendor_data,
        "network_config": seed.network_config,
    })
}
