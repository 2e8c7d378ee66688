//! `aleph ps`.

use crate::client::JobQuery;
use crate::context::Context;
use crate::output::{self, Color, Column, Listing, coloured, print, print_json, print_json_line};
use aleph_types::{CloudInitState, ExitStatus, Health, Job, JobState, Timestamp};
use anyhow::Result;
use std::net::SocketAddr;

/// Which jobs to list, and how.
#[derive(Debug, Default, clap::Args)]
#[allow(clippy::struct_excessive_bools)]
pub(crate) struct Ps {
    /// List those that ended too
    #[arg(short, long)]
    all: bool,

    /// Print ids only
    #[arg(short, long)]
    quiet: bool,

    /// Only jobs with name=PREFIX, label=KEY[=VALUE], status=STATE, health=STATE, image=NAME or
    /// exited=CODE; of several for one key one has to hold, but of labels all
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = filter)]
    filter: Vec<(String, String)>,

    /// Only the newest so many, ended ones too
    #[arg(short = 'n', long, value_name = "N")]
    last: Option<usize>,

    /// Only the newest, even if it ended
    #[arg(short, long)]
    latest: bool,

    /// Do not shorten ids and commands
    #[arg(long)]
    no_trunc: bool,

    /// table, or json for a line of JSON for each job
    #[arg(long, value_name = "FORM", default_value = "table", value_parser = ["table", "json"])]
    format: String,

    /// Print a list as JSON
    #[arg(long)]
    json: bool,
}

const KEYS: [&str; 6] = ["name", "label", "status", "health", "image", "exited"];

fn filter(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| format!("{text:?} has no =: write a filter as KEY=VALUE"))?;
    let key = match key {
        "state" => "status",
        "ancestor" => "image",
        key => key,
    };
    if !KEYS.contains(&key) {
        return Err(format!(
            "no filter is named {key:?}, but {}",
            KEYS.join(", ")
        ));
    }
    if key == "status" {
        value
            .parse::<JobState>()
            .map_err(|error| error.to_string())?;
    }
    Ok((key.to_owned(), value.to_owned()))
}

impl Ps {
    pub(super) async fn run(self, context: &Context) -> Result<u8> {
        let mut jobs = context.client()?.jobs(&self.query()).await?;
        jobs.retain(|job| self.wants(job));
        if let Some(last) = self.last() {
            jobs.truncate(last);
        }
        if self.quiet {
            for job in &jobs {
                let id = if self.no_trunc {
                    job.id.to_string()
                } else {
                    job.id.short()
                };
                print(id)?;
            }
        } else if self.json {
            print_json(&jobs)?;
        } else if self.format == "json" {
            for job in &jobs {
                print_json_line(job)?;
            }
        } else {
            print(listing(&jobs, self.no_trunc, Timestamp::now()))?;
        }
        Ok(0)
    }

    fn last(&self) -> Option<usize> {
        if self.latest { Some(1) } else { self.last }
    }

    fn values<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        let of_key = self.filter.iter().filter(move |(k, _)| k == key);
        of_key.map(|(_, value)| value.as_str())
    }

    /// What the node itself can tell apart.
    fn query(&self) -> JobQuery {
        let mut states: Vec<JobState> = self.values("status").flat_map(str::parse).collect();
        let all = self.all || self.last().is_some() || self.values("exited").next().is_some();
        if states.is_empty() && !all {
            let ended = |state: &JobState| state.is_over() || *state == JobState::Created;
            states = JobState::ALL.into_iter().filter(|s| !ended(s)).collect();
        }
        let mut names = self.values("name");
        let name = names.next().filter(|_| names.next().is_none());
        // The rest is told apart here, so only an unfiltered list has a known length.
        let limit = self.last().filter(|_| self.filter.is_empty());
        JobQuery {
            states,
            labels: self.values("label").map(str::to_owned).collect(),
            name: name.map(str::to_owned),
            limit,
        }
    }

    fn wants(&self, job: &Job) -> bool {
        let any = |key, holds: &dyn Fn(&str) -> bool| {
            let mut values = self.values(key).peekable();
            values.peek().is_none() || values.any(holds)
        };
        any("name", &|prefix| job.name.starts_with(prefix))
            && any("image", &|image| job.spec.image == image)
            && any("health", &|health| health_name(job.health) == health)
            && any("exited", &|code| {
                let status = job.exit.filter(|_| job.state.is_over());
                status.is_some_and(|status| status.shell_code().to_string() == code)
            })
    }
}

