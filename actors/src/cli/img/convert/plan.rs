//! What `convert` was asked to do.

use std::process::ExitCode;

use millpond_messages::{OpenFlags, SECTOR_SIZE};

use crate::cli::getopt::Row;
use crate::cli::img::create::{add_options, describe};
use crate::cli::img::options::{cut, explain};
use crate::cli::tool::{Failure, LARGEST, Program, ShownSnapshot, Tool, number, read_cache};
use millpond_graph::new_image::asks_for_help;

const HELP: &str = "\
Usage: {program} convert [OPTION]... SOURCE... TARGET

Copies the disks of the SOURCEs, one behind the other, into the image TARGET. Sources
are not changed, and what is zero or unallocated takes no space in the target.

Sources:
  -f, --source-format FORMAT   Their format, which is found out otherwise
      --source-image-opts      They are lists of options: key=value,...
  -l, --snapshot NAME          The snapshot of that name or id in the first of them, or
                               snapshot.id=ID,snapshot.name=NAME
  -T, --source-cache MODE      How they are cached (writeback)
  -U, --force-share            Others may write to them meanwhile
      --salvage                Go on where one cannot be read, and take zeroes

Target:
  -O, --output-format FORMAT   Its format (raw)
  -o, --options LIST           Options of that format: key=value,...; 'help' lists them
      --target-image-opts      It is a list of options; needs -n
  -t, --output-cache MODE      How it is cached (unsafe)
  -n, --no-create              It is there already
      --target-is-zero         It reads as zeroes; needs -n
  -B, --backing IMAGE          What is the same in IMAGE and the sources' backing images is left to it
  -F, --backing-format FORMAT  The format of that IMAGE
  -c, --compress               Compress its data
  -S, --sparse-size SIZE       How many zeroes in a row make a hole (4k); 0 for no holes at all
      --bitmaps                Copy the persistent bitmaps of the source too
      --skip-broken-bitmaps    But for those that are inconsistent

How:
  -m, --parallel NUMBER        How many pieces are under way at once, 1 to 16 (8)
  -W, --oob-writes             Write them in any order
  -C, --copy-range-offloading  Have the host copy them, where it can
  -r, --rate RATE              Bytes to be written in a second at most
  -p, --progress               Show how far it is
  -q, --quiet                  Say nothing but errors
      --object OBJECT          An object that an image needs, such as a secret
  -h, --help                   Print this
";

#[derive(Clone, Copy)]
enum Name {
    Backing,
    BackingFormat,
    Bitmaps,
    Compress,
    Help,
    ImageOptions,
    NoCreate,
    Object,
    Offload,
    Options,
    OutputCache,
    OutputFormat,
    Parallel,
    Progress,
    Quiet,
    Rate,
    Salvage,
    Share,
    SkipBroken,
    Snapshot,
    SourceCache,
    SourceFormat,
    Sparse,
    TargetOptions,
    Unordered,
    Zero,
}

const OPTIONS: &[Row<Name>] = &[
    Row::flag("help", Some('h'), Name::Help),
    Row::flag("source-image-opts", None, Name::ImageOptions),
    Row::flag("image-opts", None, Name::ImageOptions),
    Row::value("source-format", Some('f'), Name::SourceFormat),
    Row::value("source-cache", Some('T'), Name::SourceCache),
    Row::value("snapshot", Some('l'), Name::Snapshot),
    Row::value("sparse-size", Some('S'), Name::Sparse),
    Row::value("object", None, Name::Object),
    Row::value("output-format", Some('O'), Name::OutputFormat),
    Row::value("options", Some('o'), Name::Options),
    Row::value("output-cache", Some('t'), Name::OutputCache),
    Row::value("backing", Some('B'), Name::Backing),
    Row::value("backing-format", Some('F'), Name::BackingFormat),
    Row::flag("force-share", Some('U'), Name::Share),
    Row::flag("quiet", Some('q'), Name::Quiet),
    Row::flag("progress", Some('p'), Name::Progress),
    Row::flag("no-create", Some('n'), Name::NoCreate),
    Row::flag("target-image-opts", None, Name::TargetOptions),
    Row::flag("target-is-zero", None, Name::Zero),
    Row::flag("copy-range-offloading", Some('C'), Name::Offload),
    Row::flag("salvage", None, Name::Salvage),
    Row::flag("bitmaps", None, Name::Bitmaps),
    Row::flag("skip-broken-bitmaps", None, Name::SkipBroken),
    Row::value("rate", Some('r'), Name::Rate),
    Row::value("parallel", Some('m'), Name::Parallel),
    Row::flag("oob-writes", Some('W'), Name::Unordered),
    Row::flag("", Some('c'), Name::Compress),
];

