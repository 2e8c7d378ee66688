//! One measured figure.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

/// A figure beside its reference.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) median: f64,
    pub(crate) p99: f64,
    pub(crate) n: usize,
    /// What it is measured against; empty where the figure stands for itself.
    pub(crate) reference: String,
    pub(crate) reference_median: Option<f64>,
    pub(crate) ratio: Option<f64>,
    pub(crate) bar: Option<String>,
    pub(crate) holds: Option<bool>,
}

impl Row {
    pub(crate) fn new(name: impl Into<String>, unit: &'static str, samples: &[f64]) -> Self {
        Self {
            name: name.into(),
            unit,
            median: quantile(samples, 0.5),
            p99: quantile(samples, 0.99),
            n: samples.len(),
            reference: String::new(),
            reference_median: None,
            ratio: None,
            bar: None,
            holds: None,
        }
    }

    /// Beside a reference that was measured in turn with it.
    pub(crate) fn against(self, reference: impl Into<String>, samples: &[f64]) -> Self {
        let median = quantile(samples, 0.5);
        Self {
            reference: reference.into(),
            reference_median: Some(median),
            ratio: (median != 0.0).then(|| self.median / median),
            ..self
        }
    }

    /// With a bar on the ratio to the reference.
    pub(crate) fn at_most_times(self, limit: f64) -> Self {
        let holds = self.ratio.map(|ratio| ratio <= limit);
        Self {
            bar: Some(format!("at most {limit:.2} times")),
            holds,
            ..self
        }
    }

    /// With a bar on the ratio to the reference, where more is better.
    pub(crate) fn at_least_times(self, limit: f64) -> Self {
        let holds = self.ratio.map(|ratio| ratio >= limit);
        Self {
            bar: Some(format!("at least {limit:.2} times")),
            holds,
            ..self
        }
    }

    /// With a bar on the figure itself.
    pub(crate) fn at_most(self, limit: f64) -> Self {
        let holds = Some(self.median <= limit);
        Self {
            bar: Some(format!("at most {limit} {}", self.unit)),
            holds,
            ..self
        }
    }

    /// With a bar on what all but one of a hundred stay under.
    pub(crate) fn p99_at_most(self, limit: f64) -> Self {
        let holds = Some(self.p99 <= limit);
        Self {
            bar: Some(format!("p99 at most {limit} {}", self.unit)),
            holds,
            ..self
        }
    }
}

/// The nearest-rank quantile.
fn quantile(samples: &[f64], q: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss
    )]
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
}

pub(crate) fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "FIGURE",
        "MEDIAN",
        "P99",
        "UNIT",
        "N",
        "REFERENCE",
        "ITS MEDIAN",
        "RATIO",
        "BAR",
        "HOLDS",
    ]);
    let number = |value: Option<f64>| value.map(round).unwrap_or_default();
    for row in rows {
        let holds = row
            .holds
            .map_or("", |holds| if holds { "yes" } else { "NO" });
        table.add_row([
            row.name.clone(),
            round(row.median),
            round(row.p99),
            row.unit.to_owned(),
            row.n.to_string(),
            row.reference.clone(),
            number(row.reference_median),
            row.ratio
                .map(|ratio| format!("{ratio:.3}"))
                .unwrap_or_default(),
            row.bar.clone().unwrap_or_default(),
            holds.to_owned(),
        ]);
    }
    for column in [1, 2, 4, 6, 7] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn round(value: f64) -> String {
    match value.abs() {
        // Nothing was measured.
        v if v.is_nan() => String::new(),
        v if v >= 100.0 || v.fract() == 0.0 => format!("{value:.0}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_nearest_rank() {
        let samples: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(
            (quantile(&samples, 0.5), quantile(&samples, 0.99)),
            (50.0, 99.0)
        );
        assert_eq!(quantile(&[7.0], 0.99), 7.0);
    }
}
