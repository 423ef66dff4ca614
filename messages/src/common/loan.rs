//! Bytes of a node that lie in a file of the host, lent to somebody who copies them without a buffer.
//!
//! ```text
//!   borrower                    the node that has the bytes
//!   Out(lender)     ──────────> finds them, lends them
//!   Loan            <──────────
//!   In, to a target ...         its request stays in flight, so nothing moves the bytes
//!   drops the loan  ──────────> answers
//! ```

use std::os::fd::OwnedFd;
use std::sync::Arc;

use futures_channel::oneshot;

use crate::common::Range;

/// A place in a file of the host.
#[derive(Debug, Clone)]
pub struct CopySource {
    /// The file with the bytes.
    pub file: Arc<OwnedFd>,
    /// The first byte in the file.
    pub offset: u64,
}

/// Who is asked for a loan: the half that goes to the node with the bytes.
#[derive(Debug)]
pub struct Lender {
    range: Range,
    out: oneshot::Sender<Loan>,
}

/// Bytes that stay where they are until the loan is dropped.
#[derive(Debug)]
pub struct Loan {
    /// The place where they lie.
    pub source: CopySource,
    /// How many they are: 1 at least.
    pub len: u64,
    _kept: oneshot::Sender<()>,
}

/// Who asks for a loan of the start of a range, and what the loan comes by.
pub fn lending(range: Range) -> (Lender, oneshot::Receiver<Loan>) {
    let (out, loan) = oneshot::channel();
    (Lender { range, out }, loan)
}

impl Lender {
    /// What is asked for.
    #[must_use]
    pub const fn range(&self) -> Range {
        self.range
    }

    /// The same asked of another node, where it is this range.
    #[must_use]
    pub fn moved_to(self, range: Range) -> Self {
        Self { range, ..self }
    }

    /// Lends so many bytes, and waits until they are given back.
    pub async fn lend(self, source: CopySource, len: u64) {
        let (kept, given_back) = oneshot::channel();
        let loan = Loan {
            source,
            len,
            _kept: kept,
        };
        // Who does not want it any more has given it back.
        drop(self.out.send(loan));
        let _ = given_back.await;
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use futures_util::FutureExt;

    use super::*;

    fn source() -> CopySource {
        let file = File::open("/dev/null").unwrap();
        CopySource {
            file: Arc::new(file.into()),
            offset: 7,
        }
    }

    #[test]
    fn a_lender_waits_until_the_loan_is_given_back() {
        let (lender, mut loan) = lending(Range::between(0, 10));
        let mut lent = Box::pin(lender.lend(source(), 10));
        assert!(lent.as_mut().now_or_never().is_none());
        let loan = loan.try_recv().unwrap().unwrap();
        assert_eq!((loan.source.offset, loan.len), (7, 10));
        assert!(lent.as_mut().now_or_never().is_none());
        drop(loan);
        assert!(lent.now_or_never().is_some());
    }

    #[test]
    fn a_loan_that_nobody_waits_for_is_given_back_at_once() {
        let (lender, loan) = lending(Range::between(0, 10));
        drop(loan);
        assert!(lender.lend(source(), 10).now_or_never().is_some());
    }
}
