//! Builds the guest agent and a module for Node.js's runtime, which the crate carries, so that one
//! binary is all a host needs.
//!
//! The agent is compiled by a cargo of its own into this crate's output folder: it has another
//! profile, no standard library and no C library. `ALEPH_GUEST=FILE` takes a finished one.

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() -> Result<(), Box<dyn Error>> {
    let variable = |name: &str| env::var_os(name).ok_or(format!("{name} is not set"));
    let crates = PathBuf::from(variable("CARGO_MANIFEST_DIR")?)
        .join("..")
        .canonicalize()?;
    let out = PathBuf::from(variable("OUT_DIR")?);
    println!("cargo:rerun-if-env-changed=ALEPH_GUEST");
    for source in ["aleph-guest", "aleph-guest-proto"] {
        println!(
            "cargo:rerun-if-changed={}",
            crates.join(source).join("src").display()
        );
        println!(
            "cargo:rerun-if-changed={}",
            crates.join(source).join("Cargo.toml").display()
        );
    }
    println!(
        "cargo:rerun-if-changed={}",
        crates.join("aleph-guest/build.rs").display()
    );
    for file in ["../Cargo.toml", "../Cargo.lock"] {
        println!("cargo:rerun-if-changed={}", crates.join(file).display());
    }
    println!("cargo:rerun-if-changed=build.rs");

    let agent = match env::var_os("ALEPH_GUEST") {
        Some(finished) => {
            println!("cargo:rerun-if-changed={}", Path::new(&finished).display());
            finished.into()
        }
        None => compile(&variable("CARGO")?, &crates, &out.join("agent-target"))?,
    };
    std::fs::copy(&agent, out.join("agent"))
        .map_err(|error| format!("cannot copy {}: {error}", agent.display()))?;
    compile_reseed(&out.join("reseed.node"))
}

/// A shared library with one function, by the compiler alone: it has no dependencies.
fn compile_reseed(to: &Path) -> Result<(), Box<dyn Error>> {
    let source = "src/recipe/runtime/node/reseed.rs";
    println!("cargo:rerun-if-changed={source}");
    let mut command = Command::new(env::var_os("RUSTC").ok_or("RUSTC is not set")?);
    command
        .args(["--edition", "2024", "--crate-name", "reseed", "--crate-type", "cdylib"])
        .args(["--target", &env::var("TARGET")?])
        .args(["-C", "opt-level=s", "-C", "panic=abort", "-C", "strip=symbols"])
        // Whatever it calls is there when it is loaded, and is looked for when it is called.
        .args(["-C", "link-arg=-nostdlib", "-C", "relro-level=partial"])
        .args(["-C", "link-arg=-Wl,-z,lazy"]);
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        command.args(["-C", &format!("linker={linker}")]);
    }
    let status = command.arg("-o").arg(to).arg(source).status()?;
    if !status.success() {
        return Err(format!("compiling {source}: {status}").into());
    }
    Ok(())
}

fn compile(cargo: &OsString, crates: &Path, target: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let root = crates.parent().ok_or("the workspace has no root")?;
    let home = env::var("CARGO_HOME").or_else(|_| env::var("HOME").map(|h| format!("{h}/.cargo")));
    let mut command = Command::new(cargo);
    // What the outer cargo set for its own compilation is not for this one.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_")
            && text != "CARGO_HOME"
            && !text.starts_with("CARGO_NET")
            && !text.starts_with("CARGO_HTTP")
            && !text.starts_with("CARGO_REGISTR")
            || ["RUSTFLAGS", "RUSTC_WORKSPACE_WRAPPER", "RUSTC_WRAPPER"].contains(&&*text)
        {
            command.env_remove(&name);
        }
    }
    // The same agent wherever it is compiled: no path of this machine in it.
    let flags = [
        format!("--remap-path-prefix={}=/aleph", root.display()),
        format!("--remap-path-prefix={}=/cargo", home?),
    ];
    let status = command
        .args([
            "build",
            "--quiet",
            "--package",
            "aleph-guest",
            "--bin",
            "aleph-guest",
        ])
        .args(["--features", "pid1", "--profile", "guest"])
        .arg("--manifest-path")
        .arg(root.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(target)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .status()?;
    if !status.success() {
        return Err(format!("compiling the guest agent: {status}").into());
    }
    Ok(target.join("guest/aleph-guest"))
}
