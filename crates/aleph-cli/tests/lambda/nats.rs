//! Messages of NATS and events of schedules, and a daemon and a server that are killed meanwhile.
//!
//! What a function has done is known by what is left of it outside of its VM: dead letters. The
//! function fails with each event, and is not given it again.

use crate::events::{create, settle_events};
use crate::support::LIMIT;
use crate::world::{World, app_zip};
use aleph_image::Recipe;
use aleph_testkit::{NatsServer, wait_until};
use anyhow::{Context, Result, ensure};
use async_nats::jetstream::{self, consumer::PullConsumer};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use tokio::runtime::Runtime;

/// Messages that are there before the daemon is killed.
const BEFORE: u64 = 30;
/// And when the next one is up: there is something for it, however fast the first one was.
const MORE: u64 = 45;
/// And in all.
const ALL: u64 = 60;

/// What asks for answers and puts messages into streams.
struct Client {
    runtime: Runtime,
    client: async_nats::Client,
}

impl Client {
    fn connect(nats: &NatsServer) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let client = runtime.block_on(async_nats::connect(nats.address()))?;
        Ok(Self { runtime, client })
    }

    fn context(&self) -> jetstream::Context {
        // What it begins runs in the background.
        let _inside = self.runtime.enter();
        jetstream::new(self.client.clone())
    }

    fn stream(&self) -> Result<()> {
        let config = jetstream::stream::Config {
            name: "ORDERS".into(),
            subjects: vec!["orders".into()],
            ..jetstream::stream::Config::default()
        };
        let context = self.context();
        self.runtime.block_on(context.create_stream(config))?;
        Ok(())
    }

    fn put(&self, numbers: Range<u64>) -> Result<()> {
        let context = self.context();
        self.runtime.block_on(async {
            for number in numbers {
                let put = context.publish("orders", number.to_string().into());
                put.await?.await?;
            }
            Ok(())
        })
    }

    /// Messages that nobody was given, and those that are under way.
    fn left(&self, id: &str) -> Result<(u64, usize)> {
        let context = self.context();
        self.runtime.block_on(async {
            let stream = context.get_stream("ORDERS").await?;
            let name = format!("aleph-{id}");
            let consumer: PullConsumer = stream
                .get_consumer(&name)
                .await
                .map_err(anyhow::Error::from_boxed)?;
            let info = consumer.cached_info();
            Ok((info.num_pending, info.num_ack_pending))
        })
    }

    fn ask(&self, subject: &str, what: &str) -> Result<Value> {
        let request = self
            .client
            .request(subject.to_owned(), what.to_owned().into());
        let answer = self.runtime.block_on(request)?;
        Ok(serde_json::from_slice(&answer.payload)?)
    }
}

/// What dead letters say functions were given.
fn given(world: &World) -> Result<Vec<Value>> {
    let file = world
        .folder()
        .join("functions/dead-letters/default/letters.jsonl");
    let text = fs::read_to_string(file).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let lines = whole.lines().map(|line| {
        let mut letter: Value = serde_json::from_str(line)?;
        Ok(letter["requestPayload"].take())
    });
    lines.collect()
}

/// The numbers of all messages that functions were given.
fn numbers(world: &World) -> Result<BTreeSet<u64>> {
    let mut numbers = BTreeSet::new();
    for event in given(world)? {
        for record in event["Records"].as_array().into_iter().flatten() {
            let data = BASE64_STANDARD.decode(record["data"].as_str().context("no data")?)?;
            numbers.insert(String::from_utf8(data)?.parse()?);
        }
    }
    Ok(numbers)
}

