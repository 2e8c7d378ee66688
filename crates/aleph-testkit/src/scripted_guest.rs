//! A guest without a kernel: it speaks the real frames, and does what its script says.

use aleph_guest_proto::{
    CONTROL, Decoder, Exec, Exit, Item, Kept, ToGuest, ToHost, Usage, Versions,
};
use std::collections::BTreeMap;
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

/// What a guest does once its host has said hello.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Guest {
    /// It boots, and every command prints its arguments and ends with code 0. `exit N` ends
    /// with code N, `sleep` never ends, `nosuch` is not found. Commands with `keep` outlive
    /// their host as in a real guest, where the set-up does not end it with its host.
    #[default]
    Works,
    /// It says nothing.
    Silent,
    /// It sends these bytes instead of its hello, and then nothing.
    Sends(Vec<u8>),
    /// It boots, and sends these bytes as soon as a command is asked for.
    SendsLater(Vec<u8>),
    /// It says that it cannot go on.
    Fatal(String),
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    PoweredOff,
    HungUp,
}

/// What a guest is between connections.
#[derive(Debug)]
struct Machine {
    script: Guest,
    boot_id: [u8; 16],
    is_ready: bool,
    poweroff_on_hangup: bool,
    kept: BTreeMap<u32, Command>,
}

/// A kept command: all that it wrote, and how it ended.
#[derive(Debug)]
struct Command {
    main: bool,
    output: Vec<u8>,
    stored: usize,
    exit: Option<Exit>,
}

/// Plays a guest on the agent's socket until it powers off.
pub(crate) async fn serve(listener: &UnixListener, script: Guest) -> io::Result<()> {
    let mut machine = Machine {
        script,
        boot_id: uuid()?,
        is_ready: false,
        poweroff_on_hangup: true,
        kept: BTreeMap::new(),
    };
    loop {
        let (mut socket, _) = listener.accept().await?;
        // A broken connection is one that ended.
        match machine.converse(&mut socket).await {
            Ok(End::PoweredOff) => return Ok(()),
            Ok(End::HungUp) | Err(_) if machine.poweroff_on_hangup => return Ok(()),
            Ok(End::HungUp) | Err(_) => {}
        }
    }
}

/// Sixteen bytes that no other guest has.
fn uuid() -> io::Result<[u8; 16]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    let mut id = [0; 16];
    for (byte, pair) in id.iter_mut().zip(digits.chunks(2)) {
        *byte = pair
            .iter()
            .fold(0, |sum, digit| sum * 16 + u8::try_from(*digit).unwrap_or(0));
    }
    Ok(id)
}

impl Machine {
    async fn converse(&mut self, socket: &mut UnixStream) -> io::Result<End> {
        if self.script == Guest::Silent {
            return std::future::pending().await;
        }
        let mut decoder = Decoder::for_guest();
        loop {
            let n = socket.read(decoder.space()).await?;
            if n == 0 {
                return Ok(End::HungUp);
            }
            decoder.filled(n);
            let (mut out, mut over) = (Vec::new(), false);
            while let Some(item) = decoder.next_item().map_err(io::Error::other)? {
                let Item::Frame(frame) = item else { continue };
                let message = ToGuest::decode(&frame).map_err(io::Error::other)?;
                over |= self.answer(frame.stream, &message, &mut out)?;
            }
            socket.write_all(&out).await?;
            if over {
                return Ok(End::PoweredOff);
            }
        }
    }

