//! `aleph fn`.

use super::each::each;
use crate::client::{Client, ClientError, Invoke, Invoked};
use crate::context::Context;
use crate::duration::{duration, whole_seconds};
use crate::output::{
    Advised, Column, Listing, ago, plain, print, print_json, print_json_line, say, size,
};
use crate::spec::environment;
use aleph_types::{MiB, Timestamp};
use anyhow::{Context as _, Result};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long a function may take until it is ready.
const READY_TIME: Duration = Duration::from_secs(600);
/// The pause before it is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// The exit code where the function failed: ours are others.
const FUNCTION_FAILED: u8 = 1;
/// The most bytes of an event that is read; the node's own limit is lower.
const MOST_EVENT: u64 = 16 << 20;

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
    Alias {
        /// Name of the function
        name: String,
        /// The alias
        alias: Option<String>,
        /// The version that it leads to
        version: Option<String>,
        /// Lead a part of invocations to another version, such as 2=0.1
        #[arg(long, value_name = "VERSION=PART", value_parser = weight, requires = "version")]
        weight: Option<(String, f64)>,
        /// Remove the alias
        #[arg(long, requires = "alias", conflicts_with = "version")]
        rm: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Run a function, and print its answer
    Invoke(RunIt),
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

/// Where code comes from, and what is set.
#[derive(Debug, clap::Args)]
pub(crate) struct Settings {
    /// The archive of its code
    #[arg(long, value_name = "FILE")]
    zip: Option<PathBuf>,
    /// The image of its code, instead of an archive
    #[arg(long, value_name = "REFERENCE", conflicts_with = "zip")]
    image: Option<String>,
    /// What runs the code, such as python3.11
    #[arg(long, value_name = "NAME")]
    runtime: Option<String>,
    /// What the runtime calls, such as app.handler
    #[arg(long, value_name = "NAME")]
    handler: Option<String>,
    /// Memory of a guest [default: 128m]
    #[arg(short, long, value_name = "SIZE")]
    memory: Option<MiB>,
    /// How long an invocation may take [default: 3s]
    #[arg(short, long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
    /// How much /tmp may hold [default: 512m]
    #[arg(long, value_name = "SIZE")]
    tmp: Option<MiB>,
    /// Set an environment variable; without a value it is taken from here
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Read environment variables from a file, one NAME=VALUE a line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// What it is, in your words
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Give each invocation a guest of its own, or let those of a version follow in one
    #[arg(long, value_name = "KIND", value_parser = ["deployment", "invocation"])]
    isolation: Option<String>,
}

/// A function to make.
#[derive(Debug, clap::Args)]
pub(crate) struct Create {
    /// Name of the function
    name: String,
    #[command(flatten)]
    settings: Settings,
    /// The role that AWS would run it as; it is kept and means nothing here
    #[arg(
        long,
        value_name = "ARN",
        default_value = "arn:aws:iam::000000000000:role/aleph",
        hide_default_value = true,
        hide_short_help = true
    )]
    role: String,
    /// Make version 1 of it at once
    #[arg(long)]
    publish: bool,
    /// Return once it is ready
    #[arg(long)]
    wait: bool,
    /// Print the function as a line of JSON
    #[arg(long)]
    json: bool,
}

/// A function to change.
#[derive(Debug, clap::Args)]
pub(crate) struct Update {
    /// Name of the function
    name: String,
    #[command(flatten)]
    settings: Settings,
    /// Return once it is ready
    #[arg(long)]
    wait: bool,
    /// Print the function as a line of JSON
    #[arg(long)]
    json: bool,
}

/// A function to run.
#[derive(Debug, clap::Args)]
pub(crate) struct RunIt {
    /// Name of the function, such as hello, hello:3 or hello:live
    name: String,
    /// The event: JSON, @FILE, or - for standard input [default: {}]
    #[arg(short, long, value_name = "JSON")]
    payload: Option<String>,
    /// The version or alias
    #[arg(short, long, value_name = "NAME")]
    qualifier: Option<String>,
    /// Leave the event with the node, which runs it later, and again where it fails
    #[arg(long = "async")]
    later: bool,
    /// Print the end of what the function wrote to standard error
    #[arg(long, conflicts_with = "later")]
    log: bool,
    /// Print the answer alone
    #[arg(long)]
    quiet: bool,
}

