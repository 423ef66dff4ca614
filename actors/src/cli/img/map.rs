//! `millpond img map`: where the data of an image lies, extent by extent.

use super::options::{cut, explain};
use super::output::OutputForm;
use crate::cli::getopt::Row;
use crate::cli::tool::{Failure, ImageName, LARGEST, Program, Tool, number, print};
use crate::node::Client;
use millpond_messages::graph::{EdgeParent, FindRoot, GraphFacts, NamedNodes, WholeGraph};
use millpond_messages::io::Operation;
use millpond_messages::{BlockStatus, IoError, NodeId, Range, Role, SECTOR_SIZE, StatusFlags};
use std::collections::{HashMap, HashSet};
use std::process::ExitCode;

const HELP: &str = "\
Usage: {program} map [-f FORMAT | --image-opts] [-s OFFSET] [-l LENGTH] [-U]
           [--object OBJECT] [--output human|json] IMAGE

Shows where the data of IMAGE lies: for people, what of it can be found in which file; for
programs, all that is known of each part of the disk.

Options:
  -f, --format FORMAT     The format of IMAGE, which is found out otherwise
      --image-opts        IMAGE is a list of options: key=value,...
  -s, --start-offset OFFSET
                          The first byte of the disk that is of interest
  -l, --max-length LENGTH The most bytes that are of interest
  -U, --force-share       Others may write to it meanwhile
      --object OBJECT     An object that the image needs, such as a secret
      --output human|json For whom it is shown: people, unless said otherwise
  -h, --help              Print this
";

/// Bytes of text that are printed at once.
const PIECE: usize = 1 << 16;

#[derive(Clone, Copy)]
enum Name {
    ForceShare,
    Format,
    Help,
    ImageOptions,
    Length,
    Object,
    Output,
    Start,
}

const OPTIONS: &[Row<Name>] = &[
    Row::flag("help", Some('h'), Name::Help),
    Row::value("format", Some('f'), Name::Format),
    Row::value("output", None, Name::Output),
    Row::value("object", None, Name::Object),
    Row::flag("image-opts", None, Name::ImageOptions),
    Row::flag("force-share", Some('U'), Name::ForceShare),
    Row::value("start-offset", Some('s'), Name::Start),
    Row::value("max-length", Some('l'), Name::Length),
];

#[derive(Default)]
struct Plan {
    image: ImageName,
    output: OutputForm,
    start: u64,
    length: Option<u64>,
}

/// Shows where the data of the image lies that `arguments` name.
pub(super) fn run(program: Program<'_>, arguments: &[String]) -> Result<ExitCode, Failure> {
    let mut plan = Plan::default();
    let (mut objects, mut words) = (Vec::new(), Vec::new());
    for given in cut(program, "map", OPTIONS, arguments) {
        let (option, value) = given?;
        match option {
            None => words.push(value),
            Some(Name::Help) => return Ok(explain(program, HELP)),
            Some(Name::ForceShare) => plan.image.force_share = true,
            Some(Name::Format) => plan.image.format = Some(value),
            Some(Name::ImageOptions) => plan.image.is_options = true,
            Some(Name::Length) => plan.length = Some(number("max length", &value, 0..=LARGEST)?),
            Some(Name::Object) => objects.push(value),
            Some(Name::Output) => plan.output = OutputForm::parse(program, "map", &value)?,
            Some(Name::Start) => plan.start = number("start offset", &value, 0..=LARGEST)?,
        }
    }
    let [name] = <[String; 1]>::try_from(words)
        .map_err(|_| Failure::usage(program, "map", "Expecting one image file name"))?;
    plan.image.name = name;
    Ok(Tool::run(program, &objects, async |tool| map(tool, &plan).await))
}

async fn map(tool: &Tool<'_>, plan: &Plan) -> Result<ExitCode, Failure> {
    let client = tool.open(&plan.image).await?;
    let node = tool.graph().ask(FindRoot(client.root())).await?;
    let mut layers = Layers::below(node.id, &tool.graph().ask(WholeGraph).await?);
    for info in tool.graph().ask(NamedNodes { flat: true }).await? {
        let encrypted = info.node_name.filter(|_| info.encrypted);
        layers.encrypted.extend(encrypted);
    }
    // A disk's length is told in sectors, the last of which may be there in part only.
    let size = node
        .size
        .checked_next_multiple_of(SECTOR_SIZE)
        .unwrap_or(node.size);
    let end = match plan.length {
        Some(length) => size.min(plan.start.saturating_add(length)),
        None => size,
    };
    let mut printer = Printer::new(plan.output, plan.start);
    let mut at = plan.start;
    while at < end {
        let extents = extents(&client, at, end).await?;
        for extent in &extents {
            let extent_end = at.saturating_add(extent.len);
            while at < extent_end {
                let part = layers.part(at, extent_end, extent);
                at = at.saturating_add(part.len);
                printer.add(part, &layers)?;
            }
        }
    }
    printer.finish(&layers)?;
    Ok(ExitCode::SUCCESS)
}

