//! Firecracker's description of its API, as tables.

use aleph_executor::firecracker::Version;
use aleph_executor::firecracker::api::{Method, Request};
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::LazyLock;

const FIELDS: &str = include_str!("fields.tsv");
const CALLS: &str = include_str!("calls.tsv");

/// The tables, read once.
pub(crate) static DESCRIPTION: LazyLock<Description> = LazyLock::new(Description::read);

/// A body of any shape.
const ANYTHING: &str = "MmdsContentsObject";

/// When there is something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) since: Vec<Version>,
    until: Option<Version>,
}

impl Span {
    fn read(since: &str, until: &str) -> Self {
        let version = |text: &str| text.parse::<Version>().unwrap();
        Self {
            since: since.split(',').map(version).collect(),
            until: (until != "-").then(|| version(until)),
        }
    }

    /// Whether a version has it: one of a series that got it, or of a later series.
    pub(crate) fn holds(&self, version: Version) -> bool {
        let series = |v: Version| (v.major, v.minor);
        let begun = self
            .since
            .iter()
            .any(|since| version >= *since && series(version) == series(*since));
        let after = self
            .since
            .iter()
            .all(|since| series(version) > series(*since));
        (begun || after) && self.until.is_none_or(|until| version < until)
    }
}

#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) body: &'static str,
    pub(crate) name: &'static str,
    kind: &'static str,
    is_required: bool,
    span: Span,
    min: Option<u64>,
    max: Option<u64>,
    values: Vec<(&'static str, Option<Span>)>,
}

impl Field {
    /// The values that it can have, where they are few.
    pub(crate) fn values(&self) -> impl Iterator<Item = &'static str> {
        self.values.iter().map(|(value, _)| *value)
    }

    /// When there is it.
    pub(crate) const fn span(&self) -> &Span {
        &self.span
    }
}

#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    pub(crate) body: &'static str,
    span: Span,
}

#[derive(Debug)]
pub(crate) struct Description {
    pub(crate) fields: Vec<Field>,
    pub(crate) endpoints: Vec<Endpoint>,
}

/// What a version does not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mismatch {
    /// It came with other versions.
    Later { what: String, since: Vec<Version> },
    /// No version takes it.
    Wrong(String),
}

fn rows(table: &'static str) -> impl Iterator<Item = Vec<&'static str>> {
    let lines = table.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split('\t').collect())
}

impl Description {
    fn read() -> Self {
        let fields = rows(FIELDS).map(|row| {
            let [body, name, kind, needed, since, until, limits] = row[..] else {
                panic!("{row:?}");
            };
            let mut field = Field {
                body,
                name,
                kind,
                is_required: needed == "required",
                span: Span::read(since, until),
                min: None,
                max: None,
                values: Vec::new(),
            };
            for limit in limits.split(' ').filter(|limit| *limit != "-") {
                match limit.split_once('=').unwrap() {
                    ("min", least) => field.min = Some(least.parse().unwrap()),
                    ("max", most) => field.max = Some(most.parse().unwrap()),
                    ("enum", values) => {
                        field.values = values
                            .split('|')
                            .map(|value| match value.split_once('@') {
                                Some((value, since)) => (value, Some(Span::read(since, "-"))),
                                None => (value, None),
                            })
                            .collect();
                    }
                    other => panic!("{other:?}"),
                }
            }
            field
        });
        let endpoints = rows(CALLS).map(|row| {
            let [method, path, body, since, until] = row[..] else {
                panic!("{row:?}");
            };
            Endpoint {
                method,
                path,
                body,
                span: Span::read(since, until),
            }
        });
        Self {
            fields: fields.collect(),
            endpoints: endpoints.collect(),
        }
    }

    /// The call that a request is.
    pub(crate) fn endpoint(&self, method: Method, path: &str) -> &Endpoint {
        let is_it = |endpoint: &&Endpoint| {
            endpoint.method == method.as_str()
                && match endpoint.path.split_once('{') {
                    Some((before, _)) => path
                        .strip_prefix(before)
                        .is_some_and(|id| !id.is_empty() && !id.contains('/')),
                    None => endpoint.path == path,
                }
        };
        self.endpoints
            .iter()
            .find(is_it)
            .unwrap_or_else(|| panic!("no version has {method} {path}"))
    }
}

