//! `millpond img bench`: how fast an image takes requests, with a certain number of them in flight.

use std::process::ExitCode;
use std::time::Instant;

use futures_channel::oneshot;
use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;
use millpond_messages::{IoError, IoResult, OpenFlags, RequestFlags};
use millpond_ring::buffer::{Buffer, Buffers};

use super::options::{cut, explain};
use crate::cli::getopt::Row;
use crate::cli::tool::{Failure, ImageName, LARGEST, Program, Tool, number, print, read_cache};
use crate::iothread::Local;
use crate::node::{Client, HomeClient};

const HELP: &str = "\
Usage: {program} bench [OPTION]... IMAGE

Reads or writes an image with so many requests in flight, and tells how long that took.

Options:
  -f, --format FORMAT        The format of IMAGE, which is found out otherwise
      --image-opts           IMAGE is a list of options: key=value,...
  -t, --cache MODE           How it is cached (writeback)
  -i, --aio MODE             How requests reach the kernel: threads, native or io_uring
  -n, --native               The same as -i native
  -c, --count NUMBER         How many requests there are (75000)
  -d, --depth NUMBER         How many of them are in flight at once (64)
  -s, --buffer-size SIZE     Bytes in a request (4k)
  -o, --offset OFFSET        Where the first begins (0)
  -S, --step-size SIZE       How far the next one begins from there (the size of a request)
  -w, --write                Write rather than read
      --pattern BYTE         Write this byte (0)
      --flush-interval NUMBER
                             Flush after so many requests
      --no-drain             And do not wait for those in flight before
  -U, --force-share          Others may write to the image meanwhile
  -q, --quiet                Accepted for QEMU's sake
      --object OBJECT        An object that the image needs, such as a secret
  -h, --help                 Print this
";

#[derive(Clone, Copy)]
enum Name {
    Aio,
    BufferSize,
    Cache,
    Count,
    Depth,
    FlushInterval,
    Format,
    Help,
    ImageOptions,
    Native,
    NoDrain,
    Object,
    Offset,
    Pattern,
    Quiet,
    Share,
    StepSize,
    Write,
}

const OPTIONS: &[Row<Name>] = &[
    Row::flag("help", Some('h'), Name::Help),
    Row::value("format", Some('f'), Name::Format),
    Row::flag("image-opts", None, Name::ImageOptions),
    Row::value("cache", Some('t'), Name::Cache),
    Row::value("count", Some('c'), Name::Count),
    Row::value("depth", Some('d'), Name::Depth),
    Row::value("offset", Some('o'), Name::Offset),
    Row::value("buffer-size", Some('s'), Name::BufferSize),
    Row::value("step-size", Some('S'), Name::StepSize),
    Row::flag("write", Some('w'), Name::Write),
    Row::value("pattern", None, Name::Pattern),
    Row::value("flush-interval", None, Name::FlushInterval),
    Row::flag("no-drain", None, Name::NoDrain),
    Row::value("aio", Some('i'), Name::Aio),
    Row::flag("native", Some('n'), Name::Native),
    Row::flag("force-share", Some('U'), Name::Share),
    Row::flag("quiet", Some('q'), Name::Quiet),
    Row::value("object", None, Name::Object),
];

/// The largest number of most options.
const MOST: u64 = i32::MAX as u64;

/// The requests that are sent.
#[derive(Clone, Copy, Debug)]
struct Load {
    count: u64,
    depth: u64,
    size: u64,
    /// As it was asked for; without that requests follow each other.
    step: Option<u64>,
    offset: u64,
    writes: bool,
    pattern: u8,
    /// Requests between flushes; 0 for none.
    flush_interval: u64,
    /// A flush waits for those in flight.
    drains: bool,
}

struct Plan {
    image: ImageName,
    cache: String,
    aio: OpenFlags,
    load: Load,
}

pub(super) fn run(program: Program<'_>, arguments: &[String]) -> Result<ExitCode, Failure> {
    let mut plan = Plan {
        image: ImageName::default(),
        cache: "writeback".to_owned(),
        aio: OpenFlags::empty(),
        load: Load {
            count: 75_000,
            depth: 64,
            size: 4096,
            step: None,
            offset: 0,
            writes: false,
            pattern: 0,
            flush_interval: 0,
            drains: true,
        },
    };
    let (mut objects, mut words) = (Vec::new(), Vec::new());
    for given in cut(program, "bench", OPTIONS, arguments) {
        let (option, value) = given?;
        let (plan, load) = (&mut plan, &value);
        match option {
            None => words.push(value),
            Some(Name::Help) => return Ok(explain(program, HELP)),
            Some(Name::Aio) => plan.aio = aio(&value)?,
            Some(Name::Cache) => plan.take_cache(value)?,
            Some(Name::Format) => plan.image.format = Some(value),
            Some(Name::ImageOptions) => plan.image.is_options = true,
            Some(Name::Native) => plan.aio = OpenFlags::NATIVE_AIO,
            Some(Name::Object) => objects.push(value),
            Some(Name::Quiet) => {}
            Some(Name::Share) => plan.image.force_share = true,
            Some(other) => plan.load.take(other, load)?,
        }
    }
    match <[String; 1]>::try_from(words) {
        Ok([name]) => plan.image.name = name,
        Err(_) => return Err(Failure::usage(program, "bench", "Expecting one image file name")),
    }
    plan.load.check()?;
    Ok(Tool::run(program, &objects, async |tool| {
        bench(tool, &mut plan).await
    }))
}

/// How requests reach the kernel.
fn aio(mode: &str) -> Result<OpenFlags, Failure> {
    match mode {
        "threads" => Ok(OpenFlags::empty()),
        "native" => Ok(OpenFlags::NATIVE_AIO),
        "io_uring" => Ok(OpenFlags::IO_URING),
        _ => Err(Failure::new(format!("Invalid aio option: {mode}"))),
    }
}