/// What is known from `at` on, at least of one byte.
async fn extents(client: &Client, at: u64, end: u64) -> Result<Vec<BlockStatus>, Failure> {
    let unreadable = |error: IoError| Failure::new(format!("Failed to read image metadata: {error}"));
    let request = Operation::Map {
        range: Range::between(at, end),
        want_zero: true,
        whole_chain: true,
    };
    let mut extents = client
        .request(request)
        .await
        .into_map()
        .map_err(unreadable)?
        .into_vec();
    let told = extents
        .iter()
        .fold(at, |at, extent| at.saturating_add(extent.len));
    if told > at {
        return Ok(extents);
    }
    // What is left of the last sector is not stored.
    extents.clear();
    extents.push(BlockStatus {
        flags: StatusFlags::ZERO | StatusFlags::ALLOCATED | StatusFlags::EOF,
        len: end - at,
        map: None,
        depth: 1,
    });
    Ok(extents)
}

/// A part of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    start: u64,
    len: u64,
    /// In which image of the chain it is, 0 for the topmost.
    depth: usize,
    is_present: bool,
    is_zero: bool,
    is_data: bool,
    is_compressed: bool,
    /// Where in which node.
    place: Option<(NodeId, u64)>,
}

impl Part {
    /// Whether `next` goes on with what this is.
    fn goes_on_with(&self, next: &Self) -> bool {
        let follows = match (self.place, next.place) {
            (None, None) => true,
            (Some((node, at)), Some((other, then))) => {
                node == other && at.checked_add(self.len) == Some(then)
            }
            _ => false,
        };
        let place = self.place;
        follows
            && *self
                == Self {
                    start: self.start,
                    len: self.len,
                    place,
                    ..next.clone()
                }
    }
}

/// The images of a chain.
struct Layers {
    /// The nodes from the top, filters too.
    nodes: Vec<Layer>,
    /// The names of the files.
    names: HashMap<NodeId, String>,
    /// Only what stands on a format that may have a base is told to be zeroes where nobody has it.
    last_is_sparse: bool,
    /// The names of nodes whose data is encrypted, and so not compressed.
    encrypted: HashSet<String>,
}

/// A node of a chain.
struct Layer {
    node: NodeId,
    name: String,
    /// In which image of the chain it is.
    depth: usize,
    size: u64,
}

impl Layers {
    fn below(top: NodeId, facts: &GraphFacts) -> Self {
        let find = |id: NodeId| facts.nodes.iter().find(|node| node.id == id);
        let child = |id: NodeId, role: Role| {
            let mut edges = facts.edges.iter();
            let edge = edges.find(|edge| edge.parent == EdgeParent::Node(id) && edge.role.intersects(role));
            edge.map(|edge| edge.child)
        };
        let (mut nodes, mut at, mut depth) = (Vec::new(), Some(top), 0);
        let mut last_is_sparse = false;
        while let Some(node) = at.and_then(find) {
            nodes.push(Layer {
                node: node.id,
                name: node.name.clone(),
                depth,
                size: node.size,
            });
            last_is_sparse = node.driver == "qcow2";
            at = match node.is_filter {
                true => child(node.id, Role::FILTERED),
                false => {
                    depth += 1;
                    child(node.id, Role::COW)
                }
            };
        }
        Self {
            nodes,
            names: facts
                .nodes
                .iter()
                .map(|node| (node.id, node.filename.clone()))
                .collect(),
            last_is_sparse,
            encrypted: HashSet::new(),
        }
    }

