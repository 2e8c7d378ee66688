//! A host's network of a test's own: a namespace for the node, and one for the world outside, with
//! a cable between them.

use anyhow::{Context, Result, anyhow, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::os::fd::AsFd;
use std::process::{Command, Output, Stdio};

pub(crate) struct World {
    pub(crate) node: String,
    pub(crate) outside: String,
}

/// The node's address on the cable, and that of the world.
pub(crate) const NODE: &str = "192.0.2.1";
pub(crate) const OUTSIDE: &str = "192.0.2.2";
/// The same in IPv6, where a test has it.
pub(crate) const NODE6: &str = "2001:db8:ff::1";
pub(crate) const OUTSIDE6: &str = "2001:db8:ff::2";

impl World {
    pub(crate) fn new() -> Result<Self> {
        let pid = std::process::id();
        let world = Self {
            node: format!("aleph-node-{pid}"),
            outside: format!("aleph-outside-{pid}"),
        };
        let (node, outside) = (&world.node, &world.outside);
        sh(&format!(
            "ip netns add {node}
             ip netns add {outside}
             ip -n {node} link set lo up
             ip -n {node} link add up0 type veth peer name out0 netns {outside}
             ip -n {node} address add {NODE}/24 dev up0
             ip -n {node} link set up0 up
             ip -n {node} route add default via {OUTSIDE}
             ip -n {outside} link set lo up
             ip -n {outside} address add {OUTSIDE}/24 dev out0
             ip -n {outside} link set out0 up"
        ))?;
        Ok(world)
    }

    /// Gives the cable IPv6, and the node a way out by it.
    #[allow(dead_code, reason = "each test program uses its own part")]
    pub(crate) fn with_ipv6(self) -> Result<Self> {
        let (node, outside) = (&self.node, &self.outside);
        sh(&format!(
            "ip -n {node} address add {NODE6}/64 dev up0 nodad
             ip -n {node} route add default via {OUTSIDE6}
             ip -n {outside} address add {OUTSIDE6}/64 dev out0 nodad"
        ))?;
        Ok(self)
    }

    /// Runs a command of the shell in a namespace.
    pub(crate) fn run(&self, netns: &str, line: &str) -> Result<Output> {
        let output = Command::new("ip")
            .args(["netns", "exec", netns, "bash", "-c", line])
            .stdin(Stdio::null())
            .output()?;
        Ok(output)
    }

    /// Does something in a namespace, on a thread that ends with it.
    pub(crate) fn within<T: Send>(
        &self,
        netns: &str,
        work: impl FnOnce() -> Result<T> + Send,
    ) -> Result<T> {
        let file = File::open(format!("/run/netns/{netns}"))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                let kind = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(file.as_fd(), kind)?;
                work()
            });
            thread.join().map_err(|_| anyhow!("it panicked"))?
        })
    }

    /// The same as [`World::run`], where it has to succeed.
    pub(crate) fn text(&self, netns: &str, line: &str) -> Result<String> {
        let output = self.run(netns, line)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{line}: {output:?}");
        Ok(text)
    }

    /// What a web server at this address answers, if one does.
    pub(crate) fn get(&self, netns: &str, address: &str) -> Option<String> {
        let (host, port) = address.rsplit_once(':')?;
        let host = host.trim_matches(['[', ']']);
        let line = format!(
            "exec 3<>/dev/tcp/{host}/{port} && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && timeout 5 cat <&3"
        );
        let output = self
            .run(netns, &format!("timeout 5 bash -c \"{line}\""))
            .ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (_, body) = text.split_once("\r\n\r\n")?;
        Some(body.trim().to_owned())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for netns in [&self.node, &self.outside] {
            let _ = Command::new("ip").args(["netns", "del", netns]).output();
        }
    }
}

fn sh(script: &str) -> Result<()> {
    let output = Command::new("sh")
        .args(["-euc", script])
        .output()
        .context("there is no shell")?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}
