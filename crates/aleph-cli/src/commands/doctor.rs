//! `aleph doctor`.

use crate::boot;
use crate::context::Context;
use crate::output::{colours, print, print_json};
use aleph_executor::doctor::{Finding, Severity, examine};
use aleph_image::KernelStore;
use anyhow::Result;

/// How to tell what was found.
#[derive(Debug, clap::Args)]
pub(crate) struct Doctor {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Doctor {
    /// The code is 1 where this host could run no microVM.
    pub(super) fn run(&self, context: &Context) -> Result<u8> {
        let paths = context.paths()?;
        let mut findings = examine(&paths, &context.executor());
        findings.push(kernel_bundle(&paths));
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

fn kernel_bundle(paths: &aleph_executor::Paths) -> Finding {
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
