//! A job's output, in two forms.
//!
//! - `application/vnd.aleph.raw-stream`, the default: frames of a byte for the stream (1 is
//!   standard output, 2 standard error), three zero bytes, the length as 32 bits in network
//!   order, and as many bytes. This is docker's multiplexed form.
//! - `application/x-ndjson`: a line of JSON for each piece.

use super::JobPath;
use crate::server::extract::{Query, Segment, bad_query};
use crate::server::{Caller, Refusal, Service};
use aleph_executor::logs::{LogEntry, LogQuery, LogReader};
use aleph_types::{LogStream, Timestamp};
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream;
use serde::{Deserialize, Serialize};
use std::io;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Service> {
    OpenApiRouter::new().routes(routes!(logs))
}

/// The default form.
const RAW: &str = "application/vnd.aleph.raw-stream";
/// Lines of JSON.
const NDJSON: &str = "application/x-ndjson";

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
struct LogsQuery {
    /// Whether to go on with what is written later, until the job ended for good.
    #[param(required = false)]
    follow: bool,
    /// Nothing older than this: RFC 3339, seconds since 1970, or a time before now such as
    /// `10m` (of `s`, `m`, `h`, `d`).
    #[param(max_length = 64, example = "10m")]
    since: Option<String>,
    /// Only the last so many lines of what there is.
    #[param(minimum = 0)]
    tail: Option<u64>,
    /// Whether each line begins with the time when the node got it. Only in the raw form;
    /// JSON has it always.
    #[param(required = false)]
    timestamps: bool,
    /// Only this output: `stdout`, `stderr`, or both of them separated by a comma.
    #[param(max_length = 16, pattern = "^(stdout|stderr)(,(stdout|stderr))?$")]
    stream: Option<String>,
}

/// A piece of output as JSON. It has `data` where that is text, else `data_base64`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LogLine {
    /// When the node got it.
    #[schema(value_type = String, format = DateTime)]
    time: Timestamp,
    /// Which output.
    stream: LogStream,
    /// The text: whatever arrived at once, not a line.
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<String>,
    /// The same in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    data_base64: Option<String>,
}

/// Read a job's log
#[utoipa::path(
    get, path = "/v1/jobs/{job}/logs", tag = "jobs", params(JobPath, LogsQuery),
    responses((status = 200, description = "Its output, as a stream.", content(
        (Vec<u8> = "application/vnd.aleph.raw-stream"),
        (LogLine = "application/x-ndjson"),
    ))),
)]
async fn logs(
    State(service): State<Service>,
    caller: Caller,
    Segment(job): Segment,
    Query(query): Query<LogsQuery>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let since = match query.since.as_deref() {
        None | Some("") => None,
        Some(text) => Some(since(text, Timestamp::now()).ok_or_else(|| {
            bad_query(format!(
                "since {text:?} is no time: write RFC 3339, seconds, or 10m"
            ))
        })?),
    };
    let stream = match query.stream.as_deref() {
        None | Some("stdout,stderr" | "stderr,stdout") => None,
        Some("stdout") => Some(LogStream::Stdout),
        Some("stderr") => Some(LogStream::Stderr),
        Some(other) => return Err(bad_query(format!("there is no stream {other:?}"))),
    };
    let id = service.find(&caller, &job)?;
    let wanted = LogQuery {
        follow: query.follow,
        since,
        tail: query.tail,
        stream,
    };
    let reader = service.node.logs(id, wanted).await?;
    let json = headers
        .get(ACCEPT)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|accept| accept.contains(NDJSON));
    let (form, kind) = if json {
        (Form::Json, NDJSON)
    } else {
        let lines = query.timestamps.then(Lines::default);
        (Form::Raw(lines), RAW)
    };
    let body = Body::from_stream(pieces(reader, form, service.stopping.clone()));
    Ok(([(CONTENT_TYPE, kind)], body).into_response())
}

/// The pieces of a log in their form. One is held at a time: the next is read once the client
/// took the one before.
fn pieces(
    reader: LogReader,
    form: Form,
    stopping: CancellationToken,
) -> impl stream::Stream<Item = io::Result<Bytes>> {
    stream::try_unfold(
        (reader, form, stopping),
        |(mut reader, mut form, stopping)| async {
            let entry = tokio::select! {
                entry = reader.next() => entry?,
                () = stopping.cancelled() => None,
            };
            let Some(entry) = entry else {
                return Ok(None);
            };
            let bytes = form.write(entry)?;
            Ok(Some((bytes, (reader, form, stopping))))
        },
    )
}

/// How entries are written.
#[derive(Debug)]
enum Form {
    Raw(Option<Lines>),
    Json,
}

