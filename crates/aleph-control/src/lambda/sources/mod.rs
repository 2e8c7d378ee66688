//! Event sources: subjects of NATS and streams of JetStream whose messages functions get.
//!
//! ```text
//! subject ─▶ queue group ─▶ events' queue (durable) ─▶ function
//!                     └──▶ function ─▶ reply            where there is a reply subject
//! stream ─▶ durable pull consumer ─▶ function ─▶ acknowledged
//! ```
//! | file | what it is |
//! | --- | --- |
//! | this one | the mappings of all accounts, and the task of each |
//! | `mapping` | a mapping as it is kept, and how it fares |
//! | `mappings` | what is done with mappings |
//! | `model` | JSON as clients of AWS Lambda have it |
//! | `topic` | what a mapping listens to |
//! | `room` | how much of streams an account has under way |
//! | `server` | the servers that the operator lists, and connections |
//! | `subject` | core NATS |
//! | `stream` | JetStream |
//! | `batch` | what becomes of messages of a stream |
//! | `event` | what a function gets |
//!
//! # Delivery
//! **Core NATS** gives a message once or not at all: to nobody while nobody listens. Once it is
//! in the journal it is an event of the durable queue, with its retries, its maximum age and its
//! dead letters. Where the mapping says so (`FunctionResponseTypes` `Reply`), a message with a reply
//! subject is a request instead: the function is waited for and its answer is the reply. Nobody else
//! is answered, since not every reply subject is a question: who publishes to a stream has one for
//! what the stream says. Who asks waits, and may ask again, so requests are not durable; one that
//! fails is answered with the headers `Nats-Service-Error` and `Nats-Service-Error-Code`. What comes
//! on subjects that begin with `$` or `_`, which are the server's or answers to others, is left out.
//!
//! **JetStream**: at least once. A message is acknowledged once a function has succeeded with it.
//! While one works, the server is told so. A message whose event failed comes again, after 1 s and
//! twice as long each time, at most a minute, and as often as `MaximumRetryAttempts` says; without
//! end where that is -1, as it is where nobody says. Then it goes to the dead letters. How often it
//! was given counts for that, so a time that it was given back, as the node stopped, does too. The id of a
//! request follows from the mapping and its messages: the same event again has the same id. After
//! a failure messages need not come in the events that they came in before; with `BatchSize` 1
//! they do. The consumer is called `aleph-` and the mapping's UUID, and goes with the mapping.
//!
//! # Failure cases
//! | what | then |
//! | --- | --- |
//! | a server is away, or there is no such stream | `LastProcessingResult` begins with `PROBLEM`; tried again after 1 s, and twice as long each time, at most 30 s |
//! | the function is throttled or the queue full | messages of streams wait, and no more are taken; those of subjects wait, and once a subscription holds 512 the server's next are lost, which is in the log |
//! | the daemon dies with messages under way | those of streams come again after [`stream::ACK_WAIT`]; those of subjects are in the queue, but for what was not written yet |
//! | the node stops, or a mapping is changed or removed | what has come of a subject is carried out; of a stream, what runs is, and the rest comes again |
//! | the node stops while the queue is full | what waits of a subject is a dead letter, `NodeStopped` |
//! | the function is deleted | what has come of subjects is dead letters; then nothing is taken until there is one of this name, and the mapping stays |
//! | a message makes too large an event (256 KiB of a subject, 6 MiB of a request or of a stream) | a dead letter, without its data; a request is refused |
//!
//! # Memory
//! A subscription holds at most 512 messages, whatever their size (the server's `max_payload`), and
//! at most 16 MiB of it are written down or answered at once. Of streams, an account has 64 MiB that
//! run or wait, and each mapping one event of at most 6 MiB that is put together.

mod batch;
mod event;
mod mapping;
mod mappings;
mod model;
mod room;
mod server;
mod stream;
mod subject;
mod topic;

pub(crate) use model::SourceInput;
pub use server::NatsServer;
pub(crate) use server::normal;

use super::Functions;
use super::error::LambdaError;
use aleph_executor::journal::{Journal, JournalError, SourceRow};
use mapping::{Mapping, Phase, Status};
use room::Room;
use server::{Connection, are_alike, connect};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use topic::Topic;

/// The most mappings of an account.
const MOST_MAPPINGS: usize = 100;
/// How long a task that was told to end may take to.
const END: Duration = Duration::from_secs(30);
/// The pause before something is tried again, at first and at most.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// What has gone well for so long begins anew with the shortest pause.
const WELL: Duration = Duration::from_secs(60);
/// What the operator has to say where a server is named.
const NOT_LISTED: &str = "is not one that this node may connect to for this account: its operator \
                          lists them in [functions] nats of the node's configuration";

/// A mapping, with the task that works for it.
#[derive(Clone)]
struct Live {
    account: String,
    mapping: Arc<Mapping>,
    status: Status,
    /// Ends its task.
    stop: CancellationToken,
    /// Its task, and those of what it was before.
    tasks: TaskTracker,
}

/// The mappings of all accounts.
pub(crate) struct Sources {
    journal: Journal,
    servers: Vec<NatsServer>,
    live: Mutex<BTreeMap<String, Live>>,
    /// Changes come one after another.
    turn: tokio::sync::Mutex<()>,
    rooms: Mutex<BTreeMap<String, Arc<Room>>>,
    /// Cancelled once the node is about to stop.
    stopping: CancellationToken,
}

