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
//! | `response`, `prelude` | an answer that is passed on as it comes, and the HTTP head that it may begin with |
//! | `runner` | the seam between the control plane and what runs functions |
//! | `runtime` | [`FunctionRuntime`]: the way of an event |
//! | `admission` | what may run at once |
//! | `cable` | how a guest of a function is connected |
//! | `pool` | the clones of one deployment |
//! | `completion` | what a caller gets |
//! | `policy` | how many clones are kept, and in which state: pure |
//! | `template` | guests that were written down |
//! | `process_pool` | VMMs that are launched before it is known which function they are for |
//! | `peak` | the most memory that a VMM had |
//! | `room` | the disk that templates may take |
//! | `instance` | their clones |
//! | `contract` | how a function is spoken with: over the runtime API, or as an HTTP server |
//! | `conversation`, `late_end` | the runtime API, as runtimes in guests speak it |
//! | `stack` | TCP connections of a guest that end in this process |
//! | `server`, `http_event` | functions that are HTTP servers, and events as requests to them |
//! | `answer` | what a function answered, on its way to who asked |
//! | `environment`, `output`, `report` | what a runtime finds, writes, and what is said of it |
//! | `host` | what functions need of the node |
//!
//! # Failure cases
//! | what | then |
//! | --- | --- |
//! | the runtime fails to initialise | the deployment is refused with what it said; no template stays |
//! | the disk would be nearly full with a template | it is not begun: a problem of the class `Capacity` |
//! | nobody waits any more for a template that is made | it is given up; nothing of it stays |
//! | a clone dies before the function was given the event | the event goes to another clone |
//! | it dies after that, or the function's time is over | the function's error; the clone is destroyed |
//! | a response breaks off | the error is told behind what came of it; the clone is destroyed |
//! | more invocations than may run at once | [`InvokeError::Throttled`], with when to try again |
//! | the daemon dies | clones are removed by the next one; templates stay; callers see a closed connection |

mod admission;
mod answer;
mod cable;
mod completion;
mod contract;
mod conversation;
mod deployment;
mod environment;
mod host;
mod http_event;
mod instance;
mod invocation;
mod late_end;
mod output;
mod peak;
pub mod policy;
mod pool;
mod prelude;
mod process_pool;
mod report;
mod response;
mod room;
mod runner;
mod runtime;
mod server;
#[allow(dead_code)] // until the instances hold its other end
mod stack;
mod template;

pub use deployment::{Code, Deployment, DeploymentId, Isolation};
pub use environment::is_reserved;
pub(crate) use host::Host;
pub use invocation::{
    Completed, FunctionError, Invocation, InvokeError, Temperature, Throttle, Timings,
};
pub use policy::PoolConfig;
pub use prelude::{HttpPrelude, MAX_PRELUDE, PreludeError};
pub use response::{
    HTTP_INTEGRATION, ResponseHead, ResponseSink, ResponseStream, channel as response_channel,
};
pub use runner::{Clones, Concurrency, Runner};
pub use runtime::{FunctionRuntime, FunctionsConfig};