/// Zeroes in a row that make a hole, unless something else is asked for.
const HOLE: u64 = 4096;
/// The largest number of zeroes in a row that may be asked for.
const MOST_HOLE: u64 = 16 << 20;
/// The most pieces that may be under way.
const MOST_AT_ONCE: u64 = 16;

/// What is to be done.
pub struct ConvertPlan {
    pub objects: Vec<String>,
    pub sources: Vec<String>,
    pub source_format: Option<String>,
    pub source_is_options: bool,
    source_cache: String,
    pub force_share: bool,
    pub snapshot: Option<ShownSnapshot>,
    pub salvages: bool,
    pub target: String,
    pub format: String,
    pub options: String,
    pub target_is_options: bool,
    target_cache: String,
    pub creates: bool,
    pub is_zero: bool,
    pub backing: Option<String>,
    pub backing_format: Option<String>,
    pub compresses: bool,
    /// Bytes of zeroes that make a hole; 0 for no holes.
    pub least_zeroes: u64,
    pub copies_bitmaps: bool,
    pub skips_broken_bitmaps: bool,
    pub at_once: usize,
    pub is_unordered: bool,
    pub offloads: bool,
    pub rate: u64,
    pub shows_progress: bool,
    pub is_quiet: bool,
}

/// What the command line has come to.
pub enum Read {
    /// Something is to be converted.
    Plan(Box<ConvertPlan>),
    /// It asked for help, which was printed.
    Done(ExitCode),
}

impl ConvertPlan {
    fn new() -> Self {
        Self {
            objects: Vec::new(),
            sources: Vec::new(),
            source_format: None,
            source_is_options: false,
            source_cache: "writeback".to_owned(),
            force_share: false,
            snapshot: None,
            salvages: false,
            target: String::new(),
            format: String::new(),
            options: String::new(),
            target_is_options: false,
            target_cache: "unsafe".to_owned(),
            creates: true,
            is_zero: false,
            backing: None,
            backing_format: None,
            compresses: false,
            least_zeroes: HOLE,
            copies_bitmaps: false,
            skips_broken_bitmaps: false,
            at_once: MOST_AT_ONCE as usize / 2,
            is_unordered: false,
            offloads: false,
            rate: 0,
            shows_progress: false,
            is_quiet: false,
        }
    }

    /// How sources are cached.
    ///
    /// # Errors
    /// There is no such mode.
    pub fn source_cache(&self) -> Result<(OpenFlags, bool), Failure> {
        let mode = &self.source_cache;
        read_cache(mode).ok_or_else(|| Failure::new(format!("Invalid source cache option: {mode}")))
    }

    /// How the target is cached.
    ///
    /// # Errors
    /// There is no such mode.
    pub fn target_cache(&self) -> Result<(OpenFlags, bool), Failure> {
        let mode = &self.target_cache;
        read_cache(mode).ok_or_else(|| Failure::new(format!("Invalid cache option: {mode}")))
    }
}