fn weight(text: &str) -> Result<(String, f64), String> {
    let wrong = || format!("{text:?} is no part of a version: write 2=0.1");
    let (version, part) = text.split_once('=').ok_or_else(wrong)?;
    let part: f64 = part.parse().map_err(|_| wrong())?;
    if (0.0..=1.0).contains(&part) {
        Ok((version.to_owned(), part))
    } else {
        Err(wrong())
    }
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
                    all.push(client.function(name).await?);
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
            Self::Alias {
                name,
                alias: None,
                json,
                ..
            } => {
                let aliases = client.function_aliases(&name).await?;
                if json {
                    print_json(&aliases)?;
                } else {
                    print(alias_listing(&aliases))?;
                }
            }
            Self::Alias {
                name,
                alias: Some(alias),
                version,
                weight,
                rm,
                json,
            } => return set_alias(&client, (&name, &alias), version, weight, rm, json).await,
            Self::Invoke(run) => return run.run(&client).await,
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

async fn set_alias(
    client: &Client,
    (name, alias): (&str, &str),
    version: Option<String>,
    weight: Option<(String, f64)>,
    rm: bool,
    json: bool,
) -> Result<u8> {
    if rm {
        client.remove_function_alias(name, alias).await?;
        told(&json!({ "name": alias, "removed": true }), json, alias)?;
        return Ok(0);
    }
    let Some(version) = version else {
        let aliases = client.function_aliases(name).await?;
        let found = aliases.iter().find(|one| text(one, "Name") == alias);
        let Some(found) = found else {
            return Err(Advised {
                what: format!("{name} has no alias {alias:?}"),
                advice: format!("Make it with: aleph fn alias {name} {alias} VERSION"),
            }
            .into());
        };
        told(found, json, text(found, "FunctionVersion"))?;
        return Ok(0);
    };
    let weights: Value = match weight {
        Some((other, part)) => json!({ other: part }),
        None => json!({}),
    };
    let wanted = json!({
        "FunctionVersion": version,
        "RoutingConfig": { "AdditionalVersionWeights": weights },
    });
    let set = client.set_function_alias(name, alias, &wanted).await?;
    told(&set, json, alias)?;
    Ok(0)
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

impl Settings {
    /// What is said, in the node's words; `None` where nothing is.
    fn said(&self) -> Result<Value> {
        let mut said = json!({});
        let mut set = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                said[key] = value;
            }
        };
        set("Runtime", self.runtime.clone().map(Value::from));
        set("Handler", self.handler.clone().map(Value::from));
        set("Description", self.description.clone().map(Value::from));
        set("MemorySize", self.memory.map(|memory| memory.0.into()));
        let seconds = self.timeout.map(|timeout| whole_seconds(timeout).into());
        set("Timeout", seconds);
        let storage = self.tmp.map(|tmp| json!({ "Size": tmp.0 }));
        set("EphemeralStorage", storage);
        set("Isolation", self.isolation.clone().map(Value::from));
        if !(self.env.is_empty() && self.env_file.is_empty()) {
            let variables = environment(&self.env_file, &self.env)?;
            set("Environment", Some(json!({ "Variables": variables })));
        }
        Ok(said)
    }

    /// Its code, in the node's words.
    fn code(&self) -> Result<Option<Value>> {
        match (&self.zip, &self.image) {
            (Some(file), _) => Ok(Some(json!({ "ZipFile": encoded(file)? }))),
            (None, Some(image)) => Ok(Some(json!({ "ImageUri": image }))),
            (None, None) => Ok(None),
        }
    }
}

fn encoded(file: &Path) -> Result<String> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(BASE64_STANDARD.encode(bytes))
}

impl Create {
    async fn run(self, client: &Client) -> Result<()> {
        let Some(code) = self.settings.code()? else {
            return Err(Advised {
                what: "a function needs code".into(),
                advice: "Give it --zip FILE with --runtime and --handler, or --image REFERENCE."
                    .into(),
            }
            .into());
        };
        let mut function = self.settings.said()?;
        function["FunctionName"] = self.name.as_str().into();
        function["Role"] = self.role.into();
        function["Publish"] = self.publish.into();
        if self.settings.image.is_some() {
            function["PackageType"] = "Image".into();
        }
        function["Code"] = code;
        let mut made = client.create_function(&function).await?;
        drop(function);
        if self.wait {
            made = ready(client, &self.name).await?;
        }
        told(&made, self.json, &self.name)
    }
}

