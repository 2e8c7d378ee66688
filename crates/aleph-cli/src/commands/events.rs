//! `aleph events`.

use super::completion::jobs;
use crate::client::EventQuery;
use crate::context::Context;
use crate::output::{plain, print, print_json_line};
use aleph_types::Event;
use anyhow::Result;
use clap_complete::ArgValueCompleter;
use std::fmt::Write;

/// Which events to show.
#[derive(Debug, clap::Args)]
pub(crate) struct Events {
    /// Begin after this event; 0 shows all that are kept [default: only new ones]
    #[arg(long, value_name = "ID")]
    since_id: Option<u64>,

    /// Only events of this job
    #[arg(long, value_name = "JOB", add = ArgValueCompleter::new(jobs::any))]
    job: Option<String>,

    /// Only events of this kind, such as job.running
    #[arg(long, value_name = "KIND")]
    kind: Option<String>,

    /// End after the stored events
    #[arg(long)]
    no_follow: bool,

    /// Print a line of JSON for each event
    #[arg(long)]
    json: bool,
}

impl Events {
    pub(super) async fn run(self, context: &Context) -> Result<u8> {
        let client = context.client()?;
        let mut query = EventQuery {
            since_id: self.since_id,
            job: self.job.clone(),
            kind: self.kind.clone(),
        };
        if self.no_follow {
            // Without new ones, only the stored ones can be meant.
            query.since_id.get_or_insert(0);
            for event in client.stored_events(&query).await? {
                self.show(&event)?;
            }
            return Ok(0);
        }
        let mut events = client.events(&query).await?;
        let mut last = self.since_id;
        while let Some(event) = events.next::<Event>().await? {
            self.show(&event)?;
            last = Some(event.id);
        }
        let again = last
            .map(|id| format!(" --since-id {id}"))
            .unwrap_or_default();
        Err(crate::output::Advised {
            what: "the node closed the stream of events".into(),
            advice: format!("Go on with: aleph events{again}"),
        }
        .into())
    }

    fn show(&self, event: &Event) -> Result<()> {
        if self.json {
            print_json_line(event)
        } else {
            print(line(event))
        }
    }
}

/// An event on one line.
fn line(event: &Event) -> String {
    let mut line = format!("{:.3} {} {}", event.time, event.id, event.kind);
    if let Some(job) = event.job {
        let name = event.name.as_deref().unwrap_or_default();
        // Writing to a string does not fail.
        let _ = write!(line, " {} {name}", job.short());
    }
    if let Some(message) = &event.message {
        let _ = write!(line, ": {}", plain(message));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use aleph_types::{JobId, Timestamp};

    #[test]
    fn an_event_is_a_line() {
        let event = Event {
            id: 7,
            time: Timestamp::from_second(1_000_000).unwrap(),
            kind: "job.exited".into(),
            job: Some(JobId::from_bits(1 << 96)),
            name: Some("web".into()),
            account: None,
            message: Some("exit 3\nand more".into()),
        };
        assert_eq!(
            line(&event),
            "1970-01-12T13:46:40.000Z 7 job.exited 0x00000001 web: exit 3 and more"
        );
    }
}
