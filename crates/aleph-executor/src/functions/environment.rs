//! What a runtime finds in its environment: the contract, and the function's own over it.
//!
//! <https://docs.aws.amazon.com/lambda/latest/dg/configuration-envvars.html>

use super::deployment::{Code, Deployment};
use super::server::PORT;
use std::collections::BTreeMap;

/// The port of the runtime API, on the host's end of the link to a guest.
pub(super) const API_PORT: u16 = 9001;

/// Where a function's code is.
pub(super) const TASK_ROOT: &str = "/var/task";

/// The environment of a deployment, over its image's.
pub(super) fn environment(
    deployment: &Deployment,
    image: &BTreeMap<String, String>,
    region: &str,
) -> BTreeMap<String, String> {
    let name = &deployment.function;
    let runtime = match &deployment.code {
        Code::Task { runtime, .. } => runtime.as_str(),
        Code::Image { .. } => "Image",
    };
    let id = deployment.id();
    let contract = [
        (
            "AWS_LAMBDA_RUNTIME_API",
            format!("{}:{API_PORT}", super::stack::HOST_ADDRESS),
        ),
        ("AWS_LAMBDA_FUNCTION_NAME", name.clone()),
        ("AWS_LAMBDA_FUNCTION_VERSION", deployment.version.clone()),
        (
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
            deployment.memory.0.to_string(),
        ),
        ("AWS_LAMBDA_LOG_GROUP_NAME", format!("/aws/lambda/{name}")),
        (
            "AWS_LAMBDA_LOG_STREAM_NAME",
            format!("[{}]{}", deployment.version, &id.as_str()[..32]),
        ),
        // Every clone begins behind its runtime's initialisation: a runtime that knows hooks runs
        // them before its first event.
        ("AWS_LAMBDA_INITIALIZATION_TYPE", "snap-start".into()),
        ("AWS_EXECUTION_ENV", format!("AWS_Lambda_{runtime}")),
        ("AWS_REGION", region.to_owned()),
        ("AWS_DEFAULT_REGION", region.to_owned()),
        ("_HANDLER", deployment.handler.clone()),
        ("LAMBDA_TASK_ROOT", TASK_ROOT.into()),
        ("LAMBDA_RUNTIME_DIR", "/var/runtime".into()),
        (
            "LD_LIBRARY_PATH",
            "/var/lang/lib:/lib64:/usr/lib64:/var/runtime:/var/runtime/lib:/var/task:\
             /var/task/lib:/opt/lib"
                .into(),
        ),
        (
            "PATH",
            "/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin".into(),
        ),
        ("LANG", "C.UTF-8".into()),
        // Where a function that is an HTTP server listens.
        ("PORT", PORT.to_string()),
        ("TZ", ":UTC".into()),
    ];
    let contract = contract.map(|(name, value)| (name.to_owned(), value));
    // Paths are the image's to say, who it is is not.
    let mut all: BTreeMap<String, String> = contract.clone().into();
    all.extend(image.clone());
    all.extend(
        contract
            .into_iter()
            .filter(|(name, _)| name.starts_with("AWS_") || name == "_HANDLER"),
    );
    let own = deployment.env.clone().into_iter();
    all.extend(own.filter(|(name, _)| !is_reserved(name)));
    all
}

/// Names that a function cannot give a value of its own.
#[must_use]
pub fn is_reserved(name: &str) -> bool {
    matches!(
        name,
        "_HANDLER"
            | "AWS_EXECUTION_ENV"
            | "AWS_REGION"
            | "AWS_DEFAULT_REGION"
            | "AWS_LAMBDA_RUNTIME_API"
            | "AWS_LAMBDA_INITIALIZATION_TYPE"
            | "LAMBDA_TASK_ROOT"
            | "LAMBDA_RUNTIME_DIR"
            | "TZ"
    ) || name.starts_with("AWS_LAMBDA_FUNCTION_")
        || name.starts_with("AWS_LAMBDA_LOG_")
}

#[cfg(test)]
mod tests {
    use super::super::deployment::Isolation;
    use super::*;
    use aleph_types::MiB;
    use std::time::Duration;

    #[test]
    fn a_function_says_all_but_who_it_is() {
        let own = [
            ("A", "own"),
            ("PATH", "/own"),
            ("AWS_REGION", "own"),
            ("TZ", "own"),
        ];
        let deployment = Deployment {
            account: "a".into(),
            function: "hello".into(),
            version: "7".into(),
            code: Code::Task {
                image: "/x".into(),
                digest: "sha256:0".into(),
                runtime: "python3.11".into(),
            },
            handler: "app.handler".into(),
            env: own.map(|(n, v)| (n.to_owned(), v.to_owned())).into(),
            command: Vec::new(),
            memory: MiB(128),
            timeout: Duration::from_secs(3),
            temporary: MiB(512),
            isolation: Isolation::Deployment,
        };
        let image = [("LANG", "image"), ("AWS_LAMBDA_FUNCTION_NAME", "image")];
        let image = image.map(|(n, v)| (n.to_owned(), v.to_owned())).into();
        let all = environment(&deployment, &image, "us-east-1");
        for (name, value) in [
            ("A", "own"),
            ("PATH", "/own"),
            ("AWS_REGION", "us-east-1"),
            ("PORT", "8080"),
            ("TZ", ":UTC"),
            ("LANG", "image"),
            ("AWS_LAMBDA_FUNCTION_NAME", "hello"),
            ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128"),
            ("AWS_EXECUTION_ENV", "AWS_Lambda_python3.11"),
            ("_HANDLER", "app.handler"),
        ] {
            assert_eq!(all[name], value, "{name}");
        }
    }
}
