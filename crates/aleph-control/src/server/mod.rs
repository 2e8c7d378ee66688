//! The HTTP API: one router over a [`Service`].
//!
//! | file | what it is |
//! | --- | --- |
//! | this one | [`Service`], what all handlers share, and [`router`] |
//! | `caller` | who makes a request, found out before any handler runs |
//! | `extract` | queries, path segments and bodies, with their limits |
//! | `problem` | errors as clients get them |
//! | `connection` | one client: limits, TLS, HTTP |
//! | `patience` | how long a client may take to read |
//!
//! # Failure cases
//! - A handler's future is dropped when its client goes away. So what changes something runs in
//!   a task of its own (`Service::settle`), and ends whether or not somebody waits for it.
//! - What streams for ever (logs, events, sessions) ends when the node stops, and holds no more
//!   than one piece of output while its client does not read.

pub(crate) mod caller;
pub(crate) mod connection;
pub(crate) mod extract;
mod patience;
pub(crate) mod problem;

pub use caller::{ACCOUNT_HEADER, Caller};
pub use extract::MAX_BODY;
pub use problem::{Refusal, status_of};

use crate::accounts::Accounts;
use crate::begun_restores::BegunRestores;
use crate::images::StoreImages;
use crate::lambda::{self, FunctionParts, Functions, FunctionsConfig, FunctionsError, UnderWay};
use crate::metrics::{Metrics, measure};
use crate::peer::Operators;
use crate::routes;
use aleph_executor::Node;
use aleph_executor::guest::Agent;
use aleph_executor::lifecycle::Denial;
use aleph_executor::node::NodeError;
use aleph_types::{JobId, JobState};
use axum::Router;
use axum::middleware::from_fn_with_state;
use caller::identify;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a guest that runs may take until it can be spoken with.
const ADOPTION_TIME: Duration = Duration::from_secs(5);
/// The pause before it is looked for again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What all handlers share. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Service(Arc<Shared>);

/// The parts of a [`Service`].
#[derive(Debug)]
pub struct Shared {
    /// The node.
    pub node: Node,
    /// Its images.
    pub images: Arc<StoreImages>,
    /// Its accounts.
    pub accounts: Accounts,
    /// Which local processes are operators.
    pub operators: Operators,
    /// What is counted.
    pub metrics: Metrics,
    /// The key file of backups, where a request names none.
    pub backup_key: Option<PathBuf>,
    /// Restores that broke off.
    pub(crate) begun_restores: Arc<BegunRestores>,
    /// Cancelled once the node is about to stop.
    pub stopping: CancellationToken,
    /// Requests that change something, as far as they are under way.
    pub work: TaskTracker,
    /// Its functions, where it runs any.
    functions: OnceLock<Functions>,
}

impl Deref for Service {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Service {
    /// A service over a node.
    ///
    /// # Errors
    /// Where the node's journal cannot be read.
    pub async fn new(
        node: Node,
        images: Arc<StoreImages>,
        operators: Operators,
        backup_key: Option<PathBuf>,
    ) -> Result<Self, NodeError> {
        let accounts = Accounts::open(node.journal().clone()).await?;
        Ok(Self(Arc::new(Shared {
            node,
            images,
            accounts,
            operators,
            metrics: Metrics::default(),
            backup_key,
            begun_restores: Arc::default(),
            stopping: CancellationToken::new(),
            work: TaskTracker::new(),
            functions: OnceLock::new(),
        })))
    }

    /// Has the node keep functions from now on. It is called once, before clients come.
    ///
    /// # Errors
    /// Where what is kept of them cannot be read.
    pub async fn open_functions(
        &self,
        state: &Path,
        parts: FunctionParts,
        config: FunctionsConfig,
    ) -> Result<(), FunctionsError> {
        let under_way = UnderWay {
            stopping: self.stopping.clone(),
            work: self.work.clone(),
        };
        let journal = self.node.journal().clone();
        let opened = Functions::open(journal, state, parts, config, under_way);
        let functions = Box::pin(opened).await?;
        let _ = self.functions.set(functions);
        Ok(())
    }

    /// The node's functions, where it runs any.
    #[must_use]
    pub fn functions(&self) -> Option<&Functions> {
        self.functions.get()
    }

    /// Finds the job that a caller means.
    pub(crate) fn find(&self, caller: &Caller, reference: &str) -> Result<JobId, Refusal> {
        Ok(self.node.find(&caller.scope, reference)?)
    }

    /// The agent in a job's guest. After a start of the node a job may be known to run a moment
    /// before its guest can be spoken with: that is waited for.
    pub(crate) async fn agent(&self, id: JobId) -> Result<Agent, NodeError> {
        let found = async {
            loop {
                match self.node.agent(id) {
                    Err(NodeError::Denied {
                        state: JobState::Running,
                        why: Denial::NotRunning,
                    }) => sleep(LOOK_AGAIN).await,
                    found => return found,
                }
            }
        };
        match timeout(ADOPTION_TIME, found).await {
            Ok(found) => found,
            Err(_) => self.node.agent(id),
        }
    }

    /// Carries out what changes something. It goes on when the client goes away.
    pub(crate) async fn settle<T, E>(
        &self,
        work: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<T, Refusal>
    where
        T: Send + 'static,
        E: Into<Refusal> + Send + 'static,
    {
        if self.stopping.is_cancelled() {
            return Err(Refusal::stopping());
        }
        match self.work.spawn(work).await {
            Ok(done) => done.map_err(Into::into),
            Err(_) => Err(Refusal::internal("a request panicked")),
        }
    }
}

/// The API's router. Connections add their [`crate::peer::Peer`] to each request.
pub fn router(service: &Service) -> Router {
    let guarded = routes::guarded().route_layer(from_fn_with_state(service.clone(), identify));
    let (router, _) = guarded.merge(routes::open()).split_for_parts();
    // Whoever may use the node's API may use its functions, as who they are there.
    let functions = lambda::nested(service.functions())
        .layer(from_fn_with_state(service.clone(), identify))
        .with_state::<Service>(());
    router
        .nest("/lambda", functions)
        .fallback(problem::no_route)
        .method_not_allowed_fallback(problem::no_method)
        .layer(from_fn_with_state(service.clone(), measure))
        .with_state(service.clone())
}
