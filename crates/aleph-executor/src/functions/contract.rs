//! How a function is spoken with: which of two contracts it keeps.
//!
//! It is found out as the function initialises, and is the same in all clones of its template:
//! whichever comes first of a request to the runtime API and a connection that its port accepts. A
//! program may open the port (for figures, say) and still be about to ask: one that asks within
//! [`GRACE`] is a client of the runtime API. One that takes longer says so with a `PORT` of 0.

use super::answer::Answer;
use super::conversation::{Conversation, Initialised};
use super::invocation::Invocation;
use super::server::{Asked, Server};
use crate::guest::{Agent, AgentError};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// How long a program that listens may take until it asks the runtime API. Only templates wait.
const GRACE: Duration = Duration::from_secs(1);

/// What a function is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Contract {
    /// A client of the runtime API.
    RuntimeApi,
    /// An HTTP server.
    Server(Server),
}

/// A function that has an event, or is about to.
#[derive(Debug)]
pub(super) enum Given {
    /// Its runtime has it.
    Runtime(oneshot::Receiver<Answer>),
    /// Its server listens.
    Server(Asked),
}

impl Contract {
    /// Waits until a function has initialised, in a guest that becomes a template. `server` is what
    /// it may be.
    pub(super) async fn find(
        agent: &Agent,
        conversation: &Conversation,
        server: Option<Server>,
    ) -> Result<(Self, Initialised), AgentError> {
        let listens = async {
            match &server {
                Some(server) => server.listens(agent).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            initialised = conversation.initialised() => return Ok((Self::RuntimeApi, initialised)),
            listens = listens => listens?,
        }
        if let Ok(initialised) = timeout(GRACE, conversation.initialised()).await {
            return Ok((Self::RuntimeApi, initialised));
        }
        match server {
            Some(server) => Ok((Self::Server(server), Initialised::Ready)),
            None => Ok((Self::RuntimeApi, Initialised::Ready)),
        }
    }

    /// Goes the way of an event to a server, without one.
    pub(super) async fn look(&self, agent: &Agent) -> Result<(), AgentError> {
        match self {
            Self::RuntimeApi => Ok(()),
            Self::Server(server) => server.listens(agent).await,
        }
    }

    /// Gives a function an event, or is about to: it is there for it.
    pub(super) async fn give(
        &self,
        (agent, conversation): (&Agent, &Conversation),
        invocation: &Invocation,
        limit: Duration,
    ) -> Result<Given, AgentError> {
        Ok(match self {
            Self::RuntimeApi => Given::Runtime(conversation.give(invocation, limit).await),
            Self::Server(server) => Given::Server(server.connect(agent).await?),
        })
    }

    /// Waits for the answer, or for its beginning where it comes piece by piece; `None` where the
    /// conversation is over.
    pub(super) async fn answer(
        &self,
        given: Given,
        invocation: &Invocation,
        limit: Duration,
        is_streamed: bool,
    ) -> Option<Answer> {
        match (self, given) {
            (Self::Server(server), Given::Server(asked)) => {
                Some(server.ask(asked, invocation, limit, is_streamed).await)
            }
            (_, Given::Runtime(answer)) => answer.await.ok(),
            (Self::RuntimeApi, Given::Server(_)) => None,
        }
    }
}
