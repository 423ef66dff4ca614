//! The driver of a virtio block device, which reads as fast as it is answered.

use std::path::Path;
use std::time::{Duration, Instant};

use millpond_tests::vhost::{FrontEnd, Guest, Queue, WRITE, kind};

use super::rates::{BLOCK, SIZE};
use crate::Outcome;

/// How long requests run before they count.
const WARM_UP: Duration = Duration::from_millis(200);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A request that is sent again as soon as it was answered: its first descriptor, and where its header and its status are.
struct Again {
    head: u16,
    header: u64,
    status: u64,
}

/// A queue with its requests.
struct Source {
    queue: Queue,
    requests: Vec<Again>,
    random: u64,
}

impl Source {
    fn begin(front_end: &mut FrontEnd, index: u16, depth: u16) -> Self {
        let mut queue = front_end.start_queue(index);
        let guest = &mut front_end.guest;
        let requests = (0..depth).map(|_| {
            let (header, data, status) = (guest.header(kind::IN, 0), guest.room(BLOCK), guest.room(1));
            let pieces = [header, (data, BLOCK as u32, WRITE), (status, 1, WRITE)];
            let head = queue.describe(guest, &pieces);
            queue.offer(guest, head);
            Again {
                head,
                header: header.0,
                status,
            }
        });
        let requests = requests.collect();
        queue.kick();
        Self {
            queue,
            requests,
            random: u64::from(index) + 1,
        }
    }

    /// Waits for answers, and sends each request again; how many there were.
    fn turn(&mut self, guest: &Guest) -> Outcome<u16> {
        let mut answered = Some(self.queue.wait_for(guest, PATIENCE)?);
        let mut offered = 0;
        while let Some((head, _)) = answered {
            let found = self.requests.iter().find(|request| request.head == head);
            let Again { header, status, .. } = found.ok_or("an answer to no request")?;
            if guest.read_byte(*status) != 0 {
                return Err("a read failed".into());
            }
            self.random = self
                .random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let sector = (self.random >> 33) % (SIZE / BLOCK as u64) * (BLOCK as u64 / 512);
            guest.write(header + 8, &sector.to_le_bytes());
            self.queue.offer(guest, head);
            offered += 1;
            answered = self.queue.answer(guest);
        }
        self.queue.kick_where_awaited(guest, true, offered);
        Ok(offered)
    }
}

/// Reads at random over some queues of a virtio device, so many in flight on each; how many times a second. The guest tells
/// the device, and is interrupted, only where that is awaited.
///
/// # Errors
/// A read failed, or was not answered.
pub fn rate(socket: &Path, queues: u16, depth: u16, seconds: f64) -> Outcome<f64> {
    let mut front_end = FrontEnd::connect(socket);
    front_end.pass_memory();
    let mut sources: Vec<_> = (0..queues)
        .map(|index| Source::begin(&mut front_end, index, depth))
        .collect();
    let begun = Instant::now();
    let (mut count, mut since) = (0_u64, None);
    loop {
        // Each has requests in flight at any time: none is waited for in vain.
        for source in &mut sources {
            count += u64::from(source.turn(&front_end.guest)?);
        }
        let elapsed = begun.elapsed();
        if since.is_none() && elapsed > WARM_UP {
            since = Some((elapsed.as_secs_f64(), count));
        }
        if let Some((from, before)) = since
            && elapsed.as_secs_f64() > from + seconds
        {
            return Ok((count - before) as f64 / (elapsed.as_secs_f64() - from));
        }
    }
}
