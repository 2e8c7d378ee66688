//! Commands in a running VM.

use crate::Bench;
use crate::row::Row;
use aleph_executor::guest::ExecRequest;
use aleph_types::{JobId, JobSpec};
use anyhow::Result;
use std::time::Instant;

const ROUNDS: usize = 300;
const MICRO: f64 = 1e6;

pub(crate) fn exec(bench: &Bench) -> Result<Vec<Row>> {
    bench.runtime.block_on(async {
        let executor = bench.executor().await?;
        let job = JobSpec::new("busybox", vec!["true".into()]);
        let vm = executor.create(JobId::random(), &job, bench.open_boot()?)?;
        vm.start(None).await?;
        vm.running().await?;
        let agent = vm.agent()?;
        let request = ExecRequest::new(["/bin/true"]);
        for _ in 0..20 {
            agent.ping().await?;
            vm.exec(&request)?.collect().await?;
        }
        let (mut echo, mut exec) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let began = Instant::now();
            agent.ping().await?;
            echo.push(began.elapsed().as_secs_f64() * MICRO);
            let began = Instant::now();
            vm.exec(&request)?.collect().await?;
            exec.push(began.elapsed().as_secs_f64() * MICRO);
        }
        let mut by_shell = Vec::new();
        let count = "i=0; while [ $i -lt 100 ]; do /bin/true; i=$((i+1)); done";
        for _ in 0..5 {
            let began = Instant::now();
            vm.exec(&ExecRequest::new(["sh", "-c", count]))?
                .collect()
                .await?;
            by_shell.push(began.elapsed().as_secs_f64() * MICRO / 100.0);
        }
        vm.kill().await?;
        vm.destroy().await?;
        Ok(vec![
            Row::new("echo over the agent's channel", "µs", &echo),
            Row::new(
                "exec round trip: /bin/true, request to exit status",
                "µs",
                &exec,
            )
            .against("echo over the same channel", &echo),
            Row::new("exec round trip: the same figure", "µs", &exec)
                .against("/bin/true by a shell in the guest, mean of 100", &by_shell),
        ])
    })
}
