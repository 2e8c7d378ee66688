//! The log: lines in Firecracker's form, on standard output until there is a file.

use crate::bodies;
use crate::version::Version;
use rustix::fs::OFlags;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl Level {
    /// The level of this name, however it is written.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Some(match name.to_lowercase().as_str() {
            "off" => Self::Off,
            "error" => Self::Error,
            "warn" | "warning" => Self::Warn,
            "info" => Self::Info,
            "debug" => Self::Debug,
            "trace" => Self::Trace,
            _ => return None,
        })
    }
}

struct Logger {
    id: String,
    level: Level,
    show_level: bool,
    show_origin: bool,
    file: Option<File>,
}

static LOGGER: Mutex<Logger> = Mutex::new(Logger {
    id: String::new(),
    level: Level::Info,
    show_level: false,
    show_origin: false,
    file: None,
});

/// Names the instance in each line from now on.
pub(crate) fn name(id: &str) {
    let mut logger = LOGGER.lock().unwrap_or_else(PoisonError::into_inner);
    id.clone_into(&mut logger.id);
}

/// Does as a request says. A level that it leaves out is `Info` again.
pub(crate) fn update(config: &bodies::Logger, version: Version) -> io::Result<()> {
    let file = config.log_path.as_deref();
    let file = file.map(|path| open(path, version)).transpose()?;
    let mut logger = LOGGER.lock().unwrap_or_else(PoisonError::into_inner);
    let level = config.level.as_deref().and_then(Level::parse);
    logger.level = level.unwrap_or(Level::Info);
    logger.show_level = config.show_level.unwrap_or(logger.show_level);
    logger.show_origin = config.show_log_origin.unwrap_or(logger.show_origin);
    logger.file = file.or(logger.file.take());
    Ok(())
}

/// Opens a file or FIFO for lines. One that is there is written over from its beginning on.
pub(crate) fn open(path: &Path, version: Version) -> io::Result<File> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    File::options()
        .read(true)
        .write(true)
        .create(version.has(14))
        .truncate(false)
        .custom_flags(flags)
        .open(path)
}

/// Writes a line.
pub(crate) fn write(level: Level, origin: (&str, u32), message: fmt::Arguments<'_>) {
    let logger = LOGGER.lock().unwrap_or_else(PoisonError::into_inner);
    if level > logger.level {
        return;
    }
    let now = jiff::ZonedDateTime::now()
        .strftime("%Y-%m-%dT%H:%M:%S%.9f")
        .to_string();
    let thread = std::thread::current().name().unwrap_or("-").to_owned();
    let id = match logger.id.as_str() {
        "" => "anonymous-instance",
        id => id,
    };
    let shown = match logger.show_level {
        true => format!(":{level:?}").to_uppercase(),
        false => String::new(),
    };
    let origin = match logger.show_origin {
        true => format!(":{}:{}", origin.0, origin.1),
        false => String::new(),
    };
    let line = format!("{now} [{id}:{thread}{shown}{origin}] {message}\n");
    // A line that does not fit into a FIFO is lost.
    let _ = match logger.file.as_ref() {
        Some(mut file) => file.write_all(line.as_bytes()),
        None => io::stdout().write_all(line.as_bytes()),
    };
}

/// Writes a line of the log: `log!(Info, "…{}…", …)`.
#[macro_export]
macro_rules! log {
    ($level:ident, $($message:tt)+) => {
        $crate::logger::write(
            $crate::logger::Level::$level,
            (file!(), line!()),
            format_args!($($message)+),
        )
    };
}