/// Every message is given to its function, whatever is killed meanwhile.
pub(crate) fn outlive_the_daemon_and_the_server() -> Result<()> {
    let mut nats = NatsServer::start()?;
    let listed = format!("nats = [{{ server = '{}' }}]", nats.address());
    let mut world = World::configured(&[Recipe::Python311], &listed)?;
    world.archive("app", &app_zip("one")?)?;
    for name in ["tell", "reply"] {
        create(&world.daemon, name, &["--wait"])?;
    }
    settle_events(&world, "tell", "")?;
    let client = Client::connect(&nats)?;
    client.stream()?;
    client.put(0..BEFORE)?;
    let (server, stream) = (nats.address(), ["--jetstream", "ORDERS"]);
    let source = [
        "fn", "source", "reply", "--server", &server, "--nats", "ask.>", "--reply",
    ];
    world.daemon.ok(&source)?;
    // Before there are messages to be given: all of them may be over by the time of an answer.
    answers(&client);
    let source = ["fn", "source", "tell", "--server", &server];
    let how = ["--batch", "1", "--retries", "0"];
    let id = world.daemon.ok(&[&source[..], &stream, &how].concat())?;
    let listed = world.daemon.ok(&["fn", "sources"])?;
    ensure!(
        listed.contains("jetstream:ORDERS") && listed.contains("ask.>"),
        "{listed}"
    );
    wait_until("messages that were given", LIMIT, || {
        (numbers(&world).ok()?.len() >= 5).then_some(())
    });
    wait_until("a message under way, or the end of all", LIMIT, || {
        let (waiting, under_way) = client.left(&id).ok()?;
        (under_way > 0 || waiting == 0).then_some(())
    });
    world.daemon.kill_and_restart()?;
    let known = numbers(&world)?.len();
    client.put(BEFORE..MORE)?;
    wait_until("messages of the second daemon", LIMIT, || {
        (numbers(&world).ok()?.len() > known).then_some(())
    });
    nats.restart()?;
    // A client that has not found the server again is told that it has not.
    wait_until("a server that is back", LIMIT, || client.left(&id).ok());
    client.put(MORE..ALL)?;
    wait_until("the end of each message", LIMIT, || {
        (client.left(&id).ok()? == (0, 0)).then_some(())
    });
    let given_to = numbers(&world)?;
    ensure!(given_to == (0..ALL).collect(), "given: {given_to:?}");
    answers(&client);
    a_schedule_fires(&world)?;
    what_is_due_fires_once(&mut world)?;
    for rm in [["--jetstream", "ORDERS"], ["--nats", "ask.>"]] {
        let name = if rm[0] == "--nats" { "reply" } else { "tell" };
        world
            .daemon
            .ok(&[&["fn", "source", name, "--rm"][..], &rm].concat())?;
    }
    assert_eq!(world.daemon.json(&["fn", "sources", "--json"])?, json!([]));
    world.daemon.ok(&["fn", "rm", "tell", "reply"])?;
    world.end()
}

fn answers(client: &Client) {
    let answer = wait_until("an answer", LIMIT, || client.ask("ask.me", "hello").ok());
    assert_eq!(answer, json!({ "subject": "ask.me", "data": "aGVsbG8=" }));
}

fn a_schedule_fires(world: &World) -> Result<()> {
    let schedule = ["fn", "schedule", "tell"];
    let how = [
        "rate(1 hours)",
        "--payload",
        r#"{"at":"<aws.scheduler.scheduled-time>"}"#,
    ];
    assert_eq!(world.daemon.ok(&[&schedule[..], &how].concat())?, "tell");
    let at = wait_until("an event of a schedule", LIMIT, || {
        let given = given(world).ok()?;
        let at = given.iter().find_map(|event| event["at"].as_str());
        at.map(str::to_owned)
    });
    ensure!(at.ends_with('Z') && !at.contains('<'), "{at}");
    let shown = world.daemon.json(&["fn", "schedules", "--json"])?;
    assert_eq!(shown[0]["ScheduleExpression"], "rate(1 hours)");
    let listed = world.daemon.ok(&["fn", "schedules"])?;
    ensure!(listed.contains("rate(1 hours)"), "{listed}");
    let wrong = world
        .daemon
        .aleph(&["fn", "schedule", "tell", "every hour"])?;
    ensure!(
        wrong.code != 0 && wrong.stderr.contains("rate(5 minutes)"),
        "{wrong:?}"
    );
    world.daemon.ok(&["fn", "schedule", "tell", "--rm"])?;
    assert_eq!(
        world.daemon.json(&["fn", "schedules", "--json"])?,
        json!([])
    );
    Ok(())
}

/// A daemon that dies just before it has an event of a schedule written down, and one that dies
/// just after.
fn what_is_due_fires_once(world: &mut World) -> Result<()> {
    for place in ["schedule.fire:before", "schedule.fire:after"] {
        world.daemon.kill_and_restart_to_die_at(place)?;
        let payload = json!({ "place": place, "id": "<aws.scheduler.execution-id>" });
        let schedule = ["fn", "schedule", "tell", "--name", "once", "rate(1 days)"];
        let payload = ["--payload", &payload.to_string()];
        // The daemon may be gone before it has answered.
        let answer = world.daemon.aleph(&[&schedule[..], &payload].concat())?;
        wait_until(
            &format!("a daemon that dies after {answer:?}"),
            LIMIT,
            || world.daemon.is_gone().ok()?.then_some(()),
        );
        world.daemon.kill_and_restart()?;
        let of_place = |world: &World| {
            let given = given(world)?;
            let ids = given.iter().filter(|event| event["place"] == place);
            anyhow::Ok(
                ids.filter_map(|event| event["id"].as_str().map(str::to_owned))
                    .collect(),
            )
        };
        let ids: Vec<String> = wait_until("an event that was due", LIMIT, || {
            of_place(world).ok().filter(|ids: &Vec<_>| !ids.is_empty())
        });
        // What is known to have fired is that: nothing of it is due any more.
        let once = BTreeSet::from_iter(&ids).len();
        ensure!(once == 1, "{place}: {ids:?}");
        world
            .daemon
            .ok(&["fn", "schedule", "tell", "--name", "once", "--rm"])?;
    }
    Ok(())
}
