//! Functions, spoken with as one speaks with AWS Lambda.
//!
//! ```text
//! [functions] listen ── SigV4, or loopback ──┐
//!                                            ├─▶ gate ─▶ routes ─▶ Functions ─▶ Runner
//! aleph.sock /lambda ── the API's callers ───┘                       │  registry ─▶ journal
//!                                                                    │  events   ─▶ journal
//!                                        NATS ─▶ sources, schedules ─┘
//! ```
//! | file | what it is |
//! | --- | --- |
//! | this one | [`Functions`], what all routes share, and the routers |
//! | `function` | versions, aliases and settings as they are kept |
//! | `registry` | the functions of all accounts, in memory and in the journal |
//! | `code` | archives and the filesystems made of them |
//! | `preparation` | from a change to a template that serves |
//! | `admission` | how much of an account and of a function runs at once |
//! | `invocation` | one event through one version |
//! | `streaming` | responses that are passed on as functions write them |
//! | `events` | the durable queue of asynchronous invocations |
//! | `schedules` | events that are made as time passes |
//! | `sources` | messages of NATS, as events |
//! | `gate` | whose a request is, and how large it may be |
//! | `signature` | SigV4 |
//! | `arn`, `model`, `error` | names, JSON and errors as clients have them |
//! | `cloudevents` | events as other systems send them |
//! | `url` | functions behind URLs of their own |
//! | `trace`, `metrics` | to which trace an invocation belongs, and what is counted of it |
//! | `event_stream` | frames of streamed responses |
//! | `node` | what runs them |
//! | `routes` | a file for each group of operations |
//!
//! The names and forms are those of the API of 2015-03-31 and its later additions
//! (<https://docs.aws.amazon.com/lambda/latest/api/>), as the model in `botocore` has them.
//!
//! # Failure cases
//! | what | then |
//! | --- | --- |
//! | a version cannot be prepared | its state, or that of its update, is `Failed`, with the runner's words; what served goes on |
//! | the daemon dies while one is prepared | it is prepared again by the next one |
//! | a filesystem of code is gone at the start | it is made again of what was uploaded |
//! | a version is deleted while it is prepared | the preparation is given up |
//! | the tag of an image moves | versions keep what it was when they were prepared; new code of `$LATEST` takes what it is then |
//! | a client goes away | what it asked for ends as if it had stayed |
//! | the daemon dies with events under way | they are tried again, with the same request id |
//! | an event cannot be carried out in time, or fails too often | it goes to the failure destination and to the dead letters |
//! | too much runs, or bodies hold too much memory | 429 with `Retry-After` and `Reason` |

mod admission;
mod arn;
mod cloudevents;
mod code;
mod error;
mod event_stream;
mod events;
mod function;
mod gate;
mod invocation;
mod metrics;
mod model;
pub(crate) mod node;
mod preparation;
mod registry;
mod routes;
mod schedules;
mod signature;
mod sources;
mod streaming;
mod trace;
mod url;

pub use arn::Identity;
pub use code::{Task, TaskBuilder};
pub use error::LambdaError;
pub use events::EventPolicy;
pub use gate::MOST_BODY;
pub use signature::{Credential, Secret};
pub use sources::NatsServer;
pub(crate) use sources::normal as normal_nats_server;

use admission::Admission;
use aleph_executor::functions::{Code, Runner};
use aleph_executor::journal::{Journal, JournalError};
use aleph_types::{Classify, ErrorClass};
use code::CodeStore;
use events::Events;
use function::CodeRef;
use gate::Memory;
use metrics::Metrics;
use preparation::Preparations;
use registry::Registry;
use rustix::rand::{GetRandomFlags, getrandom};
use schedules::Schedules;
use sha2::{Digest, Sha256};
use signature::Keys;
use sources::Sources;
use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use gate::{guarded, nested};

/// The runtimes that functions may name where nobody says otherwise.
pub const RUNTIMES: [&str; 3] = ["provided.al2023", "python3.11", "nodejs18.x"];

