//! `aleph config`.

use crate::output::{print, print_json, say};
use aleph_control::config::DEFAULT_PATH;
use aleph_control::{Config as Node, ConfigError};
use anyhow::Result;
use serde_json::json;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// What to do with the configuration.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Config {
    /// Look for all that is wrong with it; code 1 where something is
    Check {
        /// The file [default: /etc/aleph/aleph.toml]
        file: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print what holds, with the defaults
    Show {
        /// The file [default: /etc/aleph/aleph.toml]
        file: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

impl Config {
    pub(super) fn run(self) -> Result<u8> {
        match self {
            Self::Check { file, json } => check(file.as_deref(), json),
            Self::Show { file, json } => {
                let table = table(&Node::load(file.as_deref())?);
                if json {
                    print_json(&table)?;
                } else {
                    print(toml::to_string(&table)?.trim_end())?;
                }
                Ok(0)
            }
        }
    }
}

fn check(file: Option<&Path>, json: bool) -> Result<u8> {
    let problems = match Node::load(file) {
        Ok(_) => Vec::new(),
        Err(ConfigError::Wrong { problems, .. }) => problems,
        Err(error) => return Err(error.into()),
    };
    let shown = file.unwrap_or(Path::new(DEFAULT_PATH)).display();
    if json {
        let problem = |problem: &aleph_control::ConfigProblem| {
            json!({
                "path": problem.path,
                "line": problem.line,
                "message": problem.message,
                "meant": problem.meant,
            })
        };
        print_json(&problems.iter().map(problem).collect::<Vec<_>>())?;
    } else {
        for problem in &problems {
            say(&format!("{shown}: {problem}"));
        }
        if problems.is_empty() {
            print(format!("{shown} is right"))?;
        }
    }
    Ok(u8::from(!problems.is_empty()))
}

/// A configuration in the form of its file. All fields are named, so that none that is new can
/// be left out.
fn table(config: &Node) -> Table {
    use aleph_control::config::{
        ApiSection, ExecutorSection, ImagesSection, LimitsSection, LogsSection, NodeSection,
        RetentionSection,
    };
    let Node {
        node: NodeSection { root },
        api:
            ApiSection {
                socket,
                socket_group,
                listen,
                tls,
                max_connections,
                drain,
            },
        executor:
            ExecutorSection {
                qemu,
                accelerator,
                boot_timeout,
            },
        limits:
            LimitsSection {
                overcommit,
                reserved_memory,
                pids,
            },
        logs: LogsSection {
            max_bytes,
            segments,
        },
        images:
            ImagesSection {
                mirrors,
                plain_http,
                max_unpacked,
            },
        retention: RetentionSection { events },
    } = config;
    let path = |path: &PathBuf| text(&path.display());
    let mirrors = mirrors
        .iter()
        .map(|(registry, urls)| (registry.clone(), texts(urls)));
    let sections = [
        ("node", vec![("root", root.as_ref().map(path))]),
        (
            "api",
            vec![
                ("socket", socket.as_ref().map(path)),
                ("socket_group", Some(text(socket_group))),
                ("listen", listen.as_ref().map(text)),
                ("tls_cert", tls.as_ref().map(|tls| path(&tls.certificate))),
                ("tls_key", tls.as_ref().map(|tls| path(&tls.key))),
                ("max_connections", Some(number(*max_connections))),
                ("drain_seconds", Some(number(drain.as_secs()))),
            ],
        ),
        (
            "executor",
            vec![
                ("qemu", Some(path(qemu))),
                ("accel", accelerator.as_ref().map(text)),
                ("boot_timeout_seconds", Some(number(boot_timeout.as_secs()))),
            ],
        ),
        (
            "limits",
            vec![
                ("overcommit_cpus", Some(Value::Float(overcommit.cpus))),
                ("overcommit_memory", Some(Value::Float(overcommit.memory))),
                ("overcommit_disk", Some(Value::Float(overcommit.disk))),
                (
                    "reserved_memory",
                    Some(text(&format!("{}m", reserved_memory.0))),
                ),
                ("pids_per_vm", Some(number(*pids))),
            ],
        ),
        (
            "logs",
            vec![
                (
                    "max_bytes_per_job",
                    Some(text(&format!("{}m", max_bytes >> 20))),
                ),
                ("max_segments", Some(number(*segments))),
            ],
        ),
        (
            "images",
            vec![
                ("mirrors", Some(Value::Table(mirrors.collect()))),
                ("plain_http", Some(texts(plain_http))),
                ("max_unpacked", Some(text(&format!("{}m", max_unpacked.0)))),
            ],
        ),
        ("retention", vec![("events", Some(number(*events)))]),
    ];
    let section = |(name, keys): (&str, Vec<(&str, Option<Value>)>)| {
        let keys = keys.into_iter();
        let keys = keys.filter_map(|(key, value)| Some((key.to_owned(), value?)));
        (name.to_owned(), Value::Table(keys.collect()))
    };
    sections.into_iter().map(section).collect()
}

fn text(value: &impl ToString) -> Value {
    Value::String(value.to_string())
}

fn texts(values: &[String]) -> Value {
    Value::Array(values.iter().map(text).collect())
}

fn number(value: impl TryInto<i64>) -> Value {
    // All limits of the configuration are far below that.
    Value::Integer(value.try_into().unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_be_read_again() {
        let all = r#"
            [node]
            root = "/srv/aleph"
            [api]
            socket = "/run/a.sock"
            listen = "0.0.0.0:7400"
            tls_cert = "/etc/c.pem"
            tls_key = "/etc/k.pem"
            drain_seconds = 3
            [executor]
            accel = "tcg"
            [limits]
            overcommit_cpus = 2
            reserved_memory = "1g"
            [logs]
            max_bytes_per_job = "20m"
            [images]
            mirrors = { "docker.io" = ["http://127.0.0.1:5000"] }
            plain_http = ["registry.local:5000"]
        "#;
        for config in ["", all].map(|text| Node::check(text).unwrap()) {
            let shown = toml::to_string(&table(&config)).unwrap();
            assert_eq!(Node::check(&shown), Ok(config), "{shown}");
        }
    }
}