impl Plan {
    fn take_cache(&mut self, mode: String) -> Result<(), Failure> {
        if read_cache(&mode).is_none() {
            return Err(Failure::new("Invalid cache mode"));
        }
        self.cache = mode;
        Ok(())
    }
}

impl Load {
    fn take(&mut self, option: Name, value: &str) -> Result<(), Failure> {
        match option {
            Name::Count => self.count = number("request count", value, 1..=MOST)?,
            Name::Depth => self.depth = number("queue depth", value, 1..=MOST)?,
            Name::BufferSize => self.size = number("buffer size", value, 1..=MOST)?,
            Name::StepSize => self.step = Some(number("step size", value, 0..=MOST)?),
            Name::Offset => self.offset = number("offset", value, 0..=LARGEST)?,
            Name::Pattern => self.pattern = number("pattern byte", value, 0..=255)? as u8,
            Name::FlushInterval => self.flush_interval = number("flush interval", value, 0..=MOST)?,
            Name::NoDrain => self.drains = false,
            Name::Write => self.writes = true,
            _ => {}
        }
        Ok(())
    }

    /// Refuses what cannot go together.
    fn check(&self) -> Result<(), Failure> {
        if self.flush_interval > 0 && !self.writes {
            return Err(Failure::new("--flush-interval is only available in write tests"));
        }
        if self.flush_interval > 0 && self.flush_interval < self.depth {
            return Err(Failure::new("Flush interval can't be smaller than depth"));
        }
        Ok(())
    }

    fn announce(&self) {
        let (count, size, depth) = (self.count, self.size, self.depth);
        let what = if self.writes { "write" } else { "read" };
        print(&format!(
            "Sending {count} {what} requests, {size} bytes each, {depth} in parallel (starting at offset {}, step size {})\n",
            self.offset,
            self.step(),
        ));
        if self.flush_interval > 0 {
            print(&format!("Sending flush every {} requests\n", self.flush_interval));
        }
    }

    fn step(&self) -> u64 {
        self.step.filter(|step| *step > 0).unwrap_or(self.size)
    }
}

async fn bench(tool: &Tool<'_>, plan: &mut Plan) -> Result<ExitCode, Failure> {
    let (flags, writes_through) =
        read_cache(&plan.cache).ok_or_else(|| Failure::new("Invalid cache mode"))?;
    plan.image.flags = flags | plan.aio;
    plan.image.flags.set(OpenFlags::RDWR, plan.load.writes);
    plan.image.writes_through = writes_through;
    let client = tool.open(&plan.image).await?;
    let failed = |error: IoError| Failure::new(format!("Failed request: {error}"));
    let length = client.length().await.map_err(failed)?;
    plan.load.announce();
    let begun = Instant::now();
    at_home(&client, plan.load, length).await.map_err(failed)?;
    print(&format!(
        "Run completed in {:.3} seconds.\n",
        begun.elapsed().as_secs_f64()
    ));
    Ok(ExitCode::SUCCESS)
}

/// Sends the requests from the image's own iothread, so that no message is between them and the image.
async fn at_home(client: &Client, load: Load, length: u64) -> IoResult<()> {
    let (done, ended) = oneshot::channel();
    let here = client.clone();
    client.run_at_home(move || {
        if let Some(local) = Local::current() {
            // Nobody waits any more where the program ends.
            local.spawn(async move {
                let _ = done.send(send_all(&here.here(), load, length).await);
            });
        }
    });
    ended.await.unwrap_or(Err(IoError::NoMedium))
}

/// Requests in flight; those that have ended give back their memory.
type InFlight<'a> = FuturesUnordered<LocalBoxFuture<'a, (IoResult<()>, Buffers)>>;

async fn send_all(client: &HomeClient, load: Load, length: u64) -> IoResult<()> {
    let mut in_flight = InFlight::new();
    let mut spare = Vec::new();
    let mut offset = load.offset;
    let (mut sent, mut unflushed) = (0, 0);
    while sent < load.count || !in_flight.is_empty() {
        let flushes = load.flush_interval > 0 && unflushed >= load.flush_interval;
        if flushes && (in_flight.is_empty() || !load.drains) {
            unflushed = 0;
            client.flush().await?;
        }
        let waits_for_flush = load.flush_interval > 0 && unflushed >= load.flush_interval;
        if sent < load.count && (in_flight.len() as u64) < load.depth && !waits_for_flush {
            let room = spare.pop().map_or_else(|| room(load), Ok)?;
            in_flight.push(request(client, load.writes, offset, room));
            offset = offset.saturating_add(load.step());
            // Past the end of the image it begins anew.
            offset = offset.checked_rem(length).unwrap_or_default();
            (sent, unflushed) = (sent + 1, unflushed + 1);
            continue;
        }
        if let Some((result, room)) = in_flight.next().await {
            result?;
            spare.push(room);
        }
    }
    Ok(())
}

fn room(load: Load) -> IoResult<Buffers> {
    let size = usize::try_from(load.size).map_err(|_| IoError::Invalid)?;
    let no_memory = IoError::from_errno(millpond_messages::error::errno::ENOMEM);
    let mut room = Buffer::try_aligned(size, 4096).ok_or(no_memory)?;
    room.fill(load.pattern);
    Ok(room.into())
}

fn request(
    client: &HomeClient,
    writes: bool,
    offset: u64,
    room: Buffers,
) -> LocalBoxFuture<'_, (IoResult<()>, Buffers)> {
    Box::pin(async move {
        match writes {
            true => client.write(offset, room, RequestFlags::empty()).await,
            false => client.read(offset, room).await,
        }
    })
}