fn health_name(health: Option<Health>) -> &'static str {
    match health {
        None => "none",
        Some(Health::Starting) => "starting",
        Some(Health::Healthy) => "healthy",
        Some(Health::Unhealthy) => "unhealthy",
    }
}

fn listing(jobs: &[Job], no_trunc: bool, now: Timestamp) -> Listing {
    let mut listing = Listing::new(&[
        Column::Whole("ID"),
        Column::Text("IMAGE"),
        Column::Text("COMMAND"),
        Column::Text("CREATED"),
        Column::Least("STATUS", 14),
        Column::Text("PORTS"),
        Column::Whole("NAME"),
    ]);
    for job in jobs {
        let id = if no_trunc {
            job.id.to_string()
        } else {
            job.id.short()
        };
        let entrypoint = job.spec.entrypoint.iter().flatten();
        let command: Vec<_> = entrypoint.chain(&job.spec.command).cloned().collect();
        let command = output::plain(&command.join(" "));
        let command = if no_trunc {
            command
        } else {
            output::shortened(&command, 24)
        };
        listing.row([
            coloured(id, None),
            coloured(output::plain(&job.spec.image), None),
            coloured(command, None),
            coloured(output::ago(job.created_at, now), None),
            coloured(status(job, now), colour(job)),
            coloured(ports(job), None),
            coloured(job.name.as_str(), None),
        ]);
    }
    listing
}

/// Full VMs.
pub(super) fn vms(jobs: &[Job]) -> Listing {
    let mut listing = Listing::new(&[
        Column::Whole("ID"),
        Column::Text("IMAGE"),
        Column::Least("STATUS", 14),
        Column::Text("CLOUD-INIT"),
        Column::Text("ADDRESS"),
        Column::Whole("NAME"),
    ]);
    let now = Timestamp::now();
    for job in jobs {
        let address = job
            .network
            .as_ref()
            .map(|network| network.vm_ip.to_string());
        // In its own column is more of it.
        let mut bare = job.clone();
        let told = bare.cloud_init.take().map(|told| match told.reason {
            Some(reason) => format!("{}: {reason}", told.state),
            None => told.state.to_string(),
        });
        listing.row([
            coloured(job.id.short(), None),
            coloured(output::plain(&job.spec.image), None),
            coloured(status(&bare, now), colour(job)),
            coloured(output::plain(&told.unwrap_or_default()), None),
            coloured(address.unwrap_or_default(), None),
            coloured(job.name.as_str(), None),
        ]);
    }
    listing
}

/// What leads to its guest, as docker has it.
fn ports(job: &Job) -> String {
    let ports = job.network.iter().flat_map(|n| &n.forwarded_ports);
    let ports = ports.map(|p| {
        let host = SocketAddr::new(p.host_ip, p.host_port);
        format!("{host}->{}/{}", p.vm_port, p.protocol)
    });
    output::shortened(&ports.collect::<Vec<_>>().join(", "), 40)
}

/// Where a job's life is, as a sentence.
fn status(job: &Job, now: Timestamp) -> String {
    let up = || match job.started_at {
        Some(then) => format!("Up {}", output::since(then, now)),
        None => "Up".into(),
    };
    let ended = || match job.finished_at {
        Some(then) => format!(" {}", output::ago(then, now)),
        None => String::new(),
    };
    let code = job.exit.map(|exit| match exit {
        ExitStatus::Code(code) => format!(" ({code})"),
        ExitStatus::Signal(_) => format!(" ({})", exit.shell_code()),
    });
    let code = code.unwrap_or_default();
    match job.state {
        JobState::Running if job.impaired.is_some() => format!("{} (impaired)", up()),
        JobState::Running => match job.health {
            None => match job.cloud_init.as_ref().map(|told| told.state) {
                None | Some(CloudInitState::Done) => up(),
                Some(state) => format!("{} (cloud-init: {state})", up()),
            },
            Some(Health::Starting) => format!("{} (health: starting)", up()),
            Some(health) => format!("{} ({})", up(), health_name(Some(health))),
        },
        JobState::Paused => format!("{} (paused)", up()),
        JobState::Exited => format!("Exited{code}{}", ended()),
        JobState::Failed => format!("Failed{code}{}", ended()),
        JobState::Restarting => format!("Restarting{code}{}", ended()),
        state => {
            let name = state.name();
            let (first, rest) = name.split_at(1);
            format!("{}{rest}", first.to_ascii_uppercase())
        }
    }
}

