//! `millpond img dd`: a part of an image copied into a new one, with the operands of `dd`.

use std::process::ExitCode;

use millpond_graph::NewImage;
use millpond_graph::new_image::protocol_of;
use millpond_messages::graph::ListDrivers;
use millpond_messages::{OpenFlags, SECTOR_SIZE};

use super::copy::{BufferPool, Copy, CopyFault, Shape, Source, Sparse, Way};
use super::options::{cut, explain};
use super::pace::CopyPace;
use crate::cli::getopt::Row;
use crate::cli::tool::{Failure, ImageName, LARGEST, Program, Tool, number};
use crate::node::Client;

const HELP: &str = "\
Usage: {program} dd [OPTION]... [bs=SIZE] [count=NUMBER] [skip=NUMBER] if=IMAGE of=TARGET

Copies blocks of the disk of IMAGE into the new image TARGET.

Operands:
  if=IMAGE       The image that is read
  of=TARGET      The image that is made
  bs=SIZE        Bytes in a block (512)
  count=NUMBER   The blocks of IMAGE after the last that is copied
  skip=NUMBER    The blocks before the first

Options:
  -f, --format FORMAT         The format of IMAGE, which is found out otherwise
      --image-opts            IMAGE is a list of options: key=value,...
  -O, --output-format FORMAT  The format of TARGET (raw)
  -U, --force-share           Others may write to IMAGE meanwhile
      --object OBJECT         An object that IMAGE needs, such as a secret
  -h, --help                  Print this
";

#[derive(Clone, Copy)]
enum Name {
    Format,
    Help,
    ImageOptions,
    Object,
    OutputFormat,
    Share,
}

const OPTIONS: &[Row<Name>] = &[
    Row::flag("help", Some('h'), Name::Help),
    Row::value("format", Some('f'), Name::Format),
    Row::flag("image-opts", None, Name::ImageOptions),
    Row::value("output-format", Some('O'), Name::OutputFormat),
    Row::flag("force-share", Some('U'), Name::Share),
    Row::value("object", None, Name::Object),
];

/// The largest block, in bytes.
const MOST_BLOCK: u64 = i32::MAX as u64;
/// Bytes of data in one piece.
const PIECE: u64 = 2 << 20;
/// Pieces that are under way at once.
const AT_ONCE: usize = 8;
/// Zeroes in a row that are left out, and the blocks that data is cut to, in sectors.
const SPARSE: Sparse = Sparse {
    least: 8,
    alignment: 8,
};

/// What the operands ask for.
#[derive(Default)]
struct Operands {
    input: Option<String>,
    output: Option<String>,
    block: Option<u64>,
    count: Option<u64>,
    skip: Option<u64>,
}

struct Plan {
    image: ImageName,
    target: String,
    format: String,
    block: u64,
    count: Option<u64>,
    skip: u64,
}

pub(super) fn run(program: Program<'_>, arguments: &[String]) -> Result<ExitCode, Failure> {
    let mut image = ImageName::default();
    let mut format = "raw".to_owned();
    let (mut objects, mut words) = (Vec::new(), Vec::new());
    for given in cut(program, "dd", OPTIONS, arguments) {
        let (option, value) = given?;
        match option {
            None => words.push(value),
            Some(Name::Help) => return Ok(explain(program, HELP)),
            Some(Name::Format) => image.format = Some(value),
            Some(Name::ImageOptions) => image.is_options = true,
            Some(Name::Object) => objects.push(value),
            Some(Name::OutputFormat) => format = value,
            Some(Name::Share) => image.force_share = true,
        }
    }
    let mut operands = Operands::default();
    words.iter().try_for_each(|word| operands.take(word))?;
    let (Some(input), Some(target)) = (operands.input, operands.output) else {
        return Err(Failure::new("Must specify both input and output files"));
    };
    image.name = input;
    // The target must not be the image that is read.
    image.flags = OpenFlags::NO_SHARE;
    let plan = Plan {
        image,
        target,
        format,
        block: operands.block.unwrap_or(SECTOR_SIZE),
        count: operands.count,
        skip: operands.skip.unwrap_or_default(),
    };
    Ok(Tool::run(program, &objects, async |tool| dd(tool, &plan).await))
}

