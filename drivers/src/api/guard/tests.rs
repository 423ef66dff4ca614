use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::task::{Context, Poll, Wake, Waker};

use millpond_messages::error::errno::EIO;
use millpond_messages::{IoError, IoResult};

use super::driver::watch;
use super::watched::Health;
use crate::api::{Answer, Notice, Notices};

/// The methods that a trait, or an implementation, names in `source` from `start` on.
fn methods<'a>(source: &'a str, start: &str) -> Vec<&'a str> {
    let body = source.split_once(start).expect("it is in this file").1;
    let body = body.split_once("\n}\n").expect("it ends").0;
    let names = body.lines().filter_map(|line| line.strip_prefix("    fn "));
    names
        .map(|rest| rest.split(['(', '<']).next().unwrap_or(rest))
        .collect()
}

#[test]
fn no_method_is_left_to_its_default() {
    let driver = include_str!("driver.rs");
    let facet = |source, name: &str| {
        let declared = methods(source, &format!("pub trait {name}"));
        (declared, driver, format!("impl {name} for Guarded {{"))
    };
    for (declared, source, start) in [
        facet(include_str!("../driver.rs"), "Driver"),
        facet(include_str!("../lifecycle.rs"), "Lifecycle"),
        facet(include_str!("../image.rs"), "Image"),
        facet(include_str!("../debug.rs"), "DebugPoints"),
        (
            methods(include_str!("../device.rs"), "pub trait Device"),
            include_str!("device.rs"),
            "impl Device for Guarded {".to_owned(),
        ),
        (
            methods(include_str!("../kind.rs"), "pub trait DriverKind: "),
            include_str!("kind.rs"),
            "impl DriverKind for GuardedKind {".to_owned(),
        ),
    ] {
        assert!(declared.len() > 1, "{declared:?}");
        let there = methods(source, &start);
        let missing: Vec<_> = declared.iter().filter(|name| !there.contains(name)).collect();
        assert!(missing.is_empty(), "add these to {start}: {missing:?}");
    }
}

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn watched() -> (Rc<Health>, mpsc::Receiver<Notice>) {
    let (sender, receiver) = mpsc::channel();
    let notices = Notices::new(move |posted| drop(sender.send(posted.notice.clone())));
    (Health::new("node".to_owned(), "fragile", notices, true), receiver)
}

#[test]
fn one_panic_ends_all_that_a_driver_owes_and_is_told_once() {
    let (health, notices) = watched();
    let mut waiting: Answer<'_, IoResult<u64>> = watch(Answer::wait(std::future::pending()), &health);
    let count = Arc::new(Count::default());
    let waker = Waker::from(Arc::clone(&count));
    let mut context = Context::from_waker(&waker);
    let mut poll = |answer: &mut Answer<'_, IoResult<u64>>| std::pin::Pin::new(answer).poll(&mut context);
    assert!(poll(&mut waiting).is_pending() && poll(&mut waiting).is_pending());
    assert_eq!(health.waiting.borrow().len(), 1);
    let mut panics = watch(Answer::wait(async { panic!("it is {}", "late") }), &health);
    assert_eq!(poll(&mut panics), Poll::Ready(Err(IoError::Os(EIO))));
    assert_eq!(count.0.load(Ordering::SeqCst), 1, "who waits is woken");
    assert_eq!(poll(&mut waiting), Poll::Ready(Err(IoError::Os(EIO))));
    assert_eq!(health.run(|| panic!("twice")), None::<()>);
    let message = "it is late".to_owned();
    assert_eq!(
        notices.try_iter().collect::<Vec<_>>(),
        [Notice::Broken { message }]
    );
    assert_eq!(
        health.error().to_string(),
        "Node 'node' is broken: its driver 'fragile' panicked (it is late): Input/output error"
    );
}

#[test]
fn an_answer_that_ends_or_is_dropped_leaves_nobody_behind() {
    let (health, notices) = watched();
    let (sender, receiver) = futures_channel::oneshot::channel::<IoResult<u64>>();
    let wait = async { receiver.await.unwrap_or(Err(IoError::Cancelled)) };
    let mut answer = watch(Answer::wait(wait), &health);
    let mut dropped: Answer<'_, ()> = watch(Answer::wait(std::future::pending()), &health);
    let mut context = Context::from_waker(Waker::noop());
    assert!(std::pin::Pin::new(&mut answer).poll(&mut context).is_pending());
    assert!(std::pin::Pin::new(&mut dropped).poll(&mut context).is_pending());
    assert_eq!(health.waiting.borrow().len(), 2);
    drop(dropped);
    sender.send(Ok(7)).expect("it is waited for");
    assert_eq!(
        std::pin::Pin::new(&mut answer).poll(&mut context),
        Poll::Ready(Ok(7))
    );
    assert!(health.waiting.borrow().is_empty() && !health.broken.get());
    assert!(notices.try_recv().is_err());
}

#[test]
fn a_destructor_that_panics_breaks_its_node_too() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }
    let (health, notices) = watched();
    let bomb = Bomb;
    let answer: Answer<'_, ()> = watch(
        Answer::wait(async move {
            let _bomb = &bomb;
            std::future::pending::<()>().await;
        }),
        &health,
    );
    drop(answer);
    let message = "dropped".to_owned();
    assert_eq!(notices.try_recv(), Ok(Notice::Broken { message }));
}
