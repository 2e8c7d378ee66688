//! What runs functions on this node: clones of templates, and filesystems of their code.

use super::FunctionParts;
use super::code::{Task, TaskBuilder};
use aleph_executor::Node;
use aleph_executor::functions::{FunctionRuntime, FunctionsConfig};
use aleph_types::Problem;
use std::path::Path;
use std::sync::Arc;

/// Makes filesystems of archives as `aleph-image` does.
struct TaskImages;

impl TaskBuilder for TaskImages {
    fn build(&self, zip: &[u8], into: &Path) -> Result<Task, Problem> {
        match aleph_image::task::build(zip, into) {
            Ok(task) => Ok(Task {
                image: task.path,
                digest: task.digest,
            }),
            Err(error) => Err(Problem::of(&error)),
        }
    }
}

/// Runs functions on a node. Whoever takes the parts ends the runtime before the node.
pub(crate) fn parts(node: &Node, config: FunctionsConfig) -> (FunctionRuntime, FunctionParts) {
    let runtime = FunctionRuntime::open(node, config);
    let parts = FunctionParts {
        runner: Arc::new(runtime.clone()),
        tasks: Arc::new(TaskImages),
    };
    (runtime, parts)
}
