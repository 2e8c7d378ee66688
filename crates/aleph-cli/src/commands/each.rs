//! One action on several things, and how each is told: by the name that its user gave, or as a
//! line of JSON.

use crate::output::{print, print_error, print_json_line};
use anyhow::Result;
use serde::Serialize;

/// Does the same to all. What it is done to is printed at once: its name, or what the action
/// gave as `json`. A failure is told at once too, and does not keep the others from it.
///
/// # Errors
/// Only where nothing can be printed.
pub(super) async fn each<T: Serialize>(
    names: &[String],
    json: bool,
    act: impl AsyncFn(&str) -> Result<T>,
) -> Result<u8> {
    let mut code = 0;
    for name in names {
        match act(name).await {
            Ok(done) if json => print_json_line(&done)?,
            Ok(_) => print(name)?,
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
