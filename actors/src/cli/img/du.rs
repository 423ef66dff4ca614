//! `millpond img du`: what each image of a chain holds of the disk, and what would be given back without it.

use std::process::ExitCode;

use millpond_messages::graph::{FindRoot, NodeFacts, RootRequest, RootUser};
use millpond_messages::io::Operation;
use millpond_messages::{IoError, Permissions, Range, StatusFlags};
use serde_json::json;

use super::chain::chain_of;
use super::options::{cut, explain};
use super::output::{OutputForm, print_json};
use crate::cli::getopt::Row;
use crate::cli::tool::{Failure, ImageName, Program, Tool, print};
use crate::node::Client;

const HELP: &str = "\
Usage: {program} du [OPTION]... IMAGE

Tells what each image of the chain of IMAGE holds, the top one first: how much of the
disk it has itself, how much of that the top one shows, how much room it takes on the
host, and how much of the disk the image below holds as well, which is given back if
both become one ('commit').

Options:
  -f, --format FORMAT  The format of IMAGE, which is found out otherwise
      --image-opts     IMAGE is a list of options: key=value,...
      --output FORM    human or json
  -U, --force-share    Others may write to the images meanwhile
      --object OBJECT  An object that an image needs, such as a secret
  -h, --help           Print this
";

#[derive(Clone, Copy)]
enum Name {
    Format,
    Help,
    ImageOptions,
    Object,
    Output,
    Share,
}

const OPTIONS: &[Row<Name>] = &[
    Row::flag("help", Some('h'), Name::Help),
    Row::value("format", Some('f'), Name::Format),
    Row::flag("image-opts", None, Name::ImageOptions),
    Row::value("output", None, Name::Output),
    Row::flag("force-share", Some('U'), Name::Share),
    Row::value("object", None, Name::Object),
];

pub(super) fn run(program: Program<'_>, arguments: &[String]) -> Result<ExitCode, Failure> {
    let mut image = ImageName::default();
    let mut output = OutputForm::Human;
    let (mut objects, mut words) = (Vec::new(), Vec::new());
    for given in cut(program, "du", OPTIONS, arguments) {
        let (option, value) = given?;
        match option {
            None => words.push(value),
            Some(Name::Help) => return Ok(explain(program, HELP)),
            Some(Name::Format) => image.format = Some(value),
            Some(Name::ImageOptions) => image.is_options = true,
            Some(Name::Object) => objects.push(value),
            Some(Name::Output) => output = OutputForm::parse(program, "du", &value)?,
            Some(Name::Share) => image.force_share = true,
        }
    }
    match <[String; 1]>::try_from(words) {
        Ok([name]) => image.name = name,
        Err(_) => return Err(Failure::usage(program, "du", "Expecting one image file name")),
    }
    Ok(Tool::run(program, &objects, async |tool| {
        du(tool, &image, output).await
    }))
}

/// What an image of a chain holds, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
struct Layer {
    filename: String,
    format: String,
    /// Of the disk, allocated in the image.
    held: u64,
    /// Of that, what the top image shows.
    shown: u64,
    /// Of that, what the image below holds too.
    held_twice: u64,
    /// On the host, where that can be told.
    on_host: Option<u64>,
}

async fn du(tool: &Tool<'_>, image: &ImageName, output: OutputForm) -> Result<ExitCode, Failure> {
    let top = tool.open(image).await?;
    let facts = tool.graph().ask(FindRoot(top.root())).await?;
    let chain = chain_of(tool, &facts.name).await?;
    let images: Vec<NodeFacts> = chain.into_iter().filter(|node| !node.is_filter).collect();
    let mut holders = Vec::new();
    for image in &images {
        let user = RootUser::Embedder(String::new());
        let request = RootRequest::new(image.name.as_str(), user, Permissions::CONSISTENT_READ);
        holders.push(Held::new(tool.graph().attach(request).await?, image.size));
    }
    let mut layers = Vec::new();
    for (image, holder) in images.iter().zip(&holders) {
        layers.push(Layer {
            filename: image.filename.clone(),
            format: image.driver.clone(),
            on_host: holder.client.allocated_size().await.ok(),
            ..Layer::default()
        });
    }
    count(&mut layers, holders).await?;
    match output {
        OutputForm::Json => print_json(&json!(layers)),
        OutputForm::Human => print(&table(&layers)),
    }
    Ok(ExitCode::SUCCESS)
}