impl Update {
    async fn run(self, client: &Client) -> Result<()> {
        let (settings, code) = (self.settings.said()?, self.settings.code()?);
        let some = settings.as_object().is_some_and(|all| !all.is_empty());
        if !some && code.is_none() {
            return Err(Advised {
                what: format!("nothing of {} is to be changed", self.name),
                advice: "See aleph fn update --help for what can be.".into(),
            }
            .into());
        }
        let mut made = Value::Null;
        if some {
            made = client.configure_function(&self.name, &settings).await?;
        }
        if let Some(code) = code {
            if some {
                // One change after the other.
                ready(client, &self.name).await?;
            }
            made = client.upload_function(&self.name, &code).await?;
        }
        if self.wait {
            made = ready(client, &self.name).await?;
        }
        told(&made, self.json, &self.name)
    }
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

impl RunIt {
    async fn run(self, client: &Client) -> Result<u8> {
        let payload = payload(self.payload.as_deref())?;
        let name = match &self.qualifier {
            Some(qualifier) => format!("{}:{qualifier}", self.name),
            None => self.name.clone(),
        };
        let how = match self.later {
            true => Invoke::Later,
            false => Invoke::Wait { log: self.log },
        };
        let done = client.invoke_function(&name, payload, how).await;
        let done = done.map_err(|error| advised(error, &self.name))?;
        if self.later {
            // The id is what logs and dead letters call it by.
            print(&done.request)?;
            return Ok(0);
        }
        let mut out = io::stdout().lock();
        let written = out
            .write_all(&done.payload)
            .and_then(|()| match done.payload.last() {
                Some(b'\n') => Ok(()),
                _ => out.write_all(b"\n"),
            })
            .and_then(|()| out.flush());
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return Err(crate::output::OutputGone.into());
            }
            written => written.context("cannot write to standard output")?,
        }
        if let Some(log) = &done.log {
            let _ = io::stderr().write_all(log);
        }
        if !self.quiet {
            say(&summary(&done));
        }
        Ok(match done.error {
            Some(_) => FUNCTION_FAILED,
            None => 0,
        })
    }
}

/// A function that is not there is perhaps another account's.
fn advised(error: ClientError, name: &str) -> anyhow::Error {
    match error {
        ClientError::Refused(mut problem) if problem.code == "ResourceNotFoundException" => {
            problem.advice = Some(format!(
                "See aleph fn ls for the functions there are, and aleph fn create for {name}."
            ));
            ClientError::Refused(problem).into()
        }
        error => error.into(),
    }
}

fn payload(word: Option<&str>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match word {
        None => bytes.extend_from_slice(b"{}"),
        Some("-") => {
            let mut input = io::stdin().lock().take(MOST_EVENT);
            input
                .read_to_end(&mut bytes)
                .context("cannot read standard input")?;
        }
        Some(word) => match word.strip_prefix('@') {
            Some(file) => {
                bytes = std::fs::read(file).with_context(|| format!("cannot read {file}"))?;
            }
            None => bytes.extend_from_slice(word.as_bytes()),
        },
    }
    Ok(bytes)
}

/// `aleph: warm · 3.1 ms (queue 0.1, resume 0, function 2.6)`
fn summary(done: &Invoked) -> String {
    let number = |ms: f64| match ms {
        0.0 => "0".to_owned(),
        ms if ms < 100.0 => format!("{ms:.1}"),
        ms => format!("{ms:.0}"),
    };
    let all: f64 = done.timings.iter().map(|(_, ms)| ms).sum();
    let parts = done.timings.iter();
    let parts: Vec<_> = parts
        .map(|(name, ms)| format!("{} {}", plain(name), number(*ms)))
        .collect();
    let temperature = done.temperature.as_deref().unwrap_or("done");
    let failed = match &done.error {
        Some(error) => format!(" · failed ({})", plain(error)),
        None => String::new(),
    };
    let version = match done.version.as_deref() {
        None | Some("$LATEST") => String::new(),
        Some(version) => format!(" · version {}", plain(version)),
    };
    format!(
        "aleph: {} · {} ms ({}){version}{failed}",
        plain(temperature),
        number(all),
        parts.join(", ")
    )
}

