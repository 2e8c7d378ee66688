//! What is wrong with a configuration.

use std::fmt;

/// One mistake in a configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigProblem {
    /// The key, such as `api.listen`; empty where the text is no TOML.
    pub path: String,
    /// The line, counted from 1.
    pub line: Option<usize>,
    /// What is wrong.
    pub message: String,
    /// The key that was probably meant.
    pub meant: Option<String>,
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.path.as_str(), self.line) {
            ("", Some(line)) => write!(f, "line {line}: ")?,
            ("", None) => {}
            (path, Some(line)) => write!(f, "{path} (line {line}): ")?,
            (path, None) => write!(f, "{path}: ")?,
        }
        f.write_str(&self.message)?;
        match &self.meant {
            Some(meant) => write!(f, "; did you mean {meant:?}?"),
            None => Ok(()),
        }
    }
}