fn table(layers: &[Layer]) -> String {
    let mut text = format!(
        "{:>16} {:>16} {:>16} {:>16}  Image\n",
        "Held", "Shown", "On host", "Held twice"
    );
    for layer in layers {
        let on_host = layer
            .on_host
            .map_or("unknown".to_owned(), |bytes| bytes.to_string());
        text.push_str(&format!(
            "{:>16} {:>16} {on_host:>16} {:>16}  {}\n",
            layer.held, layer.shown, layer.held_twice, layer.filename
        ));
    }
    text
}

/// Counts what the layers hold, going through all of them at once from the start of the disk.
async fn count(layers: &mut [Layer], mut holders: Vec<Held>) -> Result<(), Failure> {
    let end = holders.iter().map(|holder| holder.length).max().unwrap_or(0);
    let shown_to = holders.first().map_or(0, |top| top.length);
    let mut at = 0;
    while at < end {
        let mut until = end;
        let mut holds = Vec::new();
        for holder in &mut holders {
            let (holds_it, ends) = holder.at(at).await?;
            holds.push(holds_it);
            until = until.min(ends);
        }
        if at < shown_to {
            until = until.min(shown_to);
        }
        let shown = holds.iter().position(|holds| *holds).filter(|_| at < shown_to);
        for (index, layer) in layers.iter_mut().enumerate() {
            if !holds.get(index).copied().unwrap_or(false) {
                continue;
            }
            let len = until - at;
            layer.held += len;
            layer.shown += if shown == Some(index) { len } else { 0 };
            layer.held_twice += if holds.get(index + 1) == Some(&true) {
                len
            } else {
                0
            };
        }
        at = until;
    }
    Ok(())
}

/// What one image holds, asked for as it is gone through.
struct Held {
    client: Client,
    length: u64,
    /// The extents that were told and not gone through, by their ends.
    told: Vec<(u64, bool)>,
}

impl Held {
    const fn new(client: Client, length: u64) -> Self {
        Self {
            client,
            length,
            told: Vec::new(),
        }
    }

    /// Whether the image holds the byte at an offset, and up to where that is so.
    async fn at(&mut self, offset: u64) -> Result<(bool, u64), Failure> {
        if offset >= self.length {
            return Ok((false, u64::MAX));
        }
        while self.told.last().is_some_and(|(end, _)| *end <= offset) {
            self.told.pop();
        }
        if self.told.is_empty() {
            self.ask(offset).await?;
        }
        let (end, holds) = *self.told.last().ok_or_else(|| failed(IoError::Corrupt))?;
        Ok((holds, end))
    }

    async fn ask(&mut self, offset: u64) -> Result<(), Failure> {
        let map = Operation::Map {
            range: Range::between(offset, self.length),
            want_zero: true,
            whole_chain: false,
        };
        let extents = self.client.request(map).await.into_map().map_err(failed)?;
        let mut end = offset;
        for extent in &extents {
            end = end.saturating_add(extent.len);
            // What reads as zeroes takes no room, whether the image says so itself or has a hole there.
            let is_data = extent.flags.contains(StatusFlags::ALLOCATED | StatusFlags::DATA);
            self.told
                .push((end, is_data && !extent.flags.contains(StatusFlags::ZERO)));
        }
        self.told.reverse();
        match end > offset {
            true => Ok(()),
            false => Err(failed(IoError::Corrupt)),
        }
    }
}

fn failed(error: IoError) -> Failure {
    Failure::new(format!("error while reading image metadata: {error}"))
}
