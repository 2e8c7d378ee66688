//! `aleph snapshot`, `aleph restore` and `aleph fork`.

use super::completion::{jobs, snapshots};
use super::each::each;
use crate::context::Context;
use crate::output::{
    Column, Listing, ago, plain, print, print_error, print_json, print_json_line, size,
};
use aleph_types::{ForkRequest, MAX_COPIES, PortForward, RestoreRequest, Timestamp};
use anyhow::Result;
use clap_complete::ArgValueCompleter;
use serde_json::json;

/// Which job to write down, or what to do with snapshots.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Snapshot {
    #[command(subcommand)]
    action: Option<Action>,

    #[command(flatten)]
    create: Create,
}

/// What to do with snapshots.
#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Write a job's guest down: memory, devices and disk
    Create(Create),
    /// List snapshots
    #[command(visible_alias = "list")]
    Ls {
        /// Print ids only
        #[arg(short, long)]
        quiet: bool,
        /// Do not shorten ids
        #[arg(long)]
        no_trunc: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove snapshots
    Rm {
        /// Ids of snapshots
        #[arg(required = true, value_name = "SNAPSHOT", add = ArgValueCompleter::new(snapshots))]
        ids: Vec<String>,
        /// Print a line of JSON for each snapshot
        #[arg(long)]
        json: bool,
    },
    /// Show all that is known of snapshots, as JSON
    Inspect {
        /// Ids of snapshots
        #[arg(required = true, value_name = "SNAPSHOT", add = ArgValueCompleter::new(snapshots))]
        ids: Vec<String>,
    },
}

#[derive(Debug, clap::Args)]
struct Create {
    /// Name or id of a job
    #[arg(required = true, value_name = "JOB", add = ArgValueCompleter::new(jobs::running))]
    job: Option<String>,

    /// End the job there, to go on from the snapshot later
    #[arg(long)]
    stop: bool,

    /// Print the snapshot as a line of JSON
    #[arg(long)]
    json: bool,
}

impl Snapshot {
    pub(super) async fn run(self, context: &Context) -> Result<u8> {
        let client = context.client()?;
        match self.action {
            None => self.create.run(context).await,
            Some(Action::Create(create)) => create.run(context).await,
            Some(Action::Ls {
                quiet,
                no_trunc,
                json,
            }) => {
                let found = client.snapshots().await?;
                let id = |snapshot: &aleph_types::Snapshot| match no_trunc {
                    true => snapshot.id.to_string(),
                    false => snapshot.id.short(),
                };
                if json {
                    print_json(&found)?;
                } else if quiet {
                    found.iter().try_for_each(|snapshot| print(id(snapshot)))?;
                } else {
                    print(listing(&found, id, Timestamp::now()))?;
                }
                Ok(0)
            }
            Some(Action::Rm { ids, json }) => {
                let remove = async |id: &str| {
                    client.remove_snapshot(id).await?;
                    Ok(json!({ "id": id, "removed": true }))
                };
                each(&ids, json, remove).await
            }
            Some(Action::Inspect { ids }) => {
                let (mut found, mut code) = (Vec::new(), 0);
                for id in &ids {
                    match client.snapshot_of(id).await {
                        Ok(snapshot) => found.push(snapshot),
                        Err(error) => {
                            print_error(&error.into());
                            code = crate::FAILED;
                        }
                    }
                }
                print_json(&found)?;
                Ok(code)
            }
        }
    }
}

impl Create {
    async fn run(self, context: &Context) -> Result<u8> {
        let job = self.job.unwrap_or_default();
        let snapshot = context.client()?.snapshot(&job, self.stop).await?;
        if self.json {
            print_json_line(&snapshot)?;
        } else {
            print(snapshot.id)?;
        }
        Ok(0)
    }
}

fn listing(
    snapshots: &[aleph_types::Snapshot],
    id: impl Fn(&aleph_types::Snapshot) -> String,
    now: Timestamp,
) -> Listing {
    let mut listing = Listing::new(&[
        Column::Whole("SNAPSHOT"),
        Column::Text("JOB"),
        Column::Text("IMAGE"),
        Column::Text("CREATED"),
        Column::Number("MEMORY"),
        Column::Number("SIZE"),
    ]);
    for snapshot in snapshots {
        listing.row([
            id(snapshot),
            plain(&snapshot.job_name),
            plain(&snapshot.image),
            ago(snapshot.created_at, now),
            size(snapshot.resources.memory.bytes()),
            size(snapshot.size),
        ]);
    }
    listing
}

/// Which snapshot to go on from.
#[derive(Debug, clap::Args)]
pub(crate) struct Restore {
    /// Id of a snapshot
    #[arg(value_name = "SNAPSHOT", add = ArgValueCompleter::new(snapshots))]
    snapshot: String,

    /// The job's name [default: made up]
    #[arg(long)]
    name: Option<String>,

    /// Lead a port of this host to the guest, such as 8080:80 or 127.0.0.1:5353:53/udp
    #[arg(short, long, value_name = "PORTS")]
    publish: Vec<PortForward>,

    /// Print the job as a line of JSON
    #[arg(long)]
    json: bool,
}

impl Restore {
    pub(super) async fn run(self, context: &Context) -> Result<u8> {
        let request = RestoreRequest {
            name: self.name,
            ports: self.publish,
        };
        let job = context.client()?.restore(&self.snapshot, &request).await?;
        if self.json {
            print_json_line(&job)?;
        } else {
            print(job.id)?;
        }
        Ok(0)
    }
}

/// Which job to make copies of.
#[derive(Debug, clap::Args)]
pub(crate) struct Fork {
    /// Name or id of a job
    #[arg(value_name = "JOB", add = ArgValueCompleter::new(jobs::running))]
    job: String,

    /// How many copies
    #[arg(
        short = 'n',
        long,
        value_name = "NUMBER",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_COPIES))
    )]
    copies: u32,

    /// What the copies are called, with -1, -2 and so on behind it [default: made up]
    #[arg(long)]
    name: Option<String>,

    /// Keep the snapshot that the copies go on from
    #[arg(long)]
    keep: bool,

    /// Print the copies as a line of JSON
    #[arg(long)]
    json: bool,
}

impl Fork {
    pub(super) async fn run(self, context: &Context) -> Result<u8> {
        let request = ForkRequest {
            copies: self.copies,
            name: self.name,
            keep: self.keep,
        };
        let forked = context.client()?.fork(&self.job, &request).await?;
        if self.json {
            print_json_line(&forked)?;
        } else {
            forked.jobs.iter().try_for_each(|job| print(job.id))?;
        }
        Ok(0)
    }
}
