//! Progress bars on standard error: on a terminal they move, elsewhere each step is a line.

use crate::client::{ClientError, Lines, PullLine};
use crate::output::{plain, say, shortened};
use aleph_image::Progress;
use aleph_image::oci::PullEvent;
use anyhow::Result;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

/// Draws the steps of a long operation.
#[derive(Debug, Default)]
pub(crate) struct Bars {
    bar: Option<ProgressBar>,
}

impl Progress for Bars {
    fn begin(&mut self, what: &str, total: Option<u64>) {
        if !std::io::stderr().is_terminal() {
            say(&format!("aleph: {what}"));
            return;
        }
        let bar = match total {
            Some(total) => ProgressBar::new(total).with_style(measured()),
            None => ProgressBar::new_spinner().with_style(unmeasured()),
        };
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        self.bar = Some(bar);
    }

    fn advance(&mut self, n: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(n);
        }
    }

    fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish();
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        // A failed step is left as it stood, above the error.
        if let Some(bar) = self.bar.take() {
            bar.abandon();
        }
    }
}

/// Draws a node's pull of an image: a bar for each layer, all of which move at once.
#[derive(Debug)]
pub(crate) struct Pulls {
    quiet: bool,
    bars: Option<MultiProgress>,
    layers: BTreeMap<String, (ProgressBar, String)>,
}

impl Pulls {
    pub(crate) fn new(quiet: bool) -> Self {
        let terminal = !quiet && std::io::stderr().is_terminal();
        Self {
            quiet,
            bars: terminal.then(MultiProgress::new),
            layers: BTreeMap::new(),
        }
    }

    /// Shows a pull to its end, and gives the image.
    pub(crate) async fn show(mut self, mut lines: Lines) -> Result<Value> {
        while let Some(line) = lines.next_json().await? {
            match line {
                PullLine::Done { image } => return Ok(image),
                PullLine::Failed { error } => return Err(ClientError::from(error).into()),
                PullLine::Step {
                    status,
                    layer,
                    current,
                    total,
                } => self.step(layer.unwrap_or_default(), &plain(&status), current, total),
            }
        }
        anyhow::bail!("the node closed the stream before the image was there")
    }

    /// Shows a step of a pull of this process's own.
    pub(crate) fn event(&mut self, event: &PullEvent) {
        match event {
            PullEvent::Resolved { .. } => {}
            PullEvent::Waiting => self.step(String::new(), "waiting", None, None),
            PullEvent::Layer {
                digest,
                step,
                done,
                total,
                ..
            } => {
                self.step(digest.to_string(), step.name(), Some(*done), Some(*total));
            }
            PullEvent::Writing { done, total } => {
                self.step(String::new(), "writing", Some(*done), Some(*total));
            }
        }
    }

    fn step(&mut self, layer: String, status: &str, current: Option<u64>, total: Option<u64>) {
        if self.quiet {
            return;
        }
        let digest = layer.strip_prefix("sha256:").unwrap_or(&layer);
        let what = match shortened(digest, 13).trim_end_matches('…') {
            "" => status.to_owned(),
            short => format!("{}: {status}", plain(short)),
        };
        let bars = self.bars.as_ref();
        let (bar, last) = self.layers.entry(layer).or_insert_with(|| {
            let bar = match bars {
                Some(bars) => bars.add(ProgressBar::new_spinner()),
                None => ProgressBar::hidden(),
            };
            bar.set_style(unmeasured());
            bar.enable_steady_tick(Duration::from_millis(100));
            (bar, String::new())
        });
        if let Some(total) = total.filter(|total| bar.length() != Some(*total)) {
            bar.set_length(total);
            bar.set_style(measured());
        }
        if let Some(current) = current {
            bar.set_position(current);
        }
        if *last != what {
            if bars.is_none() {
                say(&format!("aleph: {what}"));
            }
            bar.set_message(what.clone());
            *last = what;
        }
    }
}

fn measured() -> ProgressStyle {
    style("aleph: {msg:40!} {bar:24} {bytes:>10} of {total_bytes} {elapsed:>4}")
}

fn unmeasured() -> ProgressStyle {
    style("aleph: {msg:40!} {spinner} {elapsed}")
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Drop for Pulls {
    fn drop(&mut self) {
        // What was reached stays to be seen, above an error as well.
        for (bar, _) in self.layers.values() {
            bar.abandon();
        }
    }
}

/// Draws how many bytes were copied.
#[derive(Debug)]
pub(crate) struct Transfer {
    bar: ProgressBar,
}

/// Counts for a [`Transfer`] in another thread.
#[derive(Debug)]
pub(crate) struct Counter(ProgressBar);

impl Transfer {
    pub(crate) fn new(quiet: bool) -> Self {
        let bar = if quiet || !std::io::stderr().is_terminal() {
            ProgressBar::hidden()
        } else {
            ProgressBar::new_spinner()
        };
        bar.set_style(style(
            "aleph: copied {bytes} {spinner} {bytes_per_sec} {elapsed}",
        ));
        bar.enable_steady_tick(Duration::from_millis(100));
        Self { bar }
    }

    pub(crate) fn advance(&mut self, bytes: usize) {
        self.counter().advance(bytes);
    }

    pub(crate) fn counter(&self) -> Counter {
        Counter(self.bar.clone())
    }

    pub(crate) fn end(&self) {
        self.bar.finish();
    }

    /// How many bytes were copied.
    pub(crate) fn bytes(&self) -> u64 {
        self.bar.position()
    }
}

impl Counter {
    pub(crate) fn advance(&self, bytes: usize) {
        self.0.inc(u64::try_from(bytes).unwrap_or(u64::MAX));
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if !self.bar.is_finished() {
            self.bar.abandon();
        }
    }
}
