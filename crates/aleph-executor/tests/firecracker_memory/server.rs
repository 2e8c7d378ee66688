//! The memory server alone, with memory of this process: what a VMM hands over, touches and gives up.

use crate::{LIMIT, server_program};
use aleph_executor::process::{Process, ProcessExit, Spawn};
use aleph_testkit::{FaultedMemory, wait_until};
use anyhow::{Context, Result};
use std::fs::File;
use std::io::{Read, pipe};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::sync::Arc;

const PAGES: usize = 512;

/// A server, and what it was given.
struct Served {
    process: Process,
    stderr: File,
    socket: tempfile::TempDir,
    memory: File,
    _starter: std::io::PipeWriter,
}

/// What a page of the memory file holds: every fourth one nothing.
fn content(page: usize) -> [u8; 4096] {
    let byte = u8::try_from(page % 251).unwrap_or(0) + 1;
    [if page.is_multiple_of(4) { 0 } else { byte }; 4096]
}

impl Served {
    fn begin(how: &str, record: File) -> Result<Self> {
        let memory = tempfile::tempfile()?;
        for page in 0..PAGES {
            memory.write_all_at(&content(page), 4096 * page as u64)?;
        }
        let socket = tempfile::tempdir()?;
        let listener = UnixListener::bind(socket.path().join("socket"))?;
        let (starter, ours) = pipe()?;
        let (said, stderr) = pipe()?;
        let program = server_program();
        let mut command = Command::new(&program.program);
        command.args(&program.arguments).arg(how);
        let process = Process::spawn(Spawn {
            command,
            files: vec![
                listener.into(),
                memory.try_clone()?.into(),
                starter.into(),
                record.into(),
            ],
            user: None,
            device_group: None,
            cgroup: None,
            stdout: None,
            stderr: stderr.into(),
        })?;
        Ok(Self {
            process,
            stderr: File::from(std::os::fd::OwnedFd::from(said)),
            socket,
            memory,
            _starter: ours,
        })
    }

    fn connect(&self) -> Result<UnixStream> {
        Ok(UnixStream::connect(self.socket.path().join("socket"))?)
    }

    /// What it says at its end, which it comes to by itself.
    async fn end(mut self) -> Result<(ProcessExit, String)> {
        let exit = tokio::time::timeout(LIMIT, self.process.wait()).await?;
        let mut said = String::new();
        self.stderr.read_to_string(&mut said)?;
        Ok((exit, said))
    }
}

/// Every page is as in the file, from several threads at once, whichever version hands it over; what
/// was given up is empty from then on.
pub(crate) async fn fills_what_is_touched() -> Result<()> {
    for is_new in [false, true] {
        let served = Served::begin("serve", tempfile::tempfile()?)?;
        let memory = Arc::new(FaultedMemory::new(PAGES * 4096)?);
        let connection = served.connect()?;
        memory.hand_over(&connection, is_new)?;
        if !is_new {
            drop(connection);
        }
        let readers = (0..4).map(|nth| {
            let memory = Arc::clone(&memory);
            tokio::task::spawn_blocking(move || {
                (0..PAGES / 2)
                    .map(|page| page * (nth + 1) % (PAGES / 2))
                    .all(|page| memory.page(page) == content(page))
            })
        });
        for reader in readers.collect::<Vec<_>>() {
            let all_right = tokio::time::timeout(LIMIT, reader).await??;
            assert!(all_right, "other bytes than the file's");
        }
        // Some that were filled, and some that were not.
        let given_up = Arc::clone(&memory);
        let given_up = tokio::task::spawn_blocking(move || given_up.remove(200, 112));
        tokio::time::timeout(LIMIT, given_up).await???;
        let reader = tokio::task::spawn_blocking(move || {
            (200..PAGES).all(|page| match page {
                200..312 => memory.page(page) == [0; 4096],
                _ => memory.page(page) == content(page),
            })
        });
        assert!(tokio::time::timeout(LIMIT, reader).await??, "not empty");
        served.process.kill()?;
        served.process.wait().await;
    }
    Ok(())
}

/// Pages that are given up while others are filled, again and again: no fault is lost.
pub(crate) async fn fills_while_pages_are_given_up() -> Result<()> {
    let served = Served::begin("serve", tempfile::tempfile()?)?;
    let memory = Arc::new(FaultedMemory::new(PAGES * 4096)?);
    let connection = served.connect()?;
    memory.hand_over(&connection, true)?;
    let gives_up = Arc::clone(&memory);
    let giver = tokio::task::spawn_blocking(move || {
        (0..PAGES / 2).try_for_each(|page| gives_up.remove(page, 1))
    });
    let reader = tokio::task::spawn_blocking(move || {
        (PAGES / 2..PAGES).all(|page| memory.page(page) == content(page))
    });
    tokio::time::timeout(LIMIT, giver).await???;
    assert!(tokio::time::timeout(LIMIT, reader).await??);
    served.process.kill()?;
    served.process.wait().await;
    Ok(())
}

