//! From a change of a version to a template that serves its invocations.
//!
//! A version that changes is `Preparing` until its runner has its deployment ready; what served
//! before serves meanwhile. A preparation counts only while its version has the revision that it
//! began with: a function that was deleted, or made anew, is none of its business. One whose version
//! is deleted is given up at once.

use super::Functions;
use super::error::{Kind, LambdaError, said};
use super::function::{Function, Progress, Version};
use aleph_executor::functions::{Deployment, DeploymentId};
use aleph_types::{ErrorClass, Problem};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio_util::sync::CancellationToken;

/// Characters of what a runtime says that fails: some print all they know.
const MOST_REASON: usize = 2000;

/// Preparations that are under way, by the revision of their version.
#[derive(Debug, Default)]
pub(super) struct Preparations(Mutex<HashMap<String, CancellationToken>>);

impl Preparations {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, CancellationToken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, revision: &str) -> CancellationToken {
        let given_up = CancellationToken::new();
        self.lock().insert(revision.to_owned(), given_up.clone());
        given_up
    }

    fn end(&self, revision: &str) {
        self.lock().remove(revision);
    }

    /// Gives up what is prepared for a version, which is gone.
    pub(super) fn give_up(&self, version: &Version) {
        if let Some(given_up) = self.lock().get(&version.revision) {
            given_up.cancel();
        }
    }
}

impl Functions {
    /// At the start: has the runner remove what no version names.
    pub(super) async fn sweep(&self) {
        let mut named = Vec::new();
        for function in self.registry.all() {
            for version in function.all_versions() {
                named.extend(version.serving.as_ref().map(|serving| serving.id()));
                if version.progress == Progress::Preparing {
                    let wanted = version.deployment(&function.account, &function.name);
                    named.push(wanted.id());
                }
            }
        }
        self.runner.keep(&named).await;
    }

    /// At the start: prepares what was being prepared, and asks for the clones that are to be
    /// ready.
    pub(super) fn resume(&self) {
        for function in self.registry.all() {
            for version in function.all_versions() {
                if version.progress == Progress::Preparing {
                    self.prepare(&function, version);
                }
                let clones = function.provisioned(&version.version);
                if let Some(serving) = version.serving.clone().filter(|_| clones > 0) {
                    self.runner.provision(serving, clones);
                }
            }
        }
    }

    /// Prepares a version in the background.
    pub(super) fn prepare(&self, function: &Function, version: &Version) {
        let functions = self.clone();
        let revision = version.revision.clone();
        let deployment = Arc::new(version.deployment(&function.account, &function.name));
        let given_up = self.preparations.begin(&revision);
        // No part of what a stop waits for: the next daemon begins anew.
        tokio::spawn(async move {
            let prepared = tokio::select! {
                prepared = functions.runner.prepare(Arc::clone(&deployment)) => prepared,
                () = given_up.cancelled() => {
                    tracing::info!(name = deployment.function, "a preparation is given up");
                    functions.preparations.end(&revision);
                    return functions.retire(vec![deployment]).await;
                }
                () = functions.stopping.cancelled() => return,
            };
            functions.preparations.end(&revision);
            if functions.stopping.is_cancelled() && prepared.is_err() {
                return;
            }
            let tracker = functions.work.clone();
            let settled = tracker.spawn(async move {
                functions.conclude(&revision, deployment, prepared).await;
            });
            let _ = settled.await;
        });
    }

    /// Keeps what came of a preparation.
    async fn conclude(
        &self,
        revision: &str,
        deployment: Arc<Deployment>,
        prepared: Result<Arc<Deployment>, Problem>,
    ) {
        let (account, name) = (&deployment.account, &deployment.function);
        let version = deployment.version.as_str();
        if let Err(problem) = &prepared {
            tracing::warn!(name, version, %problem, "a function could not be prepared");
        }
        let concluded = self.registry.change(account, name, |function| {
            let place = function.version_mut(version);
            let place = place.filter(|place| place.revision == revision);
            let place = place.ok_or_else(|| LambdaError::no_function(name))?;
            let before = place.serving.clone();
            match &prepared {
                Ok(deployment) => place.serve(Arc::clone(deployment)),
                Err(problem) => {
                    place.progress = Progress::Failed {
                        code: reason_code(problem).into(),
                        reason: said(problem).chars().take(MOST_REASON).collect(),
                    };
                }
            }
            Ok(before)
        });
        match concluded.await {
            Ok((function, before)) => {
                let clones = function.provisioned(version);
                if let Ok(deployment) = &prepared
                    && clones > 0
                {
                    self.runner.provision(Arc::clone(deployment), clones);
                }
                let gone = match prepared {
                    Ok(_) => before,
                    Err(_) => Some(Arc::clone(&deployment)),
                };
                if let Some(gone) = gone {
                    self.retire(vec![gone]).await;
                    self.remove_unused_code().await;
                }
            }
            Err(_) => {
                let gone = prepared.unwrap_or_else(|_| Arc::clone(&deployment));
                self.retire(vec![gone]).await;
            }
        }
    }

    /// Has the runner forget deployments that no version has any more.
    pub(super) async fn retire(&self, deployments: Vec<Arc<Deployment>>) {
        let mut gone: HashSet<DeploymentId> = HashSet::new();
        for deployment in deployments {
            let id = deployment.id();
            // A deployment names its function and version, so no other one can have it.
            let function = self.registry.get(&deployment.account, &deployment.function);
            let serving = function
                .as_ref()
                .and_then(|function| function.version(&deployment.version))
                .is_some_and(|version| {
                    let serves = version.serving.as_ref().is_some_and(|s| s.id() == id);
                    serves || version.will_be(&deployment)
                });
            if !serving {
                gone.insert(id);
            }
        }
        for id in gone {
            self.runner.retire(&id).await;
        }
    }

    /// Removes code that no version refers to.
    pub(super) async fn remove_unused_code(&self) {
        let functions = self.clone();
        let _alone = self.code.uploads.write().await;
        let work = move || functions.code.retain(functions.registry.codes().iter());
        if tokio::task::spawn_blocking(work).await.is_err() {
            tracing::error!("code of nobody could not be removed");
        }
    }

    /// The deployment that serves a version; an error that says why there is none.
    pub(super) fn serving(version: &Version) -> Result<&Arc<Deployment>, LambdaError> {
        version.serving.as_ref().ok_or_else(|| {
            let state = version.state();
            let why = match &version.progress {
                Progress::Failed { reason, .. } => format!(": {reason}"),
                _ => String::new(),
            };
            LambdaError::new(
                Kind::ResourceConflict,
                format!(
                    "The operation cannot be performed at this time. The function is currently \
                     in the following state: {state}{why}"
                ),
            )
        })
    }
}

fn reason_code(problem: &Problem) -> &'static str {
    match problem.class {
        ErrorClass::NotFound if problem.code == "function_image_gone" => "ImageDeleted",
        ErrorClass::Invalid => "FunctionError.RuntimeInitError",
        ErrorClass::NotFound => "InvalidRuntime",
        ErrorClass::Capacity => "InsufficientCapacity",
        ErrorClass::Conflict | ErrorClass::Forbidden => "InvalidConfiguration",
        ErrorClass::Unavailable | ErrorClass::Internal => "InternalError",
    }
}
