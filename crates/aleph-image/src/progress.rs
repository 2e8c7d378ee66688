//! How far a long operation is.

/// Hears of the steps of a long operation, one after another.
///
/// Every [`begin`](Self::begin) is followed by any number of [`advance`](Self::advance) and one
/// [`end`](Self::end), except when the operation fails in between: then the next thing heard is
/// the error itself.
pub trait Progress {
    /// A step begins: what it is, and how many bytes it is of where that is known.
    fn begin(&mut self, what: &str, total: Option<u64>);

    /// The step got `n` bytes further.
    fn advance(&mut self, n: u64);

    /// The step is done.
    fn end(&mut self);
}

/// Hears nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn begin(&mut self, _what: &str, _total: Option<u64>) {}
    fn advance(&mut self, _n: u64) {}
    fn end(&mut self) {}
}
