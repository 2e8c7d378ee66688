//! The command line, in Firecracker's form.

use std::path::PathBuf;

/// What it says.
#[derive(Debug, Clone)]
pub(crate) struct Arguments {
    pub(crate) api_sock: PathBuf,
    pub(crate) id: String,
    pub(crate) config_file: Option<PathBuf>,
    pub(crate) metadata: Option<PathBuf>,
    pub(crate) no_api: bool,
    pub(crate) log_path: Option<PathBuf>,
    pub(crate) level: Option<String>,
    pub(crate) module: Option<String>,
    pub(crate) show_level: bool,
    pub(crate) show_log_origin: bool,
    pub(crate) metrics_path: Option<PathBuf>,
    pub(crate) enable_pci: bool,
    pub(crate) payload_limit: usize,
    pub(crate) mmds_limit: usize,
}

/// What is to be done.
#[derive(Debug, Clone)]
pub(crate) enum Command {
    Help,
    Version,
    SnapshotVersion,
    DescribeSnapshot(PathBuf),
    Run(Box<Arguments>),
}

/// Why it is none, in Firecracker's words.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArgumentError {
    #[error("Argument '{1}' cannot be used together with argument '{0}'.")]
    Forbidden(&'static str, &'static str),
    #[error("Argument '{0}' required, but not found.")]
    Missing(&'static str),
    #[error("The argument '{0}' requires a value, but none was supplied.")]
    NoValue(String),
    #[error("Found argument '{0}' which wasn't expected, or isn't valid in this context.")]
    Unexpected(String),
    #[error("The argument '{0}' was provided more than once.")]
    Twice(String),
}

/// Options that take a value.
const VALUES: [&str; 15] = [
    "api-sock",
    "id",
    "seccomp-filter",
    "start-time-us",
    "start-time-cpu-us",
    "parent-cpu-time-us",
    "config-file",
    "metadata",
    "log-path",
    "level",
    "module",
    "metrics-path",
    "describe-snapshot",
    "http-api-max-payload-size",
    "mmds-size-limit",
];

/// Options that do not; `enable-pci` came later.
const FLAGS: [&str; 7] = [
    "no-seccomp",
    "no-api",
    "show-level",
    "show-log-origin",
    "boot-timer",
    "snapshot-version",
    "enable-pci",
];

/// Understands the words after the program's name.
pub(crate) fn parse(words: &[String], has_pci: bool) -> Result<Command, ArgumentError> {
    // What follows `--` is nobody's.
    let end = words.iter().position(|word| word == "--");
    let words = &words[..end.unwrap_or(words.len())];
    let says = |option: &str| words.iter().any(|word| word == option);
    if says("--help") || says("-h") {
        return Ok(Command::Help);
    }
    if says("--version") {
        return Ok(Command::Version);
    }
    let mut given: Vec<(&str, Option<&str>)> = Vec::new();
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        let Some(name) = word.strip_prefix("--") else {
            return Err(ArgumentError::Unexpected(word.clone()));
        };
        let flag = FLAGS.contains(&name) && (has_pci || name != "enable-pci");
        if !flag && !VALUES.contains(&name) {
            return Err(ArgumentError::Unexpected(name.to_owned()));
        }
        if given.iter().any(|(known, _)| *known == name) {
            return Err(ArgumentError::Twice(name.to_owned()));
        }
        let value = match flag {
            true => None,
            false => {
                let value = rest.next().filter(|value| !value.starts_with("--"));
                Some(
                    value
                        .ok_or_else(|| ArgumentError::NoValue(name.to_owned()))?
                        .as_str(),
                )
            }
        };
        given.push((name, value));
    }
    let has = |name: &str| given.iter().any(|(known, _)| *known == name);
    let value = |name: &str| given.iter().find(|(known, _)| *known == name)?.1;
    let path = |name: &str| value(name).map(PathBuf::from);
    if has("no-api") && !has("config-file") {
        return Err(ArgumentError::Missing("config-file"));
    }
    if has("no-seccomp") && has("seccomp-filter") {
        return Err(ArgumentError::Forbidden("no-seccomp", "seccomp-filter"));
    }
    if has("snapshot-version") {
        return Ok(Command::SnapshotVersion);
    }
    if let Some(path) = path("describe-snapshot") {
        return Ok(Command::DescribeSnapshot(path));
    }
    // The real one panics at a number that is none.
    let number = |name: &str| value(name).map(|text| text.parse().unwrap_or_else(|_| abort(name)));
    let payload_limit = number("http-api-max-payload-size").unwrap_or(51_200);
    Ok(Command::Run(Box::new(Arguments {
        api_sock: path("api-sock").unwrap_or_else(|| "/run/firecracker.socket".into()),
        id: value("id").unwrap_or("anonymous-instance").to_owned(),
        config_file: path("config-file"),
        metadata: path("metadata"),
        no_api: has("no-api"),
        log_path: path("log-path"),
        level: value("level").map(str::to_owned),
        module: value("module").map(str::to_owned),
        show_level: has("show-level"),
        show_log_origin: has("show-log-origin"),
        metrics_path: path("metrics-path"),
        enable_pci: has("enable-pci"),
        payload_limit,
        mmds_limit: number("mmds-size-limit").unwrap_or(payload_limit),
    })))
}

fn abort(name: &str) -> usize {
    crate::log!(Error, "Firecracker panicked: '{name}' is no number");
    std::process::abort()
}