/// A comparison of what is sent with what a version takes.
#[derive(Debug)]
pub(crate) struct Comparison<'a> {
    description: &'a Description,
    version: Version,
    mismatches: Vec<Mismatch>,
    seen: BTreeSet<String>,
}

impl<'a> Comparison<'a> {
    /// With nothing yet.
    pub(crate) const fn new(description: &'a Description, version: Version) -> Self {
        Self {
            description,
            version,
            mismatches: Vec::new(),
            seen: BTreeSet::new(),
        }
    }

    /// What the version does not take.
    pub(crate) fn mismatches(self) -> Vec<Mismatch> {
        self.mismatches
    }

    /// The calls, fields and values that were there.
    pub(crate) const fn seen(&self) -> &BTreeSet<String> {
        &self.seen
    }

    fn wrong(&mut self, what: impl Into<String>) {
        self.mismatches.push(Mismatch::Wrong(what.into()));
    }

    fn span(&mut self, what: &str, span: &Span) {
        self.seen.insert(what.to_owned());
        if !span.holds(self.version) {
            self.mismatches.push(Mismatch::Later {
                what: what.to_owned(),
                since: span.since.clone(),
            });
        }
    }

    /// Compares a request.
    pub(crate) fn request(&mut self, request: &Request) {
        let endpoint = self.description.endpoint(request.method, &request.path);
        let what = format!("{} {}", endpoint.method, endpoint.path);
        self.span(&what, &endpoint.span);
        match (&request.body, endpoint.body) {
            (None, "-") => {}
            (Some(bytes), body) if body != "-" => {
                self.body(body, &serde_json::from_slice(bytes).unwrap());
            }
            (body, expected) => self.wrong(format!("{body:?} where {expected} is expected")),
        }
    }

    /// Compares a body of that name.
    pub(crate) fn body(&mut self, body: &str, value: &Value) {
        let Some(members) = value.as_object() else {
            return self.wrong(format!("{body} is {value}"));
        };
        if body == ANYTHING {
            return;
        }
        let fields = self.description.fields.iter();
        let fields: Vec<_> = fields.filter(|field| field.body == body).collect();
        for (name, value) in members {
            let what = format!("{body}.{name}");
            match fields.iter().find(|field| field.name == name) {
                Some(field) => {
                    self.span(&what, &field.span);
                    self.value(field, field.kind, value);
                }
                None => self.wrong(what),
            }
        }
        for field in fields {
            let is_needed = field.is_required && field.span.holds(self.version);
            if is_needed && !members.contains_key(field.name) {
                self.wrong(format!("{body} lacks {}", field.name));
            }
        }
    }

    fn value(&mut self, field: &Field, kind: &str, value: &Value) {
        let list = kind.strip_prefix('[').and_then(|k| k.strip_suffix(']'));
        let is_body = self
            .description
            .fields
            .iter()
            .any(|field| field.body == kind);
        let is_right = match (kind, value) {
            ("string", Value::String(text)) => {
                let found = field.values.iter().find(|(value, _)| value == text);
                if let Some((_, span)) = found {
                    let span = span.as_ref().unwrap_or(&field.span);
                    self.span(&format!("{}.{}={text}", field.body, field.name), span);
                }
                field.values.is_empty() || found.is_some()
            }
            ("boolean", Value::Bool(_)) => true,
            ("integer", Value::Number(number)) => number.as_u64().is_some_and(|number| {
                field.min.is_none_or(|min| number >= min)
                    && field.max.is_none_or(|max| number <= max)
            }),
            ("{string}", Value::Object(map)) => map.values().all(Value::is_string),
            (_, Value::Array(items)) => {
                for item in items {
                    self.value(field, list.unwrap_or("no list"), item);
                }
                list.is_some()
            }
            (body, Value::Object(_)) if is_body => {
                self.body(body, value);
                true
            }
            _ => false,
        };
        if !is_right {
            self.wrong(format!("{}.{} is {value}", field.body, field.name));
        }
    }
}

/// Every release from 1.10 on.
pub(crate) fn versions() -> Vec<Version> {
    let patches = [
        (10, 1),
        (11, 0),
        (12, 1),
        (13, 2),
        (14, 4),
        (15, 1),
        (16, 1),
        (17, 0),
    ];
    let series = patches.iter();
    series
        .flat_map(|(minor, last)| (0..=*last).map(|patch| Version::new(1, *minor, patch)))
        .collect()
}
