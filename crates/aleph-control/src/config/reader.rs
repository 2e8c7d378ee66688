//! Reads a TOML document and gathers all that is wrong with it.

use super::ConfigProblem;
use super::value::Fault;
use std::collections::BTreeMap;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A document while it is read.
pub(super) struct Document<'t> {
    text: &'t str,
    table: DeTable<'t>,
    known: Vec<&'static str>,
    problems: Vec<ConfigProblem>,
}

/// A section while it is read.
pub(super) struct Section<'d, 't> {
    text: &'t str,
    name: &'static str,
    table: Option<&'d DeTable<'t>>,
    known: Vec<&'static str>,
    problems: &'d mut Vec<ConfigProblem>,
}

impl<'t> Document<'t> {
    pub(super) fn parse(text: &'t str) -> Result<Self, Vec<ConfigProblem>> {
        let (table, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            let problem = |error: &toml::de::Error| ConfigProblem {
                path: String::new(),
                line: error.span().map(|span| line(text, span.start)),
                message: error.message().to_owned(),
                meant: None,
            };
            let mut problems: Vec<_> = errors.iter().map(problem).collect();
            problems.sort_by_key(|problem| problem.line);
            return Err(problems);
        }
        Ok(Self {
            text,
            table: table.into_inner(),
            known: Vec::new(),
            problems: Vec::new(),
        })
    }

    /// Reads a section by `read`, then tells the keys of it that nobody asked for.
    pub(super) fn section(&mut self, name: &'static str, read: impl FnOnce(&mut Section<'_, 't>)) {
        self.known.push(name);
        let table = match self.table.get(name) {
            None => None,
            Some(value) => match value.get_ref() {
                DeValue::Table(table) => Some(table),
                other => {
                    self.problems.push(ConfigProblem {
                        path: name.to_owned(),
                        line: Some(line(self.text, value.span().start)),
                        message: Fault::kind(other, "a table").message,
                        meant: None,
                    });
                    return;
                }
            },
        };
        let mut section = Section {
            text: self.text,
            name,
            table,
            known: Vec::new(),
            problems: &mut self.problems,
        };
        read(&mut section);
        let Section { known, .. } = section;
        if let Some(table) = table {
            let problems = strangers(self.text, name, table, &known);
            self.problems.extend(problems);
        }
    }

    /// The value that was read, if nothing was wrong.
    pub(super) fn finish<T>(mut self, value: T) -> Result<T, Vec<ConfigProblem>> {
        let problems = strangers(self.text, "", &self.table, &self.known);
        self.problems.extend(problems);
        if self.problems.is_empty() {
            Ok(value)
        } else {
            self.problems.sort_by_key(|problem| problem.line);
            Err(self.problems)
        }
    }
}

impl Section<'_, '_> {
    /// Whether the section has this key, whatever its value.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// Reads a key into `to`, which stays as it is where the key is missing or wrong.
    pub(super) fn read<T>(
        &mut self,
        key: &'static str,
        to: &mut T,
        parse: impl FnOnce(&DeValue<'_>) -> Result<T, Vec<Fault>>,
    ) {
        self.known.push(key);
        let Some(value) = self.table.and_then(|table| table.get(key)) else {
            return;
        };
        match parse(value.get_ref()) {
            Ok(parsed) => *to = parsed,
            Err(faults) => {
                for fault in faults {
                    self.problems.push(ConfigProblem {
                        path: format!("{}.{key}{}", self.name, fault.place),
                        line: Some(line(self.text, value.span().start)),
                        message: fault.message,
                        meant: None,
                    });
                }
            }
        }
    }

    /// The same for a key that has no default.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        to: &mut Option<T>,
        parse: impl FnOnce(&DeValue<'_>) -> Result<T, Vec<Fault>>,
    ) {
        self.read(key, to, |value| parse(value).map(Some));
    }

    /// Tells that a key does not go together with the rest.
    pub(super) fn problem(&mut self, key: &'static str, message: &str) {
        self.problem_at(key, "", message);
    }

    /// The same of a place in its value, such as `[2]`.
    pub(super) fn problem_at(&mut self, key: &'static str, place: &str, message: &str) {
        let table = self.table;
        let span = table.and_then(|table| {
            let value = table.get(key).map(Spanned::span);
            value.or_else(|| table.keys().next().map(Spanned::span))
        });
        self.problems.push(ConfigProblem {
            path: format!("{}.{key}{place}", self.name),
            line: span.map(|span| line(self.text, span.start)),
            message: message.to_owned(),
            meant: None,
        });
    }
}

/// The keys of a table that are not known.
fn strangers(
    text: &str,
    section: &str,
    table: &DeTable<'_>,
    known: &[&'static str],
) -> Vec<ConfigProblem> {
    // By their place in the text, not by name.
    let strangers: BTreeMap<usize, String> = table
        .keys()
        .filter(|key| !known.contains(&&**key.get_ref()))
        .map(|key| (key.span().start, key.get_ref().to_string()))
        .collect();
    let problem = |(start, key): (usize, String)| ConfigProblem {
        path: match section {
            "" => key.clone(),
            section => format!("{section}.{key}"),
        },
        line: Some(line(text, start)),
        message: "there is no such key".into(),
        meant: meant(&key, known).map(str::to_owned),
    };
    strangers.into_iter().map(problem).collect()
}

/// The known key that is most like one that is not known.
fn meant<'k>(key: &str, known: &[&'k str]) -> Option<&'k str> {
    let like = |other: &&str| strsim::jaro_winkler(key, other);
    let best = known
        .iter()
        .max_by(|a, b| like(a).total_cmp(&like(b)))
        .copied()?;
    (like(&best) > 0.8).then_some(best)
}

fn line(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|b| *b == b'\n').count() + 1
}
