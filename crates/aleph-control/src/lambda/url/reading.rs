//! How long answers of URLs are held for those who read them.
//!
//! An answer that is given once it is whole is in memory until its client has read it, and whoever
//! reaches a URL is such a client. So all of them together hold [`ROOM`] at most; what a connection
//! buffers in any case is not counted. A client that has not read all within its time has had its
//! answer.
//!
//! # Failure cases
//! | what | then |
//! | --- | --- |
//! | there is no room | [`NoRoom`]: the function has run, and its answer is dropped |
//! | the client does not read in time | what is left is dropped, and the connection breaks |

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

/// KiB that all answers hold together.
const ROOM: usize = 128 * 1024;
/// Bytes that a connection gets at once, as copies of its own. An answer of no more is not counted.
const PIECE: usize = 64 * 1024;
/// How long a client may read, and for each whole MiB besides.
const TIME: Duration = Duration::from_secs(30);
const TIME_EACH_MIB: Duration = Duration::from_secs(5);

/// The memory of answers that are being read.
#[derive(Debug)]
pub(crate) struct Answers {
    room: Arc<Semaphore>,
    /// How long a client may read, whatever there is to read.
    time: Duration,
}

impl Default for Answers {
    fn default() -> Self {
        Self {
            room: Arc::new(Semaphore::new(ROOM)),
            time: TIME,
        }
    }
}

/// Clients read as many answers as there is memory for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoRoom;

impl Answers {
    /// The same answer, held no longer than its time.
    pub(super) fn hold(&self, answer: Response<Bytes>) -> Result<Response, NoRoom> {
        let (head, body) = answer.into_parts();
        let length = body.len();
        if length <= PIECE {
            return Ok(Response::from_parts(head, Body::from(body)));
        }
        let kib = u32::try_from(length.div_ceil(1024)).map_err(|_| NoRoom)?;
        let room = Arc::clone(&self.room).try_acquire_many_owned(kib);
        let rest = Arc::new(Mutex::new(Some((body, room.map_err(|_| NoRoom)?))));
        let mib = u32::try_from(length >> 20).unwrap_or(u32::MAX);
        let time = self.time + TIME_EACH_MIB.saturating_mul(mib);
        let late = Arc::downgrade(&rest);
        let end = tokio::spawn(async move {
            sleep(time).await;
            if let Some(rest) = late.upgrade() {
                rest.lock().unwrap_or_else(PoisonError::into_inner).take();
            }
        });
        let held = Held {
            rest,
            left: length,
            _end: AbortOnDropHandle::new(end),
        };
        Ok(Response::from_parts(head, Body::new(held)))
    }
}

/// What is left of an answer, and the room that it takes; nothing once its time is over.
type Rest = Arc<Mutex<Option<(Bytes, OwnedSemaphorePermit)>>>;

/// The body of an answer.
struct Held {
    rest: Rest,
    left: usize,
    /// Ends its time.
    _end: AbortOnDropHandle<()>,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let piece = {
            let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
            rest.as_mut().map(|(rest, _)| {
                let piece = rest.split_to(PIECE.min(rest.len()));
                // What a connection keeps would otherwise keep all of it.
                Bytes::copy_from_slice(&piece)
            })
        };
        let Some(piece) = piece else {
            self.left = 0;
            let late = io::Error::new(io::ErrorKind::TimedOut, "a client did not read in time");
            return Poll::Ready(Some(Err(late)));
        };
        self.left -= piece.len();
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(u64::try_from(self.left).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    const MIB: usize = 1 << 20;

    fn held(answers: &Answers, length: usize) -> Result<Body, NoRoom> {
        let held = answers.hold(Response::new(vec![7; length].into()));
        held.map(Response::into_body)
    }

    #[tokio::test]
    async fn an_answer_is_read_whole_and_has_its_length() {
        let answers = Answers::default();
        for length in [0, 1, PIECE, PIECE + 1, 3 * MIB + 5] {
            let body = held(&answers, length).unwrap();
            let known = HttpBody::size_hint(&body).exact();
            assert_eq!(known, u64::try_from(length).ok());
            let read = body.collect().await.unwrap().to_bytes();
            assert_eq!(read, vec![7; length]);
            assert_eq!(answers.room.available_permits(), ROOM);
        }
    }

    #[tokio::test]
    async fn who_does_not_read_in_time_holds_nothing() {
        let answers = Answers {
            time: Duration::from_millis(1),
            ..Answers::default()
        };
        let mut body = held(&answers, MIB - 1).unwrap();
        let free = async {
            while answers.room.available_permits() < ROOM {
                sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), free)
            .await
            .unwrap();
        assert!(body.frame().await.unwrap().is_err());
        assert!(body.frame().await.is_none());
    }

    #[tokio::test]
    async fn answers_have_as_much_room_as_there_is() {
        let answers = Answers::default();
        let read: Vec<_> = (0..ROOM / 1024 / 4)
            .map(|_| held(&answers, 4 * MIB).unwrap())
            .collect();
        assert_eq!(held(&answers, MIB).err(), Some(NoRoom));
        assert!(held(&answers, PIECE).is_ok(), "small ones take none");
        drop(read);
        assert!(held(&answers, MIB).is_ok());
    }
}