impl Operands {
    fn take(&mut self, word: &str) -> Result<(), Failure> {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        match name {
            _ if !word.contains('=') => return Err(unknown(name)),
            "if" => self.input = Some(value.to_owned()),
            "of" => self.output = Some(value.to_owned()),
            "bs" => self.block = Some(number("bs", value, 1..=MOST_BLOCK)?),
            "count" => self.count = Some(number("count", value, 0..=LARGEST)?),
            "skip" => self.skip = Some(number("skip", value, 0..=LARGEST)?),
            _ => return Err(unknown(name)),
        }
        Ok(())
    }
}

fn unknown(name: &str) -> Failure {
    Failure::new(format!("unrecognized operand {name}"))
}

async fn dd(tool: &Tool<'_>, plan: &Plan) -> Result<ExitCode, Failure> {
    let source = tool.open(&plan.image).await?;
    check_target(tool, plan).await?;
    let unknown = |_| Failure::new(format!("Failed to get size for '{}'", plan.image.name));
    let whole = source.length().await.map_err(unknown)?;
    // As QEMU has it, `count` counts from the start of the disk.
    let end = plan.count.and_then(|count| count.checked_mul(plan.block));
    let end = end.map_or(whole, |end| end.min(whole));
    let from = plan.skip.checked_mul(plan.block).filter(|from| *from <= end);
    let length = from.map_or(0, |from| end - from);
    let target = make(tool, plan, length).await?;
    let Some(from) = from else {
        tool.program()
            .tell(&format!("{}: cannot skip to specified offset", plan.image.name));
        return Ok(ExitCode::SUCCESS);
    };
    copy(source, from, length, &target).await?;
    Ok(ExitCode::SUCCESS)
}

async fn check_target(tool: &Tool<'_>, plan: &Plan) -> Result<(), Failure> {
    let drivers = tool.graph().ask(ListDrivers { read_only: false }).await?;
    let find = |name: &str| drivers.iter().find(|driver| driver.name == name);
    let format = find(&plan.format).ok_or_else(|| Failure::new("Unknown file format"))?;
    let (protocol, _) = protocol_of(&plan.target);
    let unknown = || Failure::new(format!("Unknown protocol '{protocol}'"));
    let protocol = find(protocol)
        .filter(|driver| driver.is_protocol)
        .ok_or_else(unknown)?;
    for (what, driver) in [("Format", format), ("Protocol", protocol)] {
        if !driver.creates && driver.name != "raw" {
            let text = format!("{what} driver '{}' does not support image creation", driver.name);
            return Err(Failure::new(text));
        }
    }
    Ok(())
}

async fn make(tool: &Tool<'_>, plan: &Plan, length: u64) -> Result<Client, Failure> {
    let image = NewImage {
        filename: plan.target.clone(),
        format: plan.format.clone(),
        size: Some(length),
        quiet: true,
        ..NewImage::default()
    };
    let told = format!("{}: error while creating output image", plan.target);
    let made = tool.graph().create_image(image).await;
    made.map_err(|error| Failure::from(error).within(&told))?;
    let image = ImageName {
        format: Some(plan.format.clone()),
        flags: OpenFlags::RDWR,
        ..ImageName::new(plan.target.as_str())
    };
    tool.open(&image).await
}

async fn copy(source: Client, from: u64, length: u64, target: &Client) -> Result<(), Failure> {
    let source = Source {
        client: source,
        start: 0,
        from,
        length,
        alignment: SECTOR_SIZE,
    };
    let shape = Shape {
        sources: vec![source],
        has_backing: false,
        backing_length: None,
        most: PIECE,
        writes_zeroes: false,
        cluster: None,
        salvages: false,
    };
    let copy = Copy {
        shape: &shape,
        target,
        way: Way {
            sparse: Some(SPARSE),
            has_zero_init: true,
            compresses: false,
            in_order: true,
            at_once: AT_ONCE,
            offload: None,
        },
        pace: CopyPace::new(0),
        warn: &|_| {},
        begins: &|_| {},
        pool: BufferPool::default(),
    };
    copy.run().await.map_err(told)
}

fn told(fault: CopyFault) -> Failure {
    let text = match fault {
        CopyFault::Status(unknown) => format!("error while reading from input image file: {}", unknown.error),
        CopyFault::Read { error, .. } => format!("error while reading from input image file: {error}"),
        CopyFault::Write { error, .. } => format!("error while writing to output image file: {error}"),
    };
    Failure::new(text)
}
