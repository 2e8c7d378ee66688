//! `aleph config`.

use crate::output::{print, print_json, say};
use aleph_control::config::DEFAULT_PATH;
use aleph_control::{Config as Node, ConfigError};
use anyhow::Result;
use serde_json::json;
use std::path::{Path, PathBuf};

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
                let table = Node::load(file.as_deref())?.table();
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
