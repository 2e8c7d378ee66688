//! `aleph fn source` and `aleph fn sources`.

use super::schedule::function;
use super::{text, told};
use crate::client::Client;
use crate::duration::{duration, whole_seconds};
use crate::output::{Advised, Column, Listing, plain, print, print_json, shortened};
use anyhow::Result;
use serde_json::{Value, json};
use std::time::Duration;

/// How much of what is told of a source a list shows.
const SHOWN: usize = 60;

/// A source of events of a function.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("topic").required(true))]
pub(crate) struct Source {
    /// The function, such as hello or hello:live
    function: String,
    /// A subject of NATS, such as orders.new, orders.* or 'orders.>'
    #[arg(long, value_name = "SUBJECT", group = "topic")]
    nats: Option<String>,
    /// A stream of JetStream, or what of it has a subject
    #[arg(long, value_name = "STREAM[/SUBJECT]", group = "topic")]
    jetstream: Option<String>,
    /// A server of NATS that the node's operator lists
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:4222")]
    server: Vec<String>,
    /// The most messages of an event [default: 1 of a subject, 100 of a stream]
    #[arg(long, value_name = "COUNT")]
    batch: Option<u32>,
    /// How long an event waits for more messages [default: not at all]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    window: Option<Duration>,
    /// How often a message of a stream is tried again [default: without end]
    #[arg(long, value_name = "COUNT", conflicts_with = "nats")]
    retries: Option<u32>,
    /// Answer messages that want an answer with what the function says
    #[arg(long, conflicts_with_all = ["jetstream", "batch"])]
    reply: bool,
    /// Remove the source
    #[arg(long)]
    rm: bool,
    /// Print the source as a line of JSON
    #[arg(long)]
    json: bool,
}

impl Source {
    fn topic(&self) -> String {
        match (&self.nats, &self.jetstream) {
            (Some(subject), _) => subject.clone(),
            (None, stream) => format!("jetstream:{}", stream.as_deref().unwrap_or_default()),
        }
    }

    pub(super) async fn run(self, client: &Client) -> Result<()> {
        let topic = self.topic();
        if self.rm {
            let sources = client.sources(Some(&self.function)).await?;
            let found = sources.iter().find(|one| one["Topics"][0] == topic);
            let found = found.ok_or_else(|| Advised {
                what: format!("{} has no source {topic:?}", self.function),
                advice: "See the sources there are with: aleph fn sources".into(),
            })?;
            let id = text(found, "UUID");
            let gone = client.remove_source(id).await?;
            return told(&gone, self.json, id);
        }
        let mut wanted = json!({
            "FunctionName": self.function,
            "Topics": [topic],
            "SelfManagedEventSource": { "Endpoints": { "NATS_SERVERS": self.server } },
        });
        if let Some(batch) = self.batch {
            wanted["BatchSize"] = batch.into();
        }
        if let Some(window) = self.window {
            wanted["MaximumBatchingWindowInSeconds"] = whole_seconds(window).into();
        }
        if let Some(retries) = self.retries {
            wanted["MaximumRetryAttempts"] = retries.into();
        }
        if self.reply {
            wanted["FunctionResponseTypes"] = json!(["Reply"]);
        }
        let made = client.create_source(&wanted).await?;
        told(&made, self.json, text(&made, "UUID"))
    }
}

/// Lists sources, of one function or of all.
pub(super) async fn list(client: &Client, name: Option<&str>, json: bool) -> Result<()> {
    let sources = client.sources(name).await?;
    match json {
        true => print_json(&sources),
        false => print(listing(&sources)),
    }
}

fn listing(sources: &[Value]) -> Listing {
    let mut listing = Listing::new(&[
        Column::Whole("ID"),
        Column::Text("FUNCTION"),
        Column::Text("TOPIC"),
        Column::Number("BATCH"),
        Column::Text("STATE"),
        Column::Text("LAST"),
    ]);
    for source in sources {
        let last = plain(text(source, "LastProcessingResult"));
        listing.row([
            plain(text(source, "UUID")),
            plain(function(text(source, "FunctionArn"))),
            plain(source["Topics"][0].as_str().unwrap_or_default()),
            source["BatchSize"].to_string(),
            plain(&text(source, "State").to_ascii_lowercase()),
            shortened(&last, SHOWN),
        ]);
    }
    listing
}
