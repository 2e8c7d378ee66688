//! The figures on record: `bench/results.json`, an array of rows for each group.

use crate::row::Row;
use anyhow::{Context, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// Rows by the name of their group.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Results(Map<String, Value>);

impl Results {
    /// What is on record; nothing where there is no file.
    pub(crate) fn read(file: &Path) -> Result<Self> {
        if !file.exists() {
            return Ok(Self::default());
        }
        let text = std::fs::read_to_string(file)?;
        let groups = serde_json::from_str(&text)
            .with_context(|| format!("{} is no record: delete it", file.display()))?;
        Ok(Self(groups))
    }

    /// Puts rows in the place of those of before. A group of which nothing could be measured
    /// leaves those there.
    pub(crate) fn replace(&mut self, group: &str, rows: &[Row]) -> Result<()> {
        if rows.iter().any(|row| !row.median.is_nan()) || !self.0.contains_key(group) {
            self.0.insert(group.to_owned(), serde_json::to_value(rows)?);
        }
        Ok(())
    }

    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        let mut json = serde_json::to_string_pretty(&self.0)?;
        json.push('\n');
        Ok(std::fs::write(file, json)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_that_did_not_run_stay() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("results.json");
        let mut results = Results::read(&file)?;
        // One whose last digit is lost where it is read in a hurry.
        results.replace("boot", &[Row::new("a", "ms", &[0.103_202_999_999_999_99])])?;
        results.replace("size", &[Row::new("b", "KiB", &[2.0])])?;
        results.write(&file)?;
        let mut later = Results::read(&file)?;
        assert_eq!(later, results);
        later.replace("size", &[Row::new("c", "KiB", &[])])?;
        assert_eq!(later, results);
        later.replace("size", &[Row::new("c", "KiB", &[3.0])])?;
        assert_eq!(later.0.get("boot"), results.0.get("boot"));
        assert_ne!(later.0.get("size"), results.0.get("size"));
        Ok(())
    }
}
