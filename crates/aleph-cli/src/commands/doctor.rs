//! `aleph doctor`.

use crate::boot;
use crate::context::Context;
use crate::output::{colours, print, print_json};
use aleph_control::Config;
use aleph_executor::Paths;
use aleph_executor::doctor::{Finding, Severity, examine};
use aleph_image::KernelStore;
use anyhow::{Context as _, Result};
use std::path::PathBuf;

/// How to tell what was found.
#[derive(Debug, clap::Args)]
pub(crate) struct Doctor {
    /// Print JSON
    #[arg(long)]
    json: bool,

    /// The node's configuration [default: /etc/aleph/aleph.toml, if it is there]
    #[arg(
        short,
        long,
        value_name = "FILE",
        env = "ALEPH_CONFIG",
        hide_env_values = true
    )]
    config: Option<PathBuf>,
}

impl Doctor {
    /// The code is 1 where this host could run no microVM.
    pub(super) fn run(&self, context: &Context) -> Result<u8> {
        let (mut config, wrong) = match Config::load(self.config.as_deref()) {
            Ok(config) => (config, None),
            Err(error) => (Config::default(), Some(error)),
        };
        context.node.go_over(&mut config.executor);
        let paths = match (&context.node.root, &config.node.root) {
            (None, Some(root)) => Paths::new(Some(root)).context("cannot use the node's root")?,
            _ => context.paths()?,
        };
        let mut findings = examine(&paths, &config.executor.executor_config());
        findings.push(kernel_bundle(&paths));
        findings.extend(wrong.map(|error| {
            let mut found = error.to_string();
            if let Some(cause) = std::error::Error::source(&error) {
                found.push_str(&format!(": {cause}"));
            }
            Finding::failure("config", found, "aleph config check")
        }));
        if self.json {
            print_json(&findings)?;
        } else {
            show(&findings)?;
        }
        Ok(u8::from(
            findings.iter().any(|f| f.severity == Severity::Failure),
        ))
    }
}

fn kernel_bundle(paths: &Paths) -> Finding {
    let found = KernelStore::open(paths.state()).and_then(|store| store.default_bundle());
    match found {
        Ok(bundle) => Finding::ok("kernel", boot::describe(&bundle)),
        Err(_) => Finding::failure(
            "kernel",
            "no kernel bundle is built",
            "sudo aleph kernel build",
        ),
    }
}

fn show(findings: &[Finding]) -> Result<()> {
    let colours = colours();
    for finding in findings {
        let (mark, colour) = match finding.severity {
            Severity::Ok => ("ok", "32"),
            Severity::Warning => ("warn", "33"),
            Severity::Failure => ("FAIL", "31"),
        };
        let mark = if colours {
            format!("\x1b[{colour}m{mark:4}\x1b[0m")
        } else {
            format!("{mark:4}")
        };
        let mend = finding
            .mend
            .as_ref()
            .map(|m| format!(" → {m}"))
            .unwrap_or_default();
        print(format!(
            "{mark}  {:<12} {}{mend}",
            finding.check, finding.found
        ))?;
    }
    Ok(())
}
