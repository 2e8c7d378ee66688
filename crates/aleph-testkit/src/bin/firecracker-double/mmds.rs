//! The metadata that a guest could ask for. It is kept and answered on the API; the double's
//! guests have no server for it.

use crate::action::Action;
use crate::fault::About;
use crate::version::Version;
use crate::vmm::Answer;
use serde_json::Value;

const UNINITIALISED: &str = "The MMDS data store is not initialized.";

/// What is kept.
#[derive(Debug)]
pub(crate) struct Mmds {
    data: Option<Value>,
    limit: usize,
}

impl Mmds {
    /// Nothing, with room for `limit` bytes of JSON.
    pub(crate) fn new(limit: usize) -> Self {
        Self { data: None, limit }
    }

    /// Reads or writes it. `reachable` says whether there is a store.
    pub(crate) fn handle(&mut self, action: Action, reachable: bool, version: Version) -> Answer {
        if !reachable {
            return Err(About::Mmds.fault(version, UNINITIALISED));
        }
        let value = match action {
            Action::PutMmds(value) => value,
            Action::PatchMmds(patch) => {
                let Some(mut data) = self.data.clone() else {
                    return Err(About::Mmds.fault(version, UNINITIALISED));
                };
                merge(&mut data, patch);
                data
            }
            _ => {
                let data = self.data.as_ref().filter(|data| !data.is_null());
                return Ok(Some(data.map_or("{}".to_owned(), Value::to_string)));
            }
        };
        if value.to_string().len() > self.limit {
            let text = "The MMDS patch request doesn't fit.";
            return Err(About::MmdsLimit.fault(version, text));
        }
        self.data = Some(value);
        Ok(None)
    }
}

/// RFC 7396.
fn merge(into: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *into = patch;
        return;
    };
    if !into.is_object() {
        *into = Value::Object(serde_json::Map::new());
    }
    let Some(object) = into.as_object_mut() else {
        return;
    };
    for (key, value) in patch {
        match value {
            Value::Null => _ = object.remove(&key),
            value => merge(object.entry(key).or_insert(Value::Null), value),
        }
    }
}