    /// Answers a message; gives whether the guest powers off.
    fn answer(
        &mut self,
        stream: u32,
        message: &ToGuest<'_>,
        out: &mut Vec<u8>,
    ) -> io::Result<bool> {
        match message {
            ToGuest::Hello { nonce, .. } => {
                out.extend_from_slice(nonce);
                return self.greet(out);
            }
            ToGuest::Setup(setup) => {
                if matches!(self.script, Guest::Works | Guest::SendsLater(_)) {
                    self.is_ready = true;
                    self.poweroff_on_hangup = setup.poweroff_on_hangup;
                    encode(&ToHost::Ready { now_us: 3000 }, CONTROL, out)?;
                }
            }
            ToGuest::Ping(number) => encode(&ToHost::Pong(*number), CONTROL, out)?,
            ToGuest::Exec(exec) => {
                if let Guest::SendsLater(bytes) = &self.script {
                    out.extend_from_slice(bytes);
                    return Ok(false);
                }
                return self.run(exec, stream, out);
            }
            ToGuest::Attach { stored } => {
                if let Some(command) = self.kept.get_mut(&stream) {
                    command.stored = usize::try_from(*stored).map_err(io::Error::other)?;
                    command.tell(stream, out)?;
                }
            }
            ToGuest::Stored { total, end } => {
                if let Some(command) = self.kept.get_mut(&stream) {
                    command.stored = usize::try_from(*total).map_err(io::Error::other)?;
                }
                if *end {
                    return Ok(self
                        .kept
                        .remove(&stream)
                        .is_some_and(|command| command.main));
                }
            }
            ToGuest::Signal(signal) => {
                let exit = Exit::Signal(*signal);
                let Some(command) = self.kept.get_mut(&stream) else {
                    encode(&ToHost::Exited(exit), stream, out)?;
                    return Ok(true);
                };
                command.end(exit, stream, out)?;
            }
            ToGuest::Shutdown { signal, .. } => {
                for (stream, command) in &mut self.kept {
                    command.end(Exit::Signal(*signal), *stream, out)?;
                }
                return Ok(self.kept.is_empty());
            }
            ToGuest::Usage => {
                let usage = Usage {
                    memory_total: 128 << 20,
                    memory_available: 64 << 20,
                    disk_total: 96 << 20,
                    disk_used: 1 << 20,
                    uptime_us: 5_000_000,
                    load_hundredths: 25,
                    processes: 1,
                };
                encode(&ToHost::Usage(usage), stream, out)?;
            }
            ToGuest::Put(_)
            | ToGuest::Get { .. }
            | ToGuest::Pack { .. }
            | ToGuest::Unpack { .. }
            | ToGuest::Stat { .. }
            | ToGuest::Connect { .. } => {
                let failed = ToHost::Failed {
                    errno: 38,
                    message: b"a scripted guest has no files and no network",
                };
                encode(&failed, stream, out)?;
            }
            _ => {}
        }
        Ok(false)
    }

    fn greet(&self, out: &mut Vec<u8>) -> io::Result<bool> {
        if let Guest::Sends(bytes) = &self.script {
            out.extend_from_slice(bytes);
            return Ok(false);
        }
        let hello = ToHost::Hello {
            versions: Versions::OURS,
            started_us: 1000,
            now_us: 2000,
            boot_id: self.boot_id,
            is_ready: self.is_ready,
        };
        encode(&hello, CONTROL, out)?;
        if let Guest::Fatal(message) = &self.script {
            let fatal = ToHost::Fatal {
                errno: 5,
                message: message.as_bytes(),
            };
            encode(&fatal, CONTROL, out)?;
            return Ok(true);
        }
        if self.is_ready {
            for (stream, command) in &self.kept {
                let kept = Kept {
                    pid: 7,
                    main: command.main,
                    input: false,
                    ended: command.exit.is_some(),
                    stored: command.stored as u64,
                    written: command.output.len() as u64,
                };
                encode(&ToHost::Kept(kept), *stream, out)?;
            }
            encode(&ToHost::Ready { now_us: 3000 }, CONTROL, out)?;
        }
        Ok(false)
    }

    /// Plays a command; gives whether the guest powers off.
    fn run(&mut self, exec: &Exec<'_>, stream: u32, out: &mut Vec<u8>) -> io::Result<bool> {
        let argv: Vec<&[u8]> = exec.argv.iter().collect();
        if let [b"nosuch", ..] = argv[..] {
            let failed = ToHost::Failed {
                errno: 2,
                message: b"nosuch: command not found",
            };
            encode(&failed, stream, out)?;
            return Ok(exec.main);
        }
        encode(&ToHost::Started { pid: 7 }, stream, out)?;
        let exit = match argv[..] {
            [b"sleep", ..] => None,
            [b"exit", code] => {
                let code = str::from_utf8(code).ok().and_then(|c| c.parse().ok());
                Some(Exit::Code(code.unwrap_or(255)))
            }
            _ => Some(Exit::Code(0)),
        };
        let command = Command {
            main: exec.main,
            output: exit.map(|_| argv.join(&b' ')).unwrap_or_default(),
            stored: 0,
            exit,
        };
        command.tell(stream, out)?;
        if exec.keep {
            self.kept.insert(stream, command);
            return Ok(false);
        }
        Ok(exit.is_some() && exec.main)
    }
}

impl Command {
    /// Says what is not stored, and its end.
    fn tell(&self, stream: u32, out: &mut Vec<u8>) -> io::Result<()> {
        if let Some(rest @ [_, ..]) = self.output.get(self.stored..) {
            encode(&ToHost::Data(rest), stream, out)?;
        }
        if let Some(exit) = self.exit {
            encode(&ToHost::Exited(exit), stream, out)?;
        }
        Ok(())
    }

    /// Ends it, unless it has ended.
    fn end(&mut self, exit: Exit, stream: u32, out: &mut Vec<u8>) -> io::Result<()> {
        if self.exit.is_none() {
            self.exit = Some(exit);
            encode(&ToHost::Exited(exit), stream, out)?;
        }
        Ok(())
    }
}

fn encode(message: &ToHost<'_>, stream: u32, out: &mut Vec<u8>) -> io::Result<()> {
    message.encode(stream, out).map_err(io::Error::other)
}
