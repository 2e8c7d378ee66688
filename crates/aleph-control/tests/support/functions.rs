//! A daemon that keeps functions, over a runner without VMs.

use super::{Client, Server};
use aleph_control::Daemon;
use aleph_control::config::Config;
use aleph_control::lambda::{FunctionParts, Task, TaskBuilder};
use aleph_executor::Node;
use aleph_executor::functions::Runner;
use aleph_testkit::{NoImages, ScriptedDriver, ScriptedRunner, TestRoot};
use aleph_types::{ErrorClass, Problem};
use anyhow::{Context, Result};
use std::path::Path;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Takes whatever begins as a zip archive does, as it is.
pub struct PlainTasks;

impl TaskBuilder for PlainTasks {
    fn build(&self, zip: &[u8], into: &Path) -> Result<Task, Problem> {
        let problem = |class, message: String| Problem {
            class,
            code: "task".into(),
            message,
            advice: None,
        };
        if !zip.starts_with(b"PK") {
            let message = "Could not unzip uploaded file. Please check your file.";
            return Err(problem(ErrorClass::Invalid, message.into()));
        }
        let name = zip
            .iter()
            .fold(7_u64, |n, b| n.wrapping_mul(31) + u64::from(*b));
        let image = into.join(format!("{name:016x}.img"));
        std::fs::write(&image, zip)
            .map_err(|error| problem(ErrorClass::Internal, error.to_string()))?;
        Ok(Task {
            image,
            digest: format!("{name:016x}"),
        })
    }
}

/// A daemon with its runner.
pub struct Lambda {
    pub server: Server,
    pub runner: Arc<ScriptedRunner>,
    /// Where clients of AWS Lambda come in.
    pub client: Client,
    pub endpoint: String,
}

/// The configuration of a test's daemon that listens for clients of functions.
pub fn config(root: &TestRoot) -> Config {
    let mut config = super::config(root);
    config.functions.listen = Some(([127, 0, 0, 1], 0).into());
    config
}

impl Lambda {
    pub async fn start(config: &Config, runner: Arc<ScriptedRunner>) -> Result<Self> {
        let driver = ScriptedDriver::new([]);
        let node = Node::with_driver(config.node_config()?, Arc::new(NoImages), driver).await?;
        let parts = FunctionParts {
            runner: Arc::clone(&runner) as Arc<dyn Runner>,
            tasks: Arc::new(PlainTasks),
        };
        let daemon = Box::pin(Daemon::with_functions(config, node, parts)).await?;
        let address = daemon.functions_address().context("it does not listen")?;
        let (stop, stopped) = oneshot::channel::<()>();
        let server = Server {
            socket: daemon.socket().to_owned(),
            address: daemon.address(),
            stop,
            running: tokio::spawn(daemon.run(async move {
                let _ = stopped.await;
            })),
        };
        Ok(Self {
            server,
            runner,
            client: Client::plain(address),
            endpoint: format!("http://{address}"),
        })
    }
}
