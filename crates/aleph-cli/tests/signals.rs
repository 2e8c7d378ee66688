//! Ctrl-C, TERM and terminals.

mod support;

use anyhow::{Context, Result};
use rustix::process::Signal;
use std::io::Read;
use std::process::Child;
use support::{Node, Terminal, finish, send};

/// Starts a command line, with further flags, and waits until it has printed `up`.
fn started(node: &Node, flags: &[&str], line: &str) -> Result<Child> {
    let mut command = node.command(&["run", "--rm", "-q"]);
    command.args(flags);
    command.args(["busybox", "--", "sh", "-c", line]);
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
        &[],
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
        &[],
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
    for (flags, signal) in [(&[][..], "TERM"), (&["--stop-signal", "USR1"], "USR1")] {
        let line =
            format!("trap 'echo ended; exit 0' {signal}; echo up; while :; do sleep 0.1; done");
        let child = started(&node, flags, &line)?;
        send(child.id(), Signal::TERM)?;
        let ran = finish(child)?;
        assert_eq!((ran.code, ran.text().as_str()), (0, "ended\n"), "{ran:?}");
    }
    node.assert_clean()
}

#[test]
fn a_terminal_is_sized_resized_and_interrupted() -> Result<()> {
    let node = Node::new()?;
    let mut terminal = Terminal::new()?;
    terminal.size(30, 100)?;
    let mut command = node.command(&["run", "--rm", "-qit", "busybox", "--", "sh", "-c"]);
    command.arg("while :; do stty size; sleep 0.1; done");
    let mut child = terminal.spawn(command)?;
    terminal.until("30 100\r\n")?;
    terminal.size(41, 120)?;
    // The terminal is not aleph's controlling one here, so the kernel tells nobody.
    send(child.id(), Signal::WINCH)?;
    terminal.until("41 120\r\n")?;
    // In raw mode Ctrl-C is a key like any other, and the guest's terminal makes it a signal.
    terminal.press(b"\x03")?;
    assert_eq!(child.wait()?.code(), Some(130));
    node.assert_clean()
}