fn modified(value: &Value, now: Timestamp) -> String {
    // The API's form has an offset without a colon.
    let then = text(value, "LastModified").replace("+0000", "Z");
    let then = then.parse::<Timestamp>();
    then.map(|then| ago(then, now)).unwrap_or_default()
}

fn status(value: &Value) -> &str {
    match (text(value, "State"), text(value, "LastUpdateStatus")) {
        ("Active", "InProgress") => "updating",
        ("Active", "Failed") => "active, update failed",
        ("Active", _) => "active",
        ("Pending", _) => "pending",
        ("Failed", _) => "failed",
        (other, _) => other,
    }
}

fn code_size(value: &Value) -> String {
    size(value["CodeSize"].as_u64().unwrap_or(0))
}

fn listing(functions: &[Value], now: Timestamp) -> Listing {
    let mut listing = Listing::new(&[
        Column::Whole("NAME"),
        Column::Text("RUNTIME"),
        Column::Text("HANDLER"),
        Column::Number("MEMORY"),
        Column::Number("TIMEOUT"),
        Column::Number("CODE"),
        Column::Text("STATE"),
        Column::Text("CHANGED"),
    ]);
    for function in functions {
        let runtime = match text(function, "PackageType") {
            "Image" => "image",
            _ => text(function, "Runtime"),
        };
        listing.row([
            plain(text(function, "FunctionName")),
            plain(runtime),
            plain(text(function, "Handler")),
            format!("{} MiB", function["MemorySize"]),
            format!("{} s", function["Timeout"]),
            code_size(function),
            plain(status(function)),
            modified(function, now),
        ]);
    }
    listing
}

fn version_listing(versions: &[Value], now: Timestamp) -> Listing {
    let mut listing = Listing::new(&[
        Column::Whole("VERSION"),
        Column::Text("DESCRIPTION"),
        Column::Number("CODE"),
        Column::Text("STATE"),
        Column::Text("CHANGED"),
    ]);
    for version in versions {
        listing.row([
            plain(text(version, "Version")),
            plain(text(version, "Description")),
            code_size(version),
            plain(status(version)),
            modified(version, now),
        ]);
    }
    listing
}

fn alias_listing(aliases: &[Value]) -> Listing {
    let mut listing = Listing::new(&[
        Column::Whole("ALIAS"),
        Column::Text("VERSION"),
        Column::Text("BESIDE"),
    ]);
    for alias in aliases {
        let weights = alias["RoutingConfig"]["AdditionalVersionWeights"].as_object();
        let weights = weights.into_iter().flatten();
        let weights: Vec<_> = weights.map(|(v, part)| format!("{v}={part}")).collect();
        listing.row([
            plain(text(alias, "Name")),
            plain(text(alias, "FunctionVersion")),
            plain(&weights.join(",")),
        ]);
    }
    listing
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn a_summary_says_where_the_time_went() {
        let part = |name: &str, ms| (name.to_owned(), ms);
        let mut done = Invoked {
            request: String::new(),
            payload: Bytes::new(),
            error: None,
            log: None,
            version: Some("$LATEST".into()),
            temperature: Some("warm".into()),
            timings: vec![
                part("queue", 0.1),
                part("resume", 0.0),
                part("function", 2.96),
            ],
        };
        assert_eq!(
            summary(&done),
            "aleph: warm · 3.1 ms (queue 0.1, resume 0, function 3.0)"
        );
        done.error = Some("Unhandled".into());
        done.version = Some("3".into());
        assert!(summary(&done).ends_with(" · version 3 · failed (Unhandled)"));
    }

    #[test]
    fn weights_are_parts_of_one() {
        assert_eq!(weight("2=0.25"), Ok(("2".into(), 0.25)));
        for wrong in ["2", "2=x", "2=1.5", "2=-0.1"] {
            assert!(weight(wrong).is_err(), "{wrong}");
        }
    }
}
