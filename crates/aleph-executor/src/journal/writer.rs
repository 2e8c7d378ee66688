//! The one thread that has the connection.
//!
//! Whoever writes waits for the disk. Writers that come while it works are taken together: one
//! transaction for all, a savepoint for each, one wait for the disk. So a hundred creates at
//! once cost little more than one, and each is still durable when it is answered.

use super::JournalError;
use rusqlite::{Connection, Transaction};
use std::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::oneshot;

/// What is done with a transaction; the answer waits until it is durable.
type Work = Box<dyn FnOnce(&Transaction<'_>) -> Option<Answer> + Send>;
/// Tells whoever waits; `Err` where the whole transaction failed.
type Answer = Box<dyn FnOnce(Result<(), JournalError>) + Send>;

/// The most that one transaction takes.
const BATCH: usize = 256;

/// A way to the thread. It ends with the last of them.
#[derive(Clone)]
pub(super) struct Writer(Sender<Work>);

impl Writer {
    pub(super) fn start(connection: Connection) -> std::io::Result<Self> {
        let (sender, inbox) = channel();
        std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || serve(connection, &inbox))?;
        Ok(Self(sender))
    }

    /// Does `work` in a transaction and waits until it is durable. Where `work` fails, nothing
    /// of it is kept.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<T, JournalError> {
        let (tell, told) = oneshot::channel();
        let work: Work = Box::new(move |transaction| {
            crate::failpoint::pass(what, "before");
            if let Err(source) = transaction.execute_batch("SAVEPOINT work") {
                let _ = tell.send(Err(JournalError::sql(what)(source)));
                return None;
            }
            match work(transaction) {
                Ok(value) => {
                    if let Err(source) = transaction.execute_batch("RELEASE work") {
                        let _ = tell.send(Err(JournalError::sql(what)(source)));
                        return None;
                    }
                    Some(Box::new(move |durable| {
                        crate::failpoint::pass(what, "after");
                        let _ = tell.send(durable.map(|()| value));
                    }))
                }
                Err(error) => {
                    let _ = transaction.execute_batch("ROLLBACK TO work; RELEASE work");
                    let _ = tell.send(Err(error));
                    None
                }
            }
        });
        self.0.send(work).map_err(|_| JournalError::Closed)?;
        told.await.map_err(|_| JournalError::Closed)?
    }
}

fn serve(mut connection: Connection, inbox: &Receiver<Work>) {
    while let Ok(first) = inbox.recv() {
        let works = std::iter::once(first).chain(inbox.try_iter()).take(BATCH);
        match connection.transaction() {
            Ok(transaction) => {
                let (mut answers, mut lost) = (Vec::new(), false);
                for work in works {
                    answers.extend(work(&transaction));
                    // A full disk can end the whole transaction within one statement. What
                    // followed would be kept one by one, and told to be lost.
                    lost = transaction.is_autocommit();
                    if lost {
                        break;
                    }
                }
                if lost {
                    drop(transaction);
                    for answer in answers {
                        answer(Err(JournalError::Full));
                    }
                    continue;
                }
                match transaction.commit() {
                    Ok(()) => answers.into_iter().for_each(|answer| answer(Ok(()))),
                    Err(source) => {
                        tracing::error!(error = %source, "the journal cannot be written");
                        let full =
                            source.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull);
                        for answer in answers {
                            answer(Err(if full {
                                JournalError::Full
                            } else {
                                JournalError::Refused(source.to_string())
                            }));
                        }
                    }
                }
            }
            // What is dropped tells whoever waits that there is no answer.
            Err(error) => {
                tracing::error!(%error, "the journal cannot be written");
                drop(works.collect::<Vec<_>>());
            }
        }
    }
}
