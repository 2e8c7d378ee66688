//! One action on several jobs.

use crate::output::{print, print_error};
use anyhow::Result;

/// Does the same to all, and prints the name of each that it was done to. A failure is told at
/// once and does not keep the others from it.
///
/// # Errors
/// Only where nothing can be printed.
pub(super) async fn each(names: &[String], act: impl AsyncFn(&str) -> Result<()>) -> Result<u8> {
    let mut code = 0;
    for name in names {
        match act(name).await {
            Ok(()) => print(name)?,
            Err(error) => {
                let names_it = error.to_string().contains(name);
                let error = if names_it {
                    error
                } else {
                    error.context(name.clone())
                };
                print_error(&error);
                code = crate::FAILED;
            }
        }
    }
    Ok(code)
}
