//! Functions: code that runs when an event comes, in clones of a template.
//!
//! A [`Deployment`] is all that decides how a version of a function runs. Its template is a
//! microVM that was booted once and initialised until its runtime asked for its first event, and
//! was then written down. Each clone of it begins at that point.
//!
//! Whoever keeps functions, versions and aliases knows no VMs: it speaks with a [`Runner`].
//!
//! | file | what it is |
//! | --- | --- |
//! | `deployment` | what runs: code, runtime, limits |
//! | `invocation` | an event on its way in, and what came of it |
//! | `runner` | the seam between the control plane and what runs functions |
//! | `runtime` | [`FunctionRuntime`]: the way of an event |
//! | `admission` | what may run at once |
//! | `cable` | how a guest of a function is connected |
//! | `pool` | the clones of one deployment |
//! | `completion` | what a caller gets |
//! | `policy` | how many clones are kept, and in which state: pure |
//! | `template` | guests that were written down |
//! | `instance` | their clones |
//! | `conversation` | the runtime API, as runtimes in guests speak it |
//! | `environment`, `output`, `report` | what a runtime finds, writes, and what is said of it |
//! | `host` | what functions need of the node |
//!
//! # Failure cases
//! | what | then |
//! | --- | --- |
//! | the runtime fails to initialise | the deployment is refused with what it said; no template stays |
//! | a clone dies before the function was given the event | the event goes to another clone |
//! | it dies after that, or the function's time is over | the function's error; the clone is destroyed |
//! | more invocations than may run at once | [`InvokeError::Throttled`], with when to try again |
//! | the daemon dies | clones are removed by the next one; templates stay; callers see a closed connection |

mod admission;
mod cable;
mod completion;
mod conversation;
mod deployment;
mod environment;
mod host;
mod instance;
mod invocation;
mod output;
mod policy;
mod pool;
mod report;
mod runner;
mod runtime;
mod template;

pub use deployment::{Code, Deployment, DeploymentId, Isolation};
pub use environment::is_reserved;
pub(crate) use host::Host;
pub use invocation::{
    Completed, FunctionError, Invocation, InvokeError, Temperature, Throttle, Timings,
};
pub use policy::PoolConfig;
pub use runner::{Concurrency, Runner};
pub use runtime::{FunctionRuntime, FunctionsConfig};
