//! `aleph doctor`.

use crate::args::NodeArgs;
use crate::boot;
use crate::output::print;
use aleph_executor::doctor::{Finding, Severity, examine};
use aleph_image::KernelStore;
use anyhow::Result;
use std::io::IsTerminal;

pub(crate) fn doctor(node: &NodeArgs, json: bool) -> Result<u8> {
    let paths = boot::paths(node)?;
    let mut findings = examine(&paths, &boot::config(node));
    findings.push(kernel_bundle(&paths));
    if json {
        print(serde_json::to_string_pretty(&findings)?)?;
    } else {
        show(&findings)?;
    }
    Ok(u8::from(
        findings.iter().any(|f| f.severity == Severity::Failure),
    ))
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
    let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
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
