//! Functions, versions and aliases as people read them.

use super::text;
use crate::output::{Column, Listing, ago, plain, size};
use aleph_types::Timestamp;
use serde_json::Value;

fn modified(value: &Value, now: Timestamp) -> String {
    // The API's form has an offset without a colon.
    let then = text(value, "LastModified").replace("+0000", "Z");
    let then = then.parse::<Timestamp>();
    then.map(|then| ago(then, now)).unwrap_or_default()
}

fn status(value: &Value) -> &str {
    match (text(value, "State"), text(value, "LastUpdateStatus")) {
        ("Active", "InProgress") => "updating",
        ("Active", "Failed") => "active, update failed",
        ("Active", _) => "active",
        ("Pending", _) => "pending",
        ("Failed", _) => "failed",
        (other, _) => other,
    }
}

fn code_size(value: &Value) -> String {
    size(value["CodeSize"].as_u64().unwrap_or(0))
}

pub(super) fn listing(functions: &[Value], now: Timestamp) -> Listing {
    let mut listing = Listing::new(&[
        Column::Whole("NAME"),
        Column::Text("RUNTIME"),
        Column::Text("HANDLER"),
        Column::Number("MEMORY"),
        Column::Number("TIMEOUT"),
        Column::Number("CODE"),
        Column::Text("STATE"),
        Column::Text("CHANGED"),
    ]);
    for function in functions {
        let runtime = match text(function, "PackageType") {
            "Image" => "image",
            _ => text(function, "Runtime"),
        };
        listing.row([
            plain(text(function, "FunctionName")),
            plain(runtime),
            plain(text(function, "Handler")),
            format!("{} MiB", function["MemorySize"]),
            format!("{} s", function["Timeout"]),
            code_size(function),
            plain(status(function)),
            modified(function, now),
        ]);
    }
    listing
}

pub(super) fn version_listing(versions: &[Value], now: Timestamp) -> Listing {
    let mut listing = Listing::new(&[
        Column::Whole("VERSION"),
        Column::Text("DESCRIPTION"),
        Column::Number("CODE"),
        Column::Text("STATE"),
        Column::Text("CHANGED"),
    ]);
    for version in versions {
        listing.row([
            plain(text(version, "Version")),
            plain(text(version, "Description")),
            code_size(version),
            plain(status(version)),
            modified(version, now),
        ]);
    }
    listing
}

pub(super) fn alias_listing(aliases: &[Value]) -> Listing {
    let mut listing = Listing::new(&[
        Column::Whole("ALIAS"),
        Column::Text("VERSION"),
        Column::Text("BESIDE"),
    ]);
    for alias in aliases {
        let weights = alias["RoutingConfig"]["AdditionalVersionWeights"].as_object();
        let weights = weights.into_iter().flatten();
        let weights: Vec<_> = weights.map(|(v, part)| format!("{v}={part}")).collect();
        listing.row([
            plain(text(alias, "Name")),
            plain(text(alias, "FunctionVersion")),
            plain(&weights.join(",")),
        ]);
    }
    listing
}
