//! Setting io_uring up with the best options that the kernel has.

use std::io;

use io_uring::IoUring;

/// The best set-up that the kernel has: each is tried when the one before is an invalid argument.
pub(super) fn set_up(entries: u32) -> io::Result<IoUring> {
    type Options = fn(&mut io_uring::Builder) -> &mut io_uring::Builder;
    let ladder: [Options; 5] = [
        // 6.1: completions are processed by this thread, when it asks.
        |b| {
            b.setup_single_issuer()
                .setup_defer_taskrun()
                .setup_taskrun_flag()
                .setup_submit_all()
        },
        // 6.0
        |b| {
            b.setup_single_issuer()
                .setup_coop_taskrun()
                .setup_taskrun_flag()
                .setup_submit_all()
        },
        // 5.19: completions do not interrupt this thread.
        |b| b.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all(),
        // 5.18: one bad entry does not hold up the rest.
        |b| b.setup_submit_all(),
        |b| b,
    ];
    let mut refused = io::Error::from_raw_os_error(libc::EINVAL);
    for options in ladder {
        let mut builder = IoUring::builder();
        // Room for a burst of completions: the kernel keeps what does not fit, but slowly.
        builder
            .setup_clamp()
            .setup_cqsize(entries.saturating_mul(4))
            .dontfork();
        options(&mut builder);
        match builder.build(entries) {
            Ok(ring) => return Ok(ring),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refused = error,
            Err(error) => return Err(error),
        }
    }
    Err(refused)
}
