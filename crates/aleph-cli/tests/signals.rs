//! Ctrl-C, TERM and terminals.

mod support;

use anyhow::{Context, Result};
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Stdio};
use support::{Node, finish, send};

/// Starts a command line and waits until it has printed `up`.
fn started(node: &Node, line: &str) -> Result<Child> {
    let mut command = node.command(&["run", "--rm", "-q", "busybox", "--", "sh", "-c", line]);
    let mut child = command.spawn()?;
    let mut up = [0; 3];
    child
        .stdout
        .as_mut()
        .context("no output")?
        .read_exact(&mut up)?;
    assert_eq!(&up, b"up\n");
    Ok(child)
}

#[test]
fn an_interrupt_reaches_the_guest() -> Result<()> {
    let node = Node::new()?;
    let child = started(
        &node,
        "trap 'echo caught; exit 5' INT; echo up; while :; do sleep 0.1; done",
    )?;
    send(child.id(), Signal::INT)?;
    let ran = finish(child)?;
    assert_eq!((ran.code, ran.text().as_str()), (5, "caught\n"), "{ran:?}");
    node.assert_clean()
}

#[test]
fn a_second_interrupt_kills_the_vm() -> Result<()> {
    let node = Node::new()?;
    let mut child = started(
        &node,
        "trap 'echo caught' INT; echo up; while :; do sleep 0.1; done",
    )?;
    send(child.id(), Signal::INT)?;
    let mut caught = [0; 7];
    child
        .stdout
        .as_mut()
        .context("no output")?
        .read_exact(&mut caught)?;
    send(child.id(), Signal::INT)?;
    assert_eq!(finish(child)?.code, 130);
    node.assert_clean()
}

#[test]
fn a_termination_stops_the_guest_in_order() -> Result<()> {
    let node = Node::new()?;
    let child = started(
        &node,
        "trap 'echo ended; exit 0' TERM; echo up; while :; do sleep 0.1; done",
    )?;
    send(child.id(), Signal::TERM)?;
    let ran = finish(child)?;
    assert_eq!((ran.code, ran.text().as_str()), (0, "ended\n"), "{ran:?}");
    node.assert_clean()
}

struct Terminal(File);

impl Terminal {
    fn size(&self, rows: u16, columns: u16) -> Result<()> {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        Ok(tcsetwinsize(&self.0, size)?)
    }

    /// Reads until the text has been shown.
    fn until(&mut self, text: &str) -> Result<()> {
        let mut seen = String::new();
        let mut chunk = [0; 1024];
        while !seen.contains(text) {
            let n = self
                .0
                .read(&mut chunk)
                .with_context(|| format!("no {text:?} in {seen:?}"))?;
            seen.push_str(&String::from_utf8_lossy(&chunk[..n]));
        }
        Ok(())
    }
}

#[test]
fn a_terminal_is_sized_resized_and_interrupted() -> Result<()> {
    let node = Node::new()?;
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?;
    let slave = || {
        File::options()
            .read(true)
            .write(true)
            .open(name.to_str()?)
            .map_err(anyhow::Error::from)
    };
    let mut terminal = Terminal(File::from(master));
    terminal.size(30, 100)?;
    let mut command = node.command(&["run", "--rm", "-qit", "busybox", "--", "sh", "-c"]);
    command.arg("while :; do stty size; sleep 0.1; done");
    let stdin = slave()?;
    let mut child = command
        .stdin(stdin)
        .stdout(slave()?)
        .stderr(Stdio::from(slave()?))
        .spawn()?;
    drop(command);
    terminal.until("30 100\r\n")?;
    terminal.size(41, 120)?;
    // The terminal is not aleph's controlling one here, so the kernel tells nobody.
    send(child.id(), Signal::WINCH)?;
    terminal.until("41 120\r\n")?;
    // In raw mode Ctrl-C is a key like any other, and the guest's terminal makes it a signal.
    terminal.0.write_all(b"\x03")?;
    assert_eq!(child.wait()?.code(), Some(130));
    node.assert_clean()
}
