//! Progress bars on standard error: on a terminal they move, elsewhere each step is a line.

use aleph_image::Progress;
use indicatif::{ProgressBar, ProgressStyle};
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
            crate::output::say(&format!("aleph: {what}"));
            return;
        }
        let bar = match total {
            Some(total) => ProgressBar::new(total).with_style(style(
                "aleph: {msg:40!} {bar:24} {bytes:>10} of {total_bytes} {elapsed:>4}",
            )),
            None => {
                ProgressBar::new_spinner().with_style(style("aleph: {msg:40!} {spinner} {elapsed}"))
            }
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

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