/// What one memory needed first, the next one is given.
pub(crate) async fn gives_what_was_needed_first() -> Result<()> {
    let record = tempfile::tempfile()?;
    let touched = [7, 300, 6, 5, 301, 8];
    // The recording one: its VMM is a process that ends.
    let first = Served::begin("record", record.try_clone()?)?;
    let socket = first.socket.path().join("socket");
    let pages = touched.map(|page| page.to_string()).join(",");
    let program = server_program();
    let toucher = Command::new(&program.program)
        .args(["touch", &socket.display().to_string(), &pages])
        .status()?;
    assert!(toucher.success());
    let ended = tokio::time::timeout(LIMIT, first.process.wait()).await?;
    assert_eq!(ended, ProcessExit::Code(0), "it ends with its VMM");
    assert!(record.metadata()?.len() > 0);

    let second = Served::begin("prefetch", record)?;
    let memory = FaultedMemory::new(PAGES * 4096)?;
    let connection = second.connect()?;
    memory.hand_over(&connection, true)?;
    for page in touched {
        wait_until("the page", LIMIT, || {
            memory.is_there(page).ok()?.then_some(())
        });
    }
    assert!(!memory.is_there(9)?, "more than was needed");
    for page in touched {
        assert!(memory.page(page) == content(page), "{page}");
    }
    second.process.kill()?;
    second.process.wait().await;
    Ok(())
}

/// A VMM: it hands memory over, touches these pages, and ends. Where it says `wait`, it says so, and
/// waits until its standard input ends.
pub(crate) fn touch(socket: &str, pages: &str) -> Result<()> {
    let memory = FaultedMemory::new(PAGES * 4096)?;
    let connection = UnixStream::connect(socket)?;
    memory.hand_over(&connection, true)?;
    for page in pages.split(',') {
        if page == "wait" {
            println!();
            std::io::stdin().read_to_end(&mut Vec::new())?;
            continue;
        }
        let page = page.parse()?;
        anyhow::ensure!(memory.page(page) == content(page), "{page}");
    }
    Ok(())
}

/// A file that is too short, or gets so, is no memory: the server ends and says so.
pub(crate) async fn ends_where_the_file_does() -> Result<()> {
    let short = Served::begin("serve", tempfile::tempfile()?)?;
    short.memory.set_len(PAGES as u64 * 4096 - 1)?;
    let memory = FaultedMemory::new(PAGES * 4096)?;
    let connection = short.connect()?;
    memory.hand_over(&connection, true)?;
    let (exit, said) = short.end().await?;
    assert_eq!(exit, ProcessExit::Code(1));
    assert!(said.contains("has 2097151 bytes"), "{said}");

    let cut = Served::begin("serve", tempfile::tempfile()?)?;
    // Its VMM waits for ever, as one does: it is a process that is killed here.
    let program = server_program();
    let socket = cut.socket.path().join("socket");
    let mut toucher = Command::new(&program.program)
        .args(["touch", &socket.display().to_string(), "1,wait,400"])
        .stdout(std::process::Stdio::piped())
        .stdin(std::process::Stdio::piped())
        .spawn()?;
    let mut told = [0; 1];
    toucher
        .stdout
        .take()
        .context("no stdout")?
        .read_exact(&mut told)?;
    cut.memory.set_len(4096 * 10)?;
    drop(toucher.stdin.take());
    let (exit, said) = cut.end().await?;
    toucher.kill()?;
    toucher.wait()?;
    assert_eq!(exit, ProcessExit::Code(1));
    assert!(said.contains("has shrunk"), "{said}");
    Ok(())
}

/// Nobody comes, and whoever would have had somebody come has gone; or who comes says nothing.
pub(crate) async fn waits_for_nobody() -> Result<()> {
    let Served {
        process, _starter, ..
    } = Served::begin("serve", tempfile::tempfile()?)?;
    drop(_starter);
    let exit = tokio::time::timeout(LIMIT, process.wait()).await?;
    assert_eq!(exit, ProcessExit::Code(0));

    let served = Served::begin("serve", tempfile::tempfile()?)?;
    drop(served.connect()?);
    let (exit, said) = served.end().await?;
    assert_eq!(exit, ProcessExit::Code(1));
    assert!(said.contains("does not say"), "{said}");
    Ok(())
}
