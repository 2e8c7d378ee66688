//! What is set for a function, from flags; `aleph fn create` and `update`.

use super::{ready, told};
use crate::client::Client;
use crate::duration::{duration, whole_seconds};
use crate::output::Advised;
use crate::spec::environment;
use aleph_types::MiB;
use anyhow::{Context as _, Result};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where code comes from, and what is set.
#[derive(Debug, clap::Args)]
struct Settings {
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
    /// How much /tmp may hold, as far as there is memory for it [default: 512m]
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
    pub(super) async fn run(self, client: &Client) -> Result<()> {
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
    pub(super) async fn run(self, client: &Client) -> Result<()> {
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
