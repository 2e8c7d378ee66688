//! What functions are compared with: the same handler without a VM, and an isolate.

use super::client::Client;
use aleph_testkit::functions;
use anyhow::Result;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// A peer that serves, until it is dropped.
pub(super) struct Peer {
    /// The last one is ended first.
    programs: Vec<Child>,
    address: SocketAddr,
    path: &'static str,
    _folder: Option<TempDir>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        for program in self.programs.iter_mut().rev() {
            let _ = program.kill();
            let _ = program.wait();
        }
    }
}

impl Peer {
    /// `cargo lambda watch`: the native handler as a process of this host, with nothing around it.
    pub(super) fn cargo_lambda() -> Result<Self> {
        let program = aleph_testkit::cargo_lambda()?;
        let handler = functions::echo_program()?;
        let address = free()?;
        let watch = quiet(
            Command::new(program)
                .args(["lambda", "watch", "--only-lambda-apis", "--quiet"])
                .args(["--invoke-address", "127.0.0.1", "--invoke-port"])
                .arg(address.port().to_string())
                .arg("--manifest-path")
                .arg(functions::echo_manifest()),
        )?;
        let mut peer = Self {
            programs: vec![watch],
            address,
            path: "/2015-03-31/functions/echo/invocations",
            _folder: None,
        };
        // A runtime that finds nobody there gives up.
        drop(peer.client()?);
        peer.programs.push(quiet(
            Command::new(handler)
                .env(
                    "AWS_LAMBDA_RUNTIME_API",
                    format!("http://{address}/.rt/echo"),
                )
                .env("AWS_LAMBDA_FUNCTION_NAME", "echo")
                .env("AWS_LAMBDA_FUNCTION_VERSION", "1")
                .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128"),
        )?);
        Ok(peer)
    }

    /// `workerd serve`: an equivalent handler in an isolate of V8.
    pub(super) fn workerd() -> Result<Self> {
        let program = aleph_testkit::workerd()?;
        let folder = tempfile::tempdir()?;
        let address = free()?;
        std::fs::write(folder.path().join("worker.js"), WORKER)?;
        let config = folder.path().join("config.capnp");
        std::fs::write(&config, CONFIG.replace("ADDRESS", &address.to_string()))?;
        let serve = quiet(Command::new(program).arg("serve").arg(config))?;
        Ok(Self {
            programs: vec![serve],
            address,
            path: "/",
            _folder: Some(folder),
        })
    }

    /// A connection, as soon as it takes one.
    pub(super) fn client(&self) -> Result<Client> {
        Client::connect(self.address, self.path)
    }
}

const WORKER: &str =
    "export default { async fetch(request) { return Response.json(await request.json()); } };\n";

const CONFIG: &str = r#"
using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [(name = "main", worker = (
    modules = [(name = "worker", esModule = embed "worker.js")],
    compatibilityDate = "2024-01-01",
  ))],
  sockets = [(name = "http", address = "ADDRESS", http = (), service = "main")],
);
"#;

fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

fn quiet(command: &mut Command) -> Result<Child> {
    let command = command.stdin(Stdio::null()).stdout(Stdio::null());
    Ok(command.stderr(Stdio::null()).spawn()?)
}
