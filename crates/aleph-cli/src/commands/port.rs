//! `aleph port`.

use super::completion::jobs;
use crate::context::Context;
use crate::output::{Advised, print, print_json};
use aleph_types::{ForwardedPort, Protocol};
use anyhow::Result;
use clap_complete::ArgValueCompleter;
use std::net::SocketAddr;

/// Whose ports to list.
#[derive(Debug, clap::Args)]
pub(crate) struct Port {
    /// Name or id of a job
    #[arg(value_name = "JOB", add = ArgValueCompleter::new(jobs::any))]
    job: String,

    /// Only what leads to this port of the guest
    #[arg(value_name = "PORT[/PROTOCOL]", value_parser = guest_port)]
    port: Option<GuestPort>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A port of a guest, as a word.
#[derive(Debug, Clone, Copy)]
struct GuestPort(u16, Protocol);

fn guest_port(text: &str) -> Result<GuestPort, String> {
    let (port, protocol) = match text.split_once('/') {
        None => (text, Protocol::Tcp),
        Some((port, "tcp")) => (port, Protocol::Tcp),
        Some((port, "udp")) => (port, Protocol::Udp),
        Some((_, other)) => return Err(format!("{other:?} is neither tcp nor udp")),
    };
    match port.parse() {
        Ok(port) if port > 0 => Ok(GuestPort(port, protocol)),
        _ => Err(format!("{port:?} is no port from 1 to 65535")),
    }
}

impl Port {
    /// Prints one forward a line, as docker does: `80/tcp -> 0.0.0.0:8080`; only the host's side
    /// where one port was asked for.
    pub(super) async fn run(self, context: &Context) -> Result<u8> {
        let job = context.client()?.job(&self.job).await?;
        let ports = job.network.map(|network| network.forwarded_ports);
        let mut ports = ports.unwrap_or_default();
        if let Some(GuestPort(port, protocol)) = self.port {
            ports.retain(|p| p.vm_port == port && p.protocol == protocol);
            if ports.is_empty() {
                return Err(Advised {
                    what: format!("nothing leads to port {port}/{protocol} of {}", job.name),
                    advice: format!("See aleph port {}.", job.name),
                }
                .into());
            }
        }
        if self.json {
            print_json(&ports)?;
            return Ok(0);
        }
        for port in &ports {
            match self.port {
                Some(_) => print(host_side(port))?,
                None => print(port.to_string())?,
            }
        }
        Ok(0)
    }
}

fn host_side(port: &ForwardedPort) -> String {
    SocketAddr::new(port.host_ip, port.host_port).to_string()
}