    /// What is to be told of the start of what is left of an extent.
    fn part(&self, start: u64, end: u64, extent: &BlockStatus) -> Part {
        let has = |flag| extent.flags.contains(flag);
        let layer = usize::try_from(extent.depth).unwrap_or(usize::MAX).checked_sub(1);
        let mut part = Part {
            start,
            len: end - start,
            depth: self.nodes.last().map_or(0, |layer| layer.depth),
            is_present: has(StatusFlags::ALLOCATED),
            is_zero: has(StatusFlags::ZERO),
            is_data: has(StatusFlags::DATA),
            is_compressed: has(StatusFlags::COMPRESSED),
            place: extent.map.filter(|_| has(StatusFlags::OFFSET_VALID)),
        };
        let Some(layer) = layer.and_then(|layer| self.nodes.get(layer)) else {
            // Nobody has it.
            part.is_zero &= self.last_is_sparse;
            return part;
        };
        part.depth = layer.depth;
        part.is_compressed &= !self.encrypted.contains(&layer.name);
        let size_in_sectors = layer.size.checked_next_multiple_of(SECTOR_SIZE);
        let size_in_sectors = size_in_sectors.unwrap_or(layer.size);
        if start >= size_in_sectors {
            // Beyond the end of an image it is zeroes because of the one above.
            part.depth = layer.depth.saturating_sub(1);
            part.is_present = false;
        } else if start >= layer.size {
            // What is missing of the last sector counts as stored.
            part.len = part.len.min(size_in_sectors - start);
            part.place = Some((layer.node, start));
        }
        part
    }
}

/// Puts parts together that belong together, and prints them.
struct Printer {
    output: OutputForm,
    /// The part that may grow.
    last: Part,
    is_first: bool,
    text: String,
}

impl Printer {
    fn new(output: OutputForm, start: u64) -> Self {
        let mut text = String::new();
        if output == OutputForm::Human {
            text = format!("{:<16}{:<16}{:<16}{}\n", "Offset", "Length", "Mapped to", "File");
        }
        Self {
            output,
            // What is told where there is nothing to tell.
            last: Part {
                start,
                len: 0,
                depth: 0,
                is_present: false,
                is_zero: false,
                is_data: false,
                is_compressed: false,
                place: None,
            },
            is_first: true,
            text,
        }
    }

    fn add(&mut self, part: Part, layers: &Layers) -> Result<(), Failure> {
        if self.last.len == 0 {
            self.last = part;
        } else if self.last.goes_on_with(&part) {
            self.last.len = self.last.len.saturating_add(part.len);
        } else {
            self.tell(layers)?;
            self.last = part;
        }
        Ok(())
    }

    /// Prints the last part, and the end.
    fn finish(mut self, layers: &Layers) -> Result<(), Failure> {
        self.tell(layers)?;
        if self.output == OutputForm::Json {
            self.text.push_str("]\n");
        }
        print(&self.text);
        Ok(())
    }

    fn tell(&mut self, layers: &Layers) -> Result<(), Failure> {
        match self.output {
            OutputForm::Json => self.tell_programs(),
            OutputForm::Human => self.tell_people(layers)?,
        }
        if self.text.len() >= PIECE {
            print(&self.text);
            self.text.clear();
        }
        Ok(())
    }

    fn tell_people(&mut self, layers: &Layers) -> Result<(), Failure> {
        let part = &self.last;
        if !part.is_data {
            return Ok(());
        }
        let Some((node, offset)) = part.place else {
            print(&self.text);
            let text = "File contains external, encrypted or compressed clusters.";
            return Err(Failure::new(text));
        };
        if !part.is_zero {
            let name = layers.names.get(&node).map_or("", String::as_str);
            let (start, len, offset) = (
                hexadecimal(part.start),
                hexadecimal(part.len),
                hexadecimal(offset),
            );
            self.text
                .push_str(&format!("{start:<16}{len:<16}{offset:<16}{name}\n"));
        }
        Ok(())
    }

    fn tell_programs(&mut self) {
        let part = &self.last;
        let before = if self.is_first { "[" } else { ",\n" };
        self.is_first = false;
        self.text.push_str(&format!(
            "{before}{{ \"start\": {}, \"length\": {}, \"depth\": {}, \"present\": {}, \"zero\": {}, \"data\": {}, \
            \"compressed\": {}",
            part.start,
            part.len,
            part.depth,
            part.is_present,
            part.is_zero,
            part.is_data,
            part.is_compressed
        ));
        if let Some((_, offset)) = part.place {
            self.text.push_str(&format!(", \"offset\": {offset}"));
        }
        self.text.push('}');
    }
}

/// A number as C's `%#x` writes it.
fn hexadecimal(number: u64) -> String {
    match number {
        0 => "0".to_owned(),
        number => format!("{number:#x}"),
    }
}