fn colour(job: &Job) -> Option<Color> {
    match (job.state, job.health) {
        (JobState::Running, Some(Health::Unhealthy)) | (JobState::Failed, _) => {
            Some(Color::DarkRed)
        }
        (JobState::Running, _) if job.impaired.is_some() => Some(Color::DarkRed),
        (JobState::Running, _) => Some(Color::DarkGreen),
        (JobState::Exited, _) => match job.exit {
            Some(status) if !status.success() => Some(Color::DarkRed),
            _ => None,
        },
        (JobState::Created | JobState::Destroyed, _) => None,
        _ => Some(Color::DarkYellow),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aleph_types::{Incarnation, JobId, JobSpec};

    fn job(name: &str, state: JobState) -> Job {
        let command = vec!["sh".into(), "-c".into(), "while true; do date; done".into()];
        Job {
            id: JobId::from_bits(0x1234_abcd << 96),
            name: name.into(),
            account: "default".into(),
            spec: JobSpec::new("debian:12", command),
            state,
            reason: None,
            exit: None,
            health: None,
            cloud_init: None,
            impaired: None,
            incarnation: Incarnation::default(),
            restarts: 0,
            vm: None,
            driver: None,
            image_digest: None,
            kernel_digest: None,
            guest_boot_id: None,
            network: None,
            gpus: Vec::new(),
            migration: None,
            made_volumes: Vec::new(),
            created_at: Timestamp::from_second(1_000_000).unwrap(),
            started_at: Some(Timestamp::from_second(1_000_010).unwrap()),
            finished_at: None,
            boot_ms: None,
            generation: 1,
        }
    }

    fn jobs() -> Vec<Job> {
        let mut healthy = job("web", JobState::Running);
        healthy.health = Some(Health::Healthy);
        let mut exited = job("batch", JobState::Exited);
        exited.exit = Some(ExitStatus::Signal(9));
        exited.finished_at = Some(Timestamp::from_second(1_003_000).unwrap());
        let starting = job("with-a-rather-long-name", JobState::Starting);
        vec![healthy, exited, starting]
    }

    #[test]
    fn the_list_fits_terminals() {
        let now = Timestamp::from_second(1_007_000).unwrap();
        let wide = listing(&jobs(), false, now).in_width(140);
        let narrow = listing(&jobs(), false, now).in_width(80);
        insta::assert_snapshot!(format!("{wide}\n\n{narrow}"));
    }

    #[test]
    fn a_machine_that_is_impaired_is_seen() {
        let mut impaired = job("web", JobState::Running);
        impaired.impaired = Some("the process of its TPM has ended".into());
        let now = Timestamp::from_second(1_000_070).unwrap();
        assert_eq!(status(&impaired, now), "Up about a minute (impaired)");
        assert_eq!(colour(&impaired), Some(Color::DarkRed));
    }

    #[test]
    fn filters_choose() {
        let chosen = |filters: &[&str]| -> Vec<String> {
            let filter = filters.iter().map(|text| filter(text).unwrap()).collect();
            let ps = Ps {
                filter,
                ..Ps::default()
            };
            let jobs = jobs().into_iter().filter(|job| ps.wants(job));
            jobs.map(|job| job.name).collect()
        };
        assert_eq!(chosen(&["name=w", "health=healthy"]), ["web"]);
        assert_eq!(chosen(&["name=web", "name=batch"]), ["web", "batch"]);
        assert_eq!(chosen(&["exited=137"]), ["batch"]);
        assert_eq!(chosen(&["ancestor=debian:11"]), Vec::<String>::new());
        for wrong in ["name", "colour=red", "status=asleep"] {
            assert!(filter(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn without_a_word_only_those_that_live_are_asked_for() {
        let states = Ps::default().query().states;
        assert!(states.contains(&JobState::Running) && states.contains(&JobState::Restarting));
        assert!(!states.contains(&JobState::Exited) && !states.contains(&JobState::Created));
        let all = Ps {
            all: true,
            ..Ps::default()
        };
        assert!(all.query().states.is_empty());
    }
}
