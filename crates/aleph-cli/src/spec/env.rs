//! Environment variables from words and files.

use crate::output::Advised;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Variables as docker takes them: first those of the files, then `-e NAME=VALUE`, or
/// `-e NAME` for the value that it has here.
pub(crate) fn environment(files: &[PathBuf], words: &[String]) -> Result<BTreeMap<String, String>> {
    let mut variables = BTreeMap::new();
    for file in files {
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("cannot read {}", file.display()))?;
        for (number, line) in text.lines().enumerate() {
            let line = line.trim_start();
            if !line.is_empty() && !line.starts_with('#') {
                add(&mut variables, line, &|| at(file, number + 1, line))?;
            }
        }
    }
    for word in words {
        add(&mut variables, word, &|| format!("-e {word:?}"))?;
    }
    Ok(variables)
}

/// What a program is told of the terminal.
pub(crate) fn term() -> String {
    std::env::var("TERM").unwrap_or_else(|_| "xterm".into())
}

fn at(file: &Path, number: usize, line: &str) -> String {
    format!("{}, line {number}: {line:?}", file.display())
}

fn add(
    variables: &mut BTreeMap<String, String>,
    word: &str,
    place: &dyn Fn() -> String,
) -> Result<()> {
    let (name, value) = match word.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        // docker leaves a variable out that is not set here.
        None => (word, std::env::var(word).ok()),
    };
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err(Advised {
            what: format!("{} has no name", place()),
            advice: "Write NAME=VALUE.".into(),
        }
        .into());
    }
    if let Some(value) = value {
        variables.insert(name.to_owned(), value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_go_over_files() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("env");
        std::fs::write(
            &file,
            "# a note\n\nA=1\nB=two = 2\n  C=3\nALEPH_NOT_SET_HERE\n",
        )?;
        let words = ["A=over".to_owned(), "PATH".to_owned()];
        let variables = environment(&[file], &words)?;
        let names: Vec<&str> = variables.keys().map(String::as_str).collect();
        assert_eq!(names, ["A", "B", "C", "PATH"]);
        assert_eq!(
            (variables["A"].as_str(), variables["B"].as_str()),
            ("over", "two = 2")
        );
        Ok(())
    }

    #[test]
    fn what_has_no_name_says_where() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("env");
        std::fs::write(&file, "A=1\nexport B=2\n")?;
        let error = environment(&[file], &[]).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
        assert!(environment(&[], &["=x".into()]).is_err());
        Ok(())
    }
}