/// How functions are kept and who may call them.
#[derive(Debug, Clone)]
pub struct FunctionsConfig {
    /// How the node is called in ARNs.
    pub identity: Identity,
    /// Who may sign requests. With none, whoever reaches the listener is the account `default`.
    pub credentials: Vec<Credential>,
    /// How many invocations of an account may run at once.
    pub account_concurrency: u32,
    /// The runtimes that functions may name.
    pub runtimes: Vec<String>,
    /// How events are tried again.
    pub events: EventPolicy,
    /// The servers of NATS whose messages functions may get.
    pub nats: Vec<NatsServer>,
}

impl Default for FunctionsConfig {
    fn default() -> Self {
        Self {
            identity: Identity {
                region: "us-east-1".into(),
                account_id: "000000000000".into(),
            },
            credentials: Vec::new(),
            account_concurrency: 1000,
            runtimes: RUNTIMES.iter().map(ToString::to_string).collect(),
            events: EventPolicy::default(),
            nats: Vec::new(),
        }
    }
}

/// What runs functions, and what makes filesystems of their code.
#[derive(Clone)]
pub struct FunctionParts {
    /// Runs them.
    pub runner: Arc<dyn Runner>,
    /// Unpacks their code.
    pub tasks: Arc<dyn TaskBuilder>,
}

/// What a node's stop waits for.
#[derive(Debug, Clone)]
pub struct UnderWay {
    /// Cancelled once the node is about to stop.
    pub stopping: CancellationToken,
    /// What it waits for then.
    pub work: TaskTracker,
}

/// Functions that cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum FunctionsError {
    /// Their folder cannot be made.
    #[error("cannot make {} for functions", path.display())]
    Folder {
        /// Which folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What is kept of them cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl Classify for FunctionsError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Folder { .. } => ErrorClass::Unavailable,
            Self::Journal(error) => error.class(),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Folder { .. } => "functions_folder",
            Self::Journal(error) => error.code(),
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Folder { .. } => Some("Look at its rights and at the disk.".into()),
            Self::Journal(error) => error.advice(),
        }
    }
}

/// The functions of a node. Clones are the same ones.
#[derive(Clone)]
pub struct Functions(Arc<Shared>);

/// The parts of [`Functions`].
pub struct Shared {
    identity: Identity,
    account_concurrency: u32,
    runtimes: Vec<String>,
    registry: Registry,
    code: Arc<CodeStore>,
    runner: Arc<dyn Runner>,
    preparations: Preparations,
    admission: Admission,
    events: Events,
    schedules: Schedules,
    sources: Sources,
    keys: Keys,
    memory: Memory,
    answers: url::Answers,
    metrics: Metrics,
    /// Where clients come in, once that is known.
    address: OnceLock<SocketAddr>,
    /// Cancelled once the node is about to stop.
    stopping: CancellationToken,
    /// What is under way.
    work: TaskTracker,
}

impl Deref for Functions {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl std::fmt::Debug for Functions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Functions")
    }
}

impl Functions {
    /// Opens the functions that a node keeps: what was being prepared is prepared again, and
    /// events that wait go on. `state` is the node's state folder.
    ///
    /// # Errors
    /// Where they cannot be read, or their folder cannot be made.
    pub async fn open(
        journal: Journal,
        state: &Path,
        parts: FunctionParts,
        config: FunctionsConfig,
        under_way: UnderWay,
    ) -> Result<Self, FunctionsError> {
        let FunctionParts { runner, tasks } = parts;
        let UnderWay { stopping, work } = under_way;
        let folder = state.join("functions");
        let code = CodeStore::open(&folder, tasks).map_err(|source| FunctionsError::Folder {
            path: folder.clone(),
            source,
        })?;
        let registry = Registry::open(journal.clone()).await?;
        let code = Arc::new(code);
        let (used, store) = (registry.codes(), Arc::clone(&code));
        let swept = tokio::task::spawn_blocking(move || {
            store.restore(used.iter());
            store.retain(used.iter());
        });
        if swept.await.is_err() {
            tracing::error!("the code of functions could not be looked through");
        }
        let schedules = Schedules::open(&journal, &config.identity).await?;
        let sources = Sources::open(journal.clone(), config.nats, stopping.clone()).await?;
        let letters = folder.join("dead-letters");
        let metrics = Metrics::default();
        let events = Events::open(journal, letters, config.events, &metrics).await?;
        let functions = Self(Arc::new(Shared {
            identity: config.identity,
            account_concurrency: config.account_concurrency,
            runtimes: config.runtimes,
            registry,
            code,
            runner,
            preparations: Preparations::default(),
            admission: Admission::default(),
            events,
            schedules,
            sources,
            keys: Keys::new(config.credentials),
            memory: Memory::default(),
            answers: url::Answers::default(),
            metrics,
            address: OnceLock::new(),
            stopping,
            work,
        }));
        functions.sweep().await;
        functions.resume();
        events::start(&functions);
        schedules::start(&functions);
        sources::start(&functions);
        Ok(functions)
    }

