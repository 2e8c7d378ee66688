//! A daemon dies before and after it makes a network, and before and after it takes one away. The
//! next one has the job where its user left it, and the host holds what that job has.

use crate::audit::{self, Audit};
use crate::daemon::Daemon;
use crate::support::namespace::{NODE, World};
use crate::support::{LIMIT, Node};
use aleph_testkit::wait_until;
use anyhow::{Context, Result, ensure};
use std::time::Instant;

/// The steps, and where the job is in the end.
const STEPS: [(&str, &str); 4] = [
    ("network.attach:before", "running"),
    ("network.attach:after", "running"),
    ("network.detach:before", "exited"),
    ("network.detach:after", "exited"),
];

#[test]
fn each_step_of_a_network_can_be_the_last() -> Result<()> {
    let (node, world) = (Node::new()?, World::new()?);
    let audit = Audit::new(&node, &world);
    let script = "mkdir /www; echo mine > /www/index.html; exec httpd -f -p 80 -h /www";
    for (point, wanted) in STEPS {
        let mut daemon = Daemon::start(&node, &world, Some(point))?;
        let run = ["run", "-d", "--name", "web", "-p", "8080:80"];
        let image = ["--network", "private:x", "busybox", "sh", "-c", script];
        node.aleph(&[&run[..], &image].concat())?;
        if wanted == "exited" {
            answers(&world);
            node.aleph(&["stop", "-t", "0", "web"])?;
        }
        ensure!(
            daemon.died_by(Instant::now() + LIMIT)?,
            "{point} never came"
        );
        daemon.kill()?;

        daemon = Daemon::start(&node, &world, None)?;
        wait_until(point, LIMIT, || {
            let ended = node.aleph(&["inspect", "web"]).ok()?;
            let job: serde_json::Value = serde_json::from_slice(&ended.stdout).ok()?;
            (job[0]["state"] == wanted).then_some(())
        });
        audit.settle().with_context(|| format!("after {point}"))?;
        match wanted {
            "running" => answers(&world),
            _ => ensure!(world.get(&world.outside, &format!("{NODE}:8080")).is_none()),
        }
        let removed = node.aleph(&["rm", "-f", "web"])?;
        ensure!(removed.code == 0, "{removed:?}");
        audit
            .settle()
            .with_context(|| format!("at the end of {point}"))?;
        daemon.stop(&node)?;
        audit::nothing_left(&world)?;
    }
    Ok(())
}

fn answers(world: &World) {
    let address = format!("{NODE}:8080");
    wait_until("the job's page", LIMIT, || {
        world
            .get(&world.outside, &address)
            .filter(|page| page == "mine")
    });
}
