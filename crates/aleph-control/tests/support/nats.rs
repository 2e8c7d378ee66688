//! A daemon over a runner without VMs, and a real server of NATS.

use super::functions::{Lambda, config};
use super::until;
use aleph_control::lambda::NatsServer as Listed;
use aleph_testkit::{NatsServer, ScriptedRunner, TestRoot};
use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream::{self, consumer};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use std::sync::Arc;

/// Where mappings are.
pub const SOURCES: &str = "/2015-03-31/event-source-mappings";

/// A daemon that may connect to a server, and what connects to it besides.
pub struct World {
    pub root: TestRoot,
    pub lambda: Lambda,
    pub nats: NatsServer,
    pub client: async_nats::Client,
}

impl World {
    pub async fn up() -> Result<Self> {
        let nats = tokio::task::block_in_place(NatsServer::start)?;
        let client = async_nats::connect(nats.address()).await?;
        Self::with(nats, client, Listed::default()).await
    }

    /// The same with a server that is spoken with in a way of its own.
    pub async fn with(nats: NatsServer, client: async_nats::Client, how: Listed) -> Result<Self> {
        let listed = Listed {
            server: nats.address(),
            ..how
        };
        Self::listed(nats, client, vec![listed]).await
    }

    /// One whose operator lists another server, too.
    pub async fn beside(other: Listed) -> Result<Self> {
        let nats = tokio::task::block_in_place(NatsServer::start)?;
        let client = async_nats::connect(nats.address()).await?;
        let own = Listed {
            server: nats.address(),
            ..Listed::default()
        };
        Self::listed(nats, client, vec![own, other]).await
    }

    async fn listed(
        nats: NatsServer,
        client: async_nats::Client,
        servers: Vec<Listed>,
    ) -> Result<Self> {
        let root = TestRoot::empty()?;
        let mut config = config(&root);
        config.functions.nats = servers;
        let lambda = Lambda::start(&config, Arc::new(ScriptedRunner::default())).await?;
        Ok(Self {
            root,
            lambda,
            nats,
            client,
        })
    }

    /// A function that does what its handler is called.
    pub async fn function(&self, name: &str, handler: &str) -> Result<()> {
        let new = json!({
            "FunctionName": name, "Runtime": "python3.11", "Handler": handler,
            "Role": "arn:aws:iam::000000000000:role/any",
            "Code": { "ZipFile": BASE64_STANDARD.encode(format!("PK {name}")) },
        });
        let client = &self.lambda.client;
        let made = client.post("/2015-03-31/functions", new).await?;
        ensure!(made.status == StatusCode::CREATED, "{made:?}");
        until("a function to serve", async || {
            let path = format!("/2015-03-31/functions/{name}");
            let shown: Value = client.get(&path).await?.json()?;
            Ok((shown["Configuration"]["State"] == "Active").then_some(()))
        })
        .await
    }

    pub fn wanted(&self, function: &str, topic: &str) -> Value {
        json!({
            "FunctionName": function,
            "Topics": [topic],
            "SelfManagedEventSource": { "Endpoints": { "NATS_SERVERS": [self.nats.address()] } },
        })
    }

    /// Makes a mapping, and waits until it works. Gives its UUID.
    pub async fn map(&self, function: &str, topic: &str, more: Value) -> Result<String> {
        let mut wanted = self.wanted(function, topic);
        for (key, value) in more.as_object().into_iter().flatten() {
            wanted[key] = value.clone();
        }
        let made = self.lambda.client.post(SOURCES, wanted).await?;
        ensure!(made.status == StatusCode::ACCEPTED, "{made:?}");
        let made: Value = made.json()?;
        assert_eq!(made["State"], "Creating");
        let id = made["UUID"].as_str().context("no id")?.to_owned();
        self.state(&id, "Enabled").await?;
        Ok(id)
    }

    pub async fn shown(&self, id: &str) -> Result<Value> {
        self.lambda
            .client
            .get(&format!("{SOURCES}/{id}"))
            .await?
            .json()
    }

    pub async fn state(&self, id: &str, state: &str) -> Result<()> {
        until("a state of a mapping", async || {
            Ok((self.shown(id).await?["State"] == state).then_some(()))
        })
        .await
    }

    /// Waits until the last result says this.
    pub async fn result(&self, id: &str, says: &str) -> Result<()> {
        until("a result of a mapping", async || {
            let shown = self.shown(id).await?;
            let result = shown["LastProcessingResult"].as_str().unwrap_or_default();
            Ok(result.contains(says).then_some(()))
        })
        .await
    }

    pub async fn update(&self, id: &str, change: Value) -> Result<Value> {
        let path = format!("{SOURCES}/{id}");
        let changed = self.lambda.client.call(Method::PUT, &path, Some(change));
        let changed = changed.await?;
        ensure!(changed.status == StatusCode::ACCEPTED, "{changed:?}");
        changed.json()
    }

    pub async fn stream(&self, name: &str, subject: &str) -> Result<jetstream::stream::Stream> {
        let config = jetstream::stream::Config {
            name: name.into(),
            subjects: vec![subject.into()],
            ..jetstream::stream::Config::default()
        };
        Ok(jetstream::new(self.client.clone())
            .create_stream(config)
            .await?)
    }

    /// Puts numbers into a stream, one a message.
    pub async fn put(&self, subject: &str, numbers: std::ops::Range<u32>) -> Result<()> {
        let context = jetstream::new(self.client.clone());
        for number in numbers {
            let put = context.publish(subject.to_owned(), number.to_string().into());
            put.await?.await?;
        }
        Ok(())
    }

    /// What is still to come of a stream for a mapping, and what is under way.
    pub async fn left(&self, stream: &str, id: &str) -> Result<(u64, usize)> {
        let context = jetstream::new(self.client.clone());
        let stream = context.get_stream(stream).await?;
        let consumer: consumer::PullConsumer = stream
            .get_consumer(&format!("aleph-{id}"))
            .await
            .map_err(anyhow::Error::from_boxed)?;
        let info = &consumer.cached_info();
        Ok((info.num_pending, info.num_ack_pending))
    }

    pub async fn until_done(&self, stream: &str, id: &str) -> Result<()> {
        until("a stream that is done with", async || {
            Ok((self.left(stream, id).await? == (0, 0)).then_some(()))
        })
        .await
    }

    pub fn records(&self) -> Result<Vec<(String, Vec<Value>)>> {
        let events = self.lambda.runner.events();
        let parsed = events.into_iter().map(|(request, event)| {
            let mut event: Value = serde_json::from_slice(&event)?;
            let records = event["Records"].as_array_mut().context("no records")?;
            Ok((request, std::mem::take(records)))
        });
        parsed.collect()
    }

    /// The numbers of all records, in the order in which they were given.
    pub fn numbers(&self) -> Result<Vec<u32>> {
        let records = self.records()?.into_iter().flat_map(|(_, records)| records);
        let number = |record: Value| {
            let data = record["data"].as_str().context("no data")?;
            Ok(String::from_utf8(BASE64_STANDARD.decode(data)?)?.parse()?)
        };
        records.map(number).collect()
    }

    pub fn letters(&self) -> Result<Vec<Value>> {
        let path = self
            .root
            .path()
            .join("functions/dead-letters/default/letters.jsonl");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        // The last line may be half written.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let letters = whole.lines().map(serde_json::from_str);
        Ok(letters.collect::<Result<_, _>>()?)
    }

    /// Ends the daemon, and gives the server.
    pub async fn close(self) -> Result<NatsServer> {
        self.lambda.server.close(&self.root).await?;
        Ok(self.nats)
    }
}