impl Form {
    fn write(&mut self, entry: LogEntry) -> io::Result<Bytes> {
        match self {
            Self::Raw(None) => frame(entry.stream, &entry.bytes),
            Self::Raw(Some(lines)) => frame(entry.stream, &lines.stamp(&entry)),
            Self::Json => {
                let (data, data_base64) = match String::from_utf8(entry.bytes) {
                    Ok(text) => (Some(text), None),
                    Err(error) => (None, Some(STANDARD.encode(error.as_bytes()))),
                };
                let line = LogLine {
                    time: entry.time,
                    stream: entry.stream,
                    data,
                    data_base64,
                };
                let mut bytes = serde_json::to_vec(&line)?;
                bytes.push(b'\n');
                Ok(bytes.into())
            }
        }
    }
}

fn frame(stream: LogStream, bytes: &[u8]) -> io::Result<Bytes> {
    let number = match stream {
        LogStream::Stdout => 1,
        LogStream::Stderr => 2,
    };
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut frame = vec![number, 0, 0, 0];
    frame.extend(length.to_be_bytes());
    frame.extend(bytes);
    Ok(frame.into())
}

/// Writes the time at the beginning of each line, of which a piece can hold many or a part.
#[derive(Debug, Default)]
struct Lines {
    /// Whether standard output and standard error are within a line.
    within: [bool; 2],
}

impl Lines {
    fn stamp(&mut self, entry: &LogEntry) -> Vec<u8> {
        let within = &mut self.within[usize::from(entry.stream == LogStream::Stderr)];
        let stamp = format!("{:.9} ", entry.time);
        let mut stamped = Vec::new();
        for line in entry.bytes.split_inclusive(|byte| *byte == b'\n') {
            if !*within {
                stamped.extend(stamp.as_bytes());
            }
            stamped.extend(line);
            *within = !line.ends_with(b"\n");
        }
        stamped
    }
}

/// A moment: RFC 3339, seconds since 1970, or a time before now.
fn since(text: &str, now: Timestamp) -> Option<Timestamp> {
    if let Ok(time) = text.parse() {
        return Some(time);
    }
    if let Ok(seconds) = text.parse::<f64>() {
        let since_1970 = Duration::try_from_secs_f64(seconds).ok()?;
        return Timestamp::UNIX_EPOCH.checked_add(since_1970).ok();
    }
    let unit = text.chars().last()?;
    let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return None,
    };
    let before = Duration::from_secs(number.checked_mul(seconds)?);
    now.checked_sub(before).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(stream: LogStream, bytes: &[u8]) -> LogEntry {
        LogEntry {
            time: "2026-11-24T01:02:03.5Z".parse().unwrap(),
            stream,
            bytes: bytes.to_vec(),
        }
    }

    #[test]
    fn frames_are_dockers() {
        let bytes = Form::Raw(None)
            .write(entry(LogStream::Stderr, b"ab\n"))
            .unwrap();
        assert_eq!(&bytes[..], b"\x02\0\0\0\0\0\0\x03ab\n");
    }

    #[test]
    fn each_line_is_stamped_once_however_it_is_cut() {
        let mut lines = Lines::default();
        let stamp = "2026-11-24T01:02:03.500000000Z ";
        let mut out = String::new();
        for (stream, bytes) in [
            (LogStream::Stdout, &b"a\nb"[..]),
            (LogStream::Stderr, b"x\n"),
            (LogStream::Stdout, b"c\n\nd"),
        ] {
            out += &String::from_utf8(lines.stamp(&entry(stream, bytes))).unwrap();
        }
        assert_eq!(
            out,
            format!("{stamp}a\n{stamp}b{stamp}x\nc\n{stamp}\n{stamp}d")
        );
    }

    #[test]
    fn json_has_text_or_base64() {
        let line = |bytes: &[u8]| {
            let bytes = Form::Json.write(entry(LogStream::Stdout, bytes)).unwrap();
            String::from_utf8(bytes.to_vec()).unwrap()
        };
        let time = r#""time":"2026-11-24T01:02:03.5Z","stream":"stdout""#;
        assert_eq!(
            line("é\n".as_bytes()),
            format!("{{{time},\"data\":\"é\\n\"}}\n")
        );
        assert_eq!(
            line(b"\xff"),
            format!("{{{time},\"data_base64\":\"/w==\"}}\n")
        );
    }

    #[test]
    fn moments_are_read_in_three_forms() {
        let now: Timestamp = "2026-11-24T01:00:00Z".parse().unwrap();
        for (text, want) in [
            ("2026-11-24T00:00:00Z", Some("2026-11-24T00:00:00Z")),
            ("2026-11-24T01:00:00+01:00", Some("2026-11-24T00:00:00Z")),
            ("0", Some("1970-01-01T00:00:00Z")),
            ("1.5", Some("1970-01-01T00:00:01.5Z")),
            ("10m", Some("2026-11-24T00:50:00Z")),
            ("1d", Some("2026-11-23T01:00:00Z")),
            ("99999999999999999999d", None),
            ("99999999999d", None),
            ("1e300", None),
            ("-5", None),
            ("nan", None),
            ("m", None),
            ("é", None),
            ("x", None),
        ] {
            let want = want.map(|text| text.parse().unwrap());
            assert_eq!(since(text, now), want, "{text}");
        }
    }
}
