//! What the graph announces, told to the monitors; or the end of the daemon.

use super::Daemon;
use crate::graph::Announcement;
use crate::monitor::Throttle;
use futures_channel::mpsc;
use futures_util::StreamExt;
use millpond_messages::qapi::TimedEvent;
use std::future::pending;
use tokio::time::Instant;

impl Daemon {
    /// Listens for as long as the graph lives. Events that come too often are held back here, for all monitors alike.
    pub(super) fn announce(&self, announcements: mpsc::Receiver<Announcement>) {
        actix_rt::spawn(relay(self.clone(), announcements));
    }
}

/// The time of the control thread's timers.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}

async fn relay(daemon: Daemon, mut announcements: mpsc::Receiver<Announcement>) {
    let mut throttle = Throttle::default();
    loop {
        let due = throttle.next_due();
        let pause = async {
            match due {
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            announcement = announcements.next() => match announcement {
                None => return,
                Some(Announcement::Event(event)) => {
                    if let Some(event) = throttle.offer(TimedEvent::now(event), now()) {
                        daemon.events().send(event);
                    }
                }
                Some(Announcement::Mismatch(message)) => {
                    crate::log::tell(&message);
                    daemon.fail();
                }
            },
            () = pause => throttle.due(now()).into_iter().for_each(|event| daemon.events().send(event)),
        }
    }
}