/// Reads the command line.
///
/// # Errors
/// It cannot be understood, or asks for what cannot go together.
pub fn read(program: Program<'_>, arguments: &[String]) -> Result<Read, Failure> {
    let mut plan = ConvertPlan::new();
    let mut says_hole = false;
    for given in cut(program, "convert", OPTIONS, arguments) {
        let (option, value) = given?;
        match option {
            None => plan.sources.push(value),
            Some(Name::Help) => return Ok(Read::Done(explain(program, HELP))),
            Some(Name::Backing) => plan.backing = Some(value),
            Some(Name::BackingFormat) => plan.backing_format = Some(value),
            Some(Name::Bitmaps) => plan.copies_bitmaps = true,
            Some(Name::Compress) => plan.compresses = true,
            Some(Name::ImageOptions) => plan.source_is_options = true,
            Some(Name::NoCreate) => plan.creates = false,
            Some(Name::Object) => plan.objects.push(value),
            Some(Name::Offload) => plan.offloads = true,
            Some(Name::Options) => add_options(&mut plan.options, &value)?,
            Some(Name::OutputCache) => plan.target_cache = value,
            Some(Name::OutputFormat) => plan.format = value,
            Some(Name::Parallel) => {
                plan.at_once = number("number of coroutines", &value, 1..=MOST_AT_ONCE)? as usize;
            }
            Some(Name::Progress) => plan.shows_progress = true,
            Some(Name::Quiet) => plan.is_quiet = true,
            Some(Name::Rate) => plan.rate = number("rate limit", &value, 0..=LARGEST)?,
            Some(Name::Salvage) => plan.salvages = true,
            Some(Name::Share) => plan.force_share = true,
            Some(Name::SkipBroken) => plan.skips_broken_bitmaps = true,
            Some(Name::Snapshot) => plan.snapshot = Some(ShownSnapshot::read(program, value, '\'')?),
            Some(Name::SourceCache) => plan.source_cache = value,
            Some(Name::SourceFormat) => plan.source_format = Some(value),
            Some(Name::Sparse) => {
                plan.least_zeroes = hole(&value)?;
                says_hole = true;
            }
            Some(Name::TargetOptions) => plan.target_is_options = true,
            Some(Name::Unordered) => plan.is_unordered = true,
            Some(Name::Zero) => plan.is_zero = true,
        }
    }
    plan.check(says_hole)?;
    if asks_for_help(&plan.options) {
        return Ok(Read::Done(plan.explain_options(program)));
    }
    plan.finish()?;
    Ok(Read::Plan(Box::new(plan)))
}

impl ConvertPlan {
    /// Refuses what cannot go together.
    fn check(&self, says_hole: bool) -> Result<(), Failure> {
        let rules = [
            (
                self.skips_broken_bitmaps && !self.copies_bitmaps,
                "Use of --skip-broken-bitmaps requires --bitmaps",
            ),
            (
                self.target_is_options && self.creates,
                "--target-image-opts requires use of -n flag",
            ),
            (
                !self.creates && !self.options.is_empty(),
                "-o has no effect when skipping image creation",
            ),
            (
                self.is_zero && self.creates,
                "--target-is-zero requires use of -n flag",
            ),
            (
                self.offloads && self.compresses,
                "Cannot enable copy offloading when -c is used",
            ),
            (
                self.offloads && says_hole,
                "Cannot enable copy offloading when -S is used",
            ),
            (
                self.offloads && self.salvages,
                "Cannot use copy offloading in salvaging mode",
            ),
        ];
        match rules.iter().find(|(is_broken, _)| *is_broken) {
            Some((_, text)) => Err(Failure::new(*text)),
            None => Ok(()),
        }
    }

    /// Prints the options that the target can have, whose name is the last.
    fn explain_options(&self, program: Program<'_>) -> ExitCode {
        let format = match self.format.as_str() {
            "" => "raw",
            format => format,
        };
        let target = self.sources.last().map(String::as_str);
        Tool::run(program, &self.objects, async |tool| {
            describe(tool, format, target).await
        })
    }

    /// The last of the names is the target's.
    fn finish(&mut self) -> Result<(), Failure> {
        if self.format.is_empty() && !self.target_is_options {
            self.format = "raw".to_owned();
        }
        let last = self.sources.pop().unwrap_or_default();
        if self.sources.is_empty() {
            return Err(Failure::new("Must specify image file name"));
        }
        self.target = last;
        Ok(())
    }
}

fn hole(text: &str) -> Result<u64, Failure> {
    let size = number("buffer size for sparse output", text, 0..=LARGEST)?;
    if size.is_multiple_of(SECTOR_SIZE) && size <= MOST_HOLE {
        return Ok(size);
    }
    Err(Failure::new(format!(
        "Invalid buffer size for sparse output specified. Valid sizes are multiples of {SECTOR_SIZE} up to {MOST_HOLE}. \
         Select 0 to disable sparse detection (fully allocates output)."
    )))
}
