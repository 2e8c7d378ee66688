//! A viewer of VNC that looks once: as much of RFB 3.8 (RFC 6143) as one picture takes.

use crate::support::{Daemon, send};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

/// The longest name of a screen that is read.
const LONGEST_NAME: usize = 4096;

/// What a machine shows.
#[derive(Debug)]
pub(crate) struct Picture {
    /// What it calls itself.
    pub(crate) name: String,
    pub(crate) width: u16,
    pub(crate) height: u16,
    /// How many points were sent that are not black.
    pub(crate) bright: usize,
}

/// Looks at a job's screen over what `aleph vnc` gives.
pub(crate) fn look(daemon: &Daemon, job: &str) -> Result<Picture> {
    let mut vnc = daemon
        .command(&["vnc", job])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut path = String::new();
    BufReader::new(vnc.stdout.take().context("no output")?).read_line(&mut path)?;
    let seen = UnixStream::connect(path.trim())
        .with_context(|| format!("no screen at {path:?}"))
        .and_then(|mut screen| picture(&mut screen));
    send(vnc.id(), Signal::TERM)?;
    let ended = vnc.wait()?;
    let seen = seen?;
    ensure!(ended.success(), "aleph vnc: {ended}");
    ensure!(!std::path::Path::new(path.trim()).exists(), "{path} stays");
    Ok(seen)
}

fn picture(screen: &mut UnixStream) -> Result<Picture> {
    let greeting: [u8; 12] = read(screen)?;
    ensure!(&greeting == b"RFB 003.008\n", "{greeting:?}");
    screen.write_all(&greeting)?;
    let [count] = read(screen)?;
    let mut kinds = vec![0; usize::from(count)];
    screen.read_exact(&mut kinds)?;
    // Whoever may speak with the node may look: there is no password.
    ensure!(kinds.contains(&1), "security types {kinds:?}");
    screen.write_all(&[1])?;
    let result: [u8; 4] = read(screen)?;
    ensure!(result == [0; 4], "refused: {result:?}");
    // Others may look, too.
    screen.write_all(&[1])?;
    let [a, b, c, d] = read(screen)?;
    let (width, height) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    let format: [u8; 16] = read(screen)?;
    let length = u32::from_be_bytes(read(screen)?);
    let mut name = vec![0; usize::try_from(length)?.min(LONGEST_NAME)];
    screen.read_exact(&mut name)?;
    let size = usize::from(format[0] / 8);
    // All of it, as it is (raw), whether it has changed or not.
    screen.write_all(&[2, 0, 0, 1, 0, 0, 0, 0])?;
    screen.write_all(&[3, 0, 0, 0, 0, 0, a, b, c, d])?;
    let [kind, _, high, low] = read(screen)?;
    ensure!(kind == 0, "message {kind}");
    let rectangles = u16::from_be_bytes([high, low]);
    ensure!(rectangles > 0, "nothing is shown");
    let mut bright = 0;
    for _ in 0..rectangles {
        let head: [u8; 12] = read(screen)?;
        let [_, _, _, _, w0, w1, h0, h1, encoding @ ..] = head;
        ensure!(encoding == [0; 4], "encoding {encoding:?}");
        let (w, h) = (u16::from_be_bytes([w0, w1]), u16::from_be_bytes([h0, h1]));
        let mut points = vec![0; usize::from(w) * usize::from(h) * size];
        screen.read_exact(&mut points)?;
        let points = points.chunks(size.max(1));
        bright += points
            .filter(|point| point.iter().any(|byte| *byte != 0))
            .count();
    }
    Ok(Picture {
        name: String::from_utf8_lossy(&name).into_owned(),
        width,
        height,
        bright,
    })
}

fn read<const N: usize>(screen: &mut UnixStream) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    screen.read_exact(&mut bytes)?;
    Ok(bytes)
}
