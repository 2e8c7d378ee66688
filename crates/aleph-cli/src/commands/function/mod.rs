//! `aleph fn`.
//!
//! | file | what it is |
//! | --- | --- |
//! | this one | the commands that fit in few lines |
//! | `settings` | what is set, from flags; create and update |
//! | `alias` | names of versions |
//! | `url` | a function's URL |
//! | `invocation` | a function's run |
//! | `schedule` | events that come as time passes |
//! | `source` | events that come of NATS |
//! | `tables` | lists as people read them |

mod alias;
mod invocation;
mod schedule;
mod settings;
mod source;
mod tables;
mod url;

use super::each::each;
use crate::client::Client;
use crate::context::Context;
use crate::output::{Advised, plain, print, print_json, print_json_line};
use aleph_types::Timestamp;
use alias::Alias;
use anyhow::Result;
use invocation::Invocation;
use schedule::Schedule;
use serde_json::{Value, json};
use settings::{Create, Update};
use source::Source;
use std::time::Duration;
use tables::{listing, version_listing};
use tokio::time::{Instant, sleep};
use url::Url;

/// How long a function may take until it is ready.
const READY_TIME: Duration = Duration::from_secs(600);
/// The pause before it is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What to do with functions.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Function {
    /// Make a function of an archive of code, or of an image
    Create(Box<Create>),
    /// List functions
    #[command(visible_alias = "list")]
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show all that the node knows of functions, as JSON
    Inspect {
        /// Names of functions, such as hello, hello:3 or hello:live
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// Print JSON, which is what is printed anyway
        #[arg(long, hide = true)]
        json: bool,
    },
    /// Change a function's code or settings
    Update(Box<Update>),
    /// Make a version of a function as it is now, and print its number
    Publish {
        /// Name of the function
        name: String,
        /// What it is, in your words
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
        /// Return once it is ready
        #[arg(long)]
        wait: bool,
        /// Print the version as a line of JSON
        #[arg(long)]
        json: bool,
    },
    /// List the versions of a function
    Versions {
        /// Name of the function
        name: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Name a version, or list the names; names move from version to version
    Alias(Alias),
    /// Give a function a URL, or show or change the one it has
    Url(Url),
    /// Run a function, and print its answer
    Invoke(Invocation),
    /// Have a function run by the clock, or show or remove a schedule of it
    Schedule(Schedule),
    /// List schedules
    Schedules {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Have a function get the messages of a subject of NATS or of a stream
    Source(Source),
    /// List sources of events
    Sources {
        /// Name of the function [default: all]
        name: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove functions with all their versions, or single versions, such as hello:3
    Rm {
        /// Names of functions
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// Print a line of JSON for each function
        #[arg(long)]
        json: bool,
    },
}

impl Function {
    pub(super) async fn run(self, context: &Context) -> Result<u8> {
        let client = context.client()?;
        match self {
            Self::Create(create) => create.run(&client).await?,
            Self::Ls { json } => {
                let functions = client.functions().await?;
                if json {
                    print_json(&functions)?;
                } else {
                    print(listing(&functions, Timestamp::now()))?;
                }
            }
            Self::Inspect { names, .. } => {
                let mut all = Vec::new();
                for name in &names {
                    let mut function = client.function(name).await?;
                    function["FunctionUrlConfigs"] = client.function_urls(name).await?.into();
                    all.push(function);
                }
                print_json(&all)?;
            }
            Self::Update(update) => update.run(&client).await?,
            Self::Publish {
                name,
                description,
                wait,
                json,
            } => {
                let mut wanted = json!({});
                if let Some(description) = description {
                    wanted["Description"] = description.into();
                }
                let mut version = client.publish_function(&name, &wanted).await?;
                let number = text(&version, "Version").to_owned();
                if wait {
                    version = ready(&client, &format!("{name}:{number}")).await?;
                }
                told(&version, json, &number)?;
            }
            Self::Versions { name, json } => {
                let versions = client.function_versions(&name).await?;
                if json {
                    print_json(&versions)?;
                } else {
                    print(version_listing(&versions, Timestamp::now()))?;
                }
            }
            Self::Alias(alias) => alias.run(&client).await?,
            Self::Url(url) => url.run(&client).await?,
            Self::Invoke(run) => return run.run(&client).await,
            Self::Schedule(schedule) => schedule.run(&client).await?,
            Self::Schedules { json } => schedule::list(&client, json).await?,
            Self::Source(source) => source.run(&client).await?,
            Self::Sources { name, json } => source::list(&client, name.as_deref(), json).await?,
            Self::Rm { names, json } => {
                let remove = async |name: &str| {
                    client.remove_function(name).await?;
                    Ok(json!({ "name": name, "removed": true }))
                };
                return each(&names, json, remove).await;
            }
        }
        Ok(0)
    }
}

/// Tells what came of a command: a name, or all of it.
fn told(value: &Value, json: bool, name: &str) -> Result<()> {
    if json {
        print_json_line(value)
    } else {
        print(name)
    }
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_default()
}

/// Waits until nothing is under way, and gives the configuration. What failed is an error.
async fn ready(client: &Client, name: &str) -> Result<Value> {
    let end = Instant::now() + READY_TIME;
    loop {
        let mut function = client.function(name).await?;
        let configuration = function["Configuration"].take();
        match text(&configuration, "LastUpdateStatus") {
            "Successful" => return Ok(configuration),
            "Failed" => {
                let why = plain(text(&configuration, "LastUpdateStatusReason"));
                return Err(Advised {
                    what: format!("{name} is not ready: {why}"),
                    advice: "Mend it, and change it with: aleph fn update".into(),
                }
                .into());
            }
            _ if Instant::now() > end => {
                return Err(Advised {
                    what: format!("{name} is not ready after {} s", READY_TIME.as_secs()),
                    advice: format!("Look at it with: aleph fn inspect {name}"),
                }
                .into());
            }
            _ => sleep(LOOK_AGAIN).await,
        }
    }
}