    /// The digests of the images that functions are pinned to, and the runtimes that they need.
    pub(crate) fn images(&self) -> (BTreeSet<String>, BTreeSet<String>) {
        let (mut digests, mut runtimes) = (BTreeSet::new(), BTreeSet::new());
        for function in self.registry.all() {
            for version in function.all_versions() {
                if let CodeRef::Image { digest, .. } = &version.code {
                    digests.extend(digest.clone());
                }
                match version.serving.as_ref().map(|serving| &serving.code) {
                    Some(Code::Image { digest, .. }) => drop(digests.insert(digest.clone())),
                    Some(Code::Task { runtime, .. }) => drop(runtimes.insert(runtime.clone())),
                    None => runtimes.extend(version.settings.runtime.clone()),
                }
            }
        }
        (digests, runtimes)
    }

    /// Says where clients of the listener come in, so that URLs can be told.
    pub(crate) fn listen_on(&self, address: SocketAddr) {
        let _ = self.address.set(address);
    }

    /// Carries out what changes something. It goes on when the client goes away.
    pub(crate) async fn settle<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, LambdaError>> + Send + 'static,
    ) -> Result<T, LambdaError> {
        if self.stopping.is_cancelled() {
            return Err(LambdaError::stopping());
        }
        match self.work.spawn(work).await {
            Ok(done) => done,
            Err(_) => Err(LambdaError::internal("a request panicked")),
        }
    }
}

/// A random UUID (RFC 9562, version 4).
pub(crate) fn random_id() -> String {
    uuid(random::<16>(), 4)
}

/// A UUID of this version, of these bytes.
fn uuid(mut bytes: [u8; 16], version: u8) -> String {
    bytes[6] = bytes[6] & 0x0f | version << 4;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = code::hex(&bytes);
    let parts = [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ];
    parts.join("-")
}

/// A UUID that follows from these words (RFC 9562, version 8).
pub(crate) fn uuid_of(words: &[&str]) -> String {
    let mut hash = Sha256::new();
    for word in words {
        // Where a word ends is part of what is said.
        hash.update(word.len().to_le_bytes());
        hash.update(word);
    }
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.finalize()[..16]);
    uuid(bytes, 8)
}

/// Random bytes of the kernel.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let mut filled = 0;
    // Few bytes come at once, unless a signal interrupts.
    while filled < N {
        filled += getrandom(&mut bytes[filled..], GetRandomFlags::empty()).unwrap_or(0);
    }
    bytes
}

/// A random number from 0 up to 1.
fn dice() -> f64 {
    let bits = u32::from_le_bytes(random::<4>());
    f64::from(bits) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_uuids_and_differ() {
        let (a, b) = (random_id(), random_id());
        assert_ne!(a, b);
        assert_eq!(a.len(), 36);
        assert_eq!(a.as_bytes()[14], b'4');
        let named = |words: &[&str]| uuid_of(words);
        assert_eq!(named(&["a", "bc"]), named(&["a", "bc"]));
        assert_ne!(named(&["a", "bc"]), named(&["ab", "c"]));
        assert_eq!(named(&["a"]).as_bytes()[14], b'8');
        assert!((0.0..1.0).contains(&dice()));
    }
}