/// What a task works with.
struct Work {
    functions: Functions,
    account: String,
    id: String,
    mapping: Arc<Mapping>,
    status: Status,
    stop: CancellationToken,
}

impl Sources {
    /// Reads what the journal keeps. What cannot be understood is left alone, and told.
    pub(crate) async fn open(
        journal: Journal,
        servers: Vec<NatsServer>,
        stopping: CancellationToken,
    ) -> Result<Self, JournalError> {
        let mut live = BTreeMap::new();
        for SourceRow {
            id,
            account,
            record,
        } in journal.event_sources().await?
        {
            match serde_json::from_str::<Mapping>(&record) {
                Ok(mapping) => {
                    let phase = match mapping.enabled {
                        true => Phase::Enabling,
                        false => Phase::Disabled,
                    };
                    let one = Live {
                        account,
                        mapping: Arc::new(mapping),
                        status: Status::new(phase),
                        stop: stopping.child_token(),
                        tasks: TaskTracker::new(),
                    };
                    live.insert(id, one);
                }
                Err(error) => tracing::error!(id, %error, "an event source cannot be read"),
            }
        }
        Ok(Self {
            journal,
            servers,
            live: Mutex::new(live),
            turn: tokio::sync::Mutex::default(),
            rooms: Mutex::default(),
            stopping,
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn room(&self, account: &str) -> Arc<Room> {
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(rooms.entry(account.to_owned()).or_default())
    }

    fn get(&self, account: &str, id: &str) -> Result<Live, LambdaError> {
        let live = self.lock();
        let found = live.get(id).filter(|one| one.account == account);
        found.cloned().ok_or_else(|| {
            LambdaError::not_found(format!("The event source mapping {id} does not exist."))
        })
    }

    /// The servers that an account names, as the configuration has them.
    fn named(&self, account: &str, names: &[String]) -> Result<Vec<NatsServer>, LambdaError> {
        let mut found = Vec::new();
        for name in names {
            let wanted = normal(name);
            let listed = self.servers.iter().find(|server| {
                let may =
                    server.accounts.is_empty() || server.accounts.iter().any(|a| a == account);
                may && wanted.is_some() && normal(&server.server) == wanted
            });
            let refused = || LambdaError::invalid(format!("The NATS server {name:?} {NOT_LISTED}"));
            found.push(listed.cloned().ok_or_else(refused)?);
        }
        // A client of NATS speaks with all of its servers in one way.
        if let [first, others @ ..] = &found[..]
            && let Some(other) = others.iter().find(|other| !are_alike(first, other))
        {
            let (first, other) = (&first.server, &other.server);
            return Err(LambdaError::invalid(format!(
                "The NATS servers {first:?} and {other:?} cannot be named together: this node \
                 speaks with them in different ways"
            )));
        }
        Ok(found)
    }
}

/// Has every mapping that is enabled work until the node stops.
pub(super) fn start(functions: &Functions) {
    let all: Vec<_> = {
        let live = functions.sources.lock();
        let enabled = live.iter().filter(|(_, one)| one.mapping.enabled);
        enabled.map(|(id, one)| (id.clone(), one.clone())).collect()
    };
    for (id, one) in all {
        work(functions, &id, &one);
    }
}

fn work(functions: &Functions, id: &str, live: &Live) {
    let task = Work {
        functions: functions.clone(),
        account: live.account.clone(),
        id: id.to_owned(),
        mapping: Arc::clone(&live.mapping),
        status: live.status.clone(),
        stop: live.stop.clone(),
    };
    let task = live.tasks.track_future(task.run());
    functions.work.spawn(task);
}

impl Work {
    /// Works until it is told to end.
    async fn run(self) {
        let mut pause = PAUSE;
        loop {
            let begun = Instant::now();
            let Err(problem) = self.attempt().await else {
                return;
            };
            let (id, account) = (&self.id, &self.account);
            tracing::warn!(id, account, problem, "an event source does not work");
            self.status.problem(&problem);
            if begun.elapsed() > WELL {
                pause = PAUSE;
            }
            tokio::select! {
                () = sleep(pause) => {}
                () = self.stop.cancelled() => return,
            }
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }

    /// Works for as long as all is well, or until it is told to end.
    async fn attempt(&self) -> Result<(), String> {
        let Mapping {
            function, servers, ..
        } = &*self.mapping;
        if self
            .functions
            .registry
            .get(&self.account, function)
            .is_none()
        {
            return Err(format!("the function {function} does not exist"));
        }
        let servers = self.functions.sources.named(&self.account, servers);
        let servers = servers.map_err(|error| error.to_string())?;
        let name = self.name();
        let connection = tokio::select! {
            connection = connect(&servers, &name, &self.status) => connection?,
            () = self.stop.cancelled() => return Ok(()),
        };
        match &self.mapping.topic {
            Topic::Subject(subject) => subject::serve(self, connection, subject).await,
            Topic::Stream { stream, subject } => {
                stream::serve(self, connection, stream, subject.as_deref()).await
            }
        }
    }

    /// What servers know it by.
    fn name(&self) -> String {
        name_of(&self.id)
    }

    fn arn(&self) -> String {
        let Mapping {
            function,
            qualifier,
            ..
        } = &*self.mapping;
        let identity = &self.functions.identity;
        identity.arn(&self.account, function, qualifier.as_deref())
    }
}

fn name_of(id: &str) -> String {
    format!("aleph-{id}")
}
