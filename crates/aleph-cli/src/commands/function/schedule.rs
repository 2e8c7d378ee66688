//! `aleph fn schedule` and `aleph fn schedules`.

use super::invocation::payload;
use super::{text, told};
use crate::client::Client;
use crate::output::{Column, Listing, plain, print, print_json, shortened};
use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// The role that AWS would run a target as; it means nothing here.
const ROLE: &str = "arn:aws:iam::000000000000:role/aleph";
/// How much of an expression a list shows.
const SHOWN: usize = 40;

/// A schedule of a function.
#[derive(Debug, clap::Args)]
pub(crate) struct Schedule {
    /// The function, such as hello or hello:live
    function: String,
    /// When: 'rate(5 minutes)', 'cron(0 12 * * ? *)' or 'at(2026-11-28T12:00:00)'
    #[arg(value_name = "WHEN")]
    expression: Option<String>,
    /// Name of the schedule [default: that of the function]
    #[arg(long)]
    name: Option<String>,
    /// The time zone of cron and at, such as Europe/Berlin [default: UTC]
    #[arg(long, value_name = "ZONE", requires = "expression")]
    timezone: Option<String>,
    /// The event: JSON, @FILE, or - for standard input [default: what EventBridge sends]
    #[arg(short, long, value_name = "JSON", requires = "expression")]
    payload: Option<String>,
    /// Keep it, and have it rest
    #[arg(long, requires = "expression")]
    disabled: bool,
    /// Remove the schedule
    #[arg(long, conflicts_with = "expression")]
    rm: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Schedule {
    pub(super) async fn run(self, client: &Client) -> Result<()> {
        // The name of a schedule has no colon.
        let name = self.name.clone();
        let name = name.unwrap_or_else(|| self.function.replace(':', "-"));
        if self.rm {
            client.remove_schedule(&name).await?;
            return told(&json!({ "name": name, "removed": true }), self.json, &name);
        }
        let Some(expression) = &self.expression else {
            let found = client.schedule(&name).await?;
            return told(&found, self.json, text(&found, "ScheduleExpression"));
        };
        let function = client.function(&self.function).await?;
        let arn = text(&function["Configuration"], "FunctionArn");
        let mut wanted = json!({
            "ScheduleExpression": expression,
            "FlexibleTimeWindow": { "Mode": "OFF" },
            "State": if self.disabled { "DISABLED" } else { "ENABLED" },
            "Target": { "Arn": arn, "RoleArn": ROLE },
        });
        if let Some(zone) = &self.timezone {
            wanted["ScheduleExpressionTimezone"] = zone.as_str().into();
        }
        if let Some(word) = &self.payload {
            let input = String::from_utf8(payload(Some(word))?).context("an event is text")?;
            wanted["Target"]["Input"] = input.into();
        }
        let set = client.set_schedule(&name, &wanted).await?;
        told(&set, self.json, &name)
    }
}

/// Lists all schedules.
pub(super) async fn list(client: &Client, json: bool) -> Result<()> {
    let schedules = client.schedules().await?;
    match json {
        true => print_json(&schedules),
        false => print(listing(&schedules)),
    }
}

fn listing(schedules: &[Value]) -> Listing {
    let mut listing = Listing::new(&[
        Column::Whole("NAME"),
        Column::Text("WHEN"),
        Column::Text("ZONE"),
        Column::Text("FUNCTION"),
        Column::Text("STATE"),
    ]);
    for schedule in schedules {
        let when = plain(text(schedule, "ScheduleExpression"));
        listing.row([
            plain(text(schedule, "Name")),
            shortened(&when, SHOWN),
            plain(text(schedule, "ScheduleExpressionTimezone")),
            plain(function(text(&schedule["Target"], "Arn"))),
            plain(&text(schedule, "State").to_ascii_lowercase()),
        ]);
    }
    listing
}

/// The name at the end of a function's ARN, with its qualifier.
pub(super) fn function(arn: &str) -> &str {
    arn.split_once(":function:").map_or(arn, |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_names_functions_and_not_their_arns() {
        let arn = "arn:aws:lambda:us-east-1:000000000000:function:hello:live";
        assert_eq!(function(arn), "hello:live");
        assert_eq!(function("other"), "other");
        let schedule = json!({
            "Name": "hello", "ScheduleExpression": "rate(5 minutes)",
            "ScheduleExpressionTimezone": "UTC", "State": "ENABLED", "Target": { "Arn": arn },
        });
        let shown = listing(&[schedule]).to_string();
        let line = shown.lines().last().unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(
            words,
            [
                "hello",
                "rate(5",
                "minutes)",
                "UTC",
                "hello:live",
                "enabled"
            ]
        );
    }
}
