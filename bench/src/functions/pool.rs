//! A runtime of functions in this process, with a real node under it.

use crate::Bench;
use aleph_executor::functions::{
    Code, Concurrency, Deployment, FunctionRuntime, FunctionsConfig, Invocation, Isolation,
    PoolConfig, Runner, Temperature,
};
use aleph_executor::{Node, NodeConfig};
use aleph_testkit::{TestImages, TestRoot, functions};
use aleph_types::{JobId, JobSpec, MiB};
use anyhow::{Context, Result, anyhow, ensure};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What functions run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Runtime {
    /// A program with the crate `lambda_runtime`.
    Native,
}

/// A function that is ready.
pub(super) struct Pool {
    _root: TestRoot,
    node: Node,
    runtime: FunctionRuntime,
    deployment: Arc<Deployment>,
    echo: aleph_executor::Executor,
}

impl Pool {
    /// Deploys the function, with a clone for each event or with one that stays hot.
    pub(super) async fn open(bench: &Bench, runtime: Runtime, cold: bool) -> Result<Self> {
        let root = TestRoot::new()?;
        let (zip, name, handler) = match runtime {
            Runtime::Native => (functions::echo_zip()?, "provided.al2023", "bootstrap"),
        };
        let task = aleph_image::task::build(&zip, &root.path().join("tasks"))?;
        let images = Arc::new(TestImages::new(&root)?);
        let node = Node::open(NodeConfig::new(root.paths()?), images).await?;
        let config = FunctionsConfig {
            pool: PoolConfig {
                linger: Duration::from_secs(3600),
                spares: 0,
                ..PoolConfig::default()
            },
            ..FunctionsConfig::default()
        };
        let deployment = Arc::new(Deployment {
            account: "default".into(),
            function: "echo".into(),
            version: "1".into(),
            code: Code::Task {
                image: task.path,
                digest: task.digest,
                runtime: name.into(),
            },
            handler: handler.into(),
            env: [].into(),
            command: Vec::new(),
            memory: MiB(128),
            timeout: Duration::from_secs(30),
            temporary: MiB(512),
            isolation: if cold {
                Isolation::Invocation
            } else {
                Isolation::Deployment
            },
        });
        let runtime = FunctionRuntime::open(&node, config);
        let prepared = runtime.prepare(Arc::clone(&deployment)).await;
        prepared.map_err(|problem| anyhow!("{}", problem.message))?;
        Ok(Self {
            _root: root,
            node,
            runtime,
            deployment,
            echo: bench.executor().await?,
        })
    }

    /// Runs an event through it; gives how long that took, and what served it.
    pub(super) async fn invoke(&self) -> Result<(Duration, Temperature)> {
        let began = Instant::now();
        let invocation = Invocation {
            request_id: "8476a536-e9f4-11e8-9739-2dfe598c3fcd".into(),
            payload: r#"{"name":"you"}"#.into(),
            arn: "arn:aws:lambda:us-east-1:000000000000:function:echo".into(),
            client_context: None,
            trace: None,
        };
        let deployment = Arc::clone(&self.deployment);
        let run = self
            .runtime
            .invoke(deployment, Concurrency::default(), invocation);
        let run = run.await?;
        let took = began.elapsed();
        ensure!(
            run.error.is_none() && run.payload == r#"{"name":"you"}"#,
            "the function failed: {}",
            String::from_utf8_lossy(&run.payload)
        );
        Ok((took, run.temperature))
    }

    /// The same where it has to be served so.
    pub(super) async fn invoke_at(&self, wanted: Temperature) -> Result<Duration> {
        let (took, temperature) = self.invoke().await?;
        ensure!(temperature == wanted, "it was {temperature:?}");
        Ok(took)
    }

    /// Echoes over an agent's channel, in milliseconds.
    pub(super) async fn echoes(&self, rounds: usize) -> Result<Vec<f64>> {
        let root = TestRoot::new()?;
        let boot = self.boot(&root)?;
        let job = JobSpec::new("busybox", vec!["true".into()]);
        let vm = self.echo.create(JobId::random(), &job, boot)?;
        vm.start(None).await?;
        vm.running().await?;
        let agent = vm.agent()?;
        for _ in 0..20 {
            agent.ping().await?;
        }
        let mut echoes = Vec::new();
        for _ in 0..rounds {
            let began = Instant::now();
            agent.ping().await?;
            echoes.push(began.elapsed().as_secs_f64() * super::MILLI);
        }
        vm.kill().await?;
        vm.destroy().await?;
        Ok(echoes)
    }

    fn boot(&self, root: &TestRoot) -> Result<aleph_executor::Boot> {
        let (bundle, image) = (root.bundle()?, root.busybox()?);
        let open = |path: &std::path::Path| std::fs::File::open(path);
        Ok(aleph_executor::Boot {
            kernel: open(bundle.vmlinux().context("no uncompressed kernel")?)?,
            initrd: open(bundle.initrd())?,
            filesystem: image.filesystem().to_string(),
            image: open(&image.rootfs())?,
        })
    }

    pub(super) async fn close(self) -> Result<()> {
        self.runtime.shutdown().await;
        self.node.shutdown().await;
        Ok(())
    }
}
