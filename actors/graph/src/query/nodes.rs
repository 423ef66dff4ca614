//! `query-named-block-nodes`.

use std::collections::{BTreeMap, HashMap};

use millpond_engine::node::{Description, DetectZeroes, OrderOutcome};
use millpond_messages::qapi::{
    BlockDeviceInfo, BlockdevCacheInfo, BlockdevDetectZeroesOptions, ImageInfo, ImageInfoSpecific,
    SnapshotInfo,
};
use millpond_messages::{
    DriverInfo, Error, ErrorKind, IoError, IoThreadId, NodeId, OpenFlags, Result, Role, SECTOR_SIZE,
};

use crate::order::{IothreadOrder, NodeTask};
use crate::query::bitmaps;
use crate::query::device::says_nothing;
use crate::value::filename::{Filenames, full_backing_name};
use crate::value::graph::Graph;
use crate::value::node::Node;
use crate::world::World;

/// How many nodes one order asks. They are asked one after the other, those of different orders at the same time.
const AT_ONCE: usize = 32;

/// The most images that an answer describes: with the images below it, each node of a chain is described once for every node
/// above it.
const MOST_IMAGES: u64 = 1 << 18;

/// All nodes, the newest first.
///
/// # Errors
/// There are so many below each other that the answer is asked for without those below.
pub async fn named_nodes(world: &World, flat: bool) -> Result<Vec<BlockDeviceInfo>> {
    let descriptions = describe(world).await;
    world.graph(|graph| {
        let names = Filenames::of(graph, descriptions.keys().copied());
        let view = View {
            graph,
            names: &names,
            from_below: &from_below(graph, &descriptions),
            descriptions: &descriptions,
            flat,
        };
        view.check_length()?;
        // Each is of some size, so they are not copied as the list grows.
        let mut nodes = Vec::with_capacity(descriptions.len());
        nodes.extend(graph.live_nodes().rev().filter_map(|node| view.node(node)));
        Ok(nodes)
    })
}

/// What all live nodes say of themselves now. One that goes meanwhile is left out.
pub async fn describe(world: &World) -> HashMap<NodeId, Description> {
    let (at_home, moving) = by_iothread(world);
    let asked = at_home.values().map(Vec::len).sum::<usize>() + moving.len();
    let mut together = Vec::new();
    for (iothread, nodes) in at_home {
        for some in nodes.chunks(AT_ONCE) {
            together.push(world.ask_iothread(iothread, IothreadOrder::DescribeMany(some.to_vec())));
        }
    }
    let alone: Vec<_> = moving
        .into_iter()
        .map(|id| (id, world.ask(id, NodeTask::Describe)))
        .collect();
    let mut descriptions = HashMap::with_capacity(asked);
    for answer in together {
        if let OrderOutcome::DescribedMany(described) = answer.await {
            descriptions.extend(described);
        }
    }
    for (id, answer) in alone {
        if let OrderOutcome::Described(Ok(description)) = answer.await {
            descriptions.insert(id, *description);
        }
    }
    descriptions
}

/// The live nodes of each iothread, and those on their way to another: they are asked where they arrive.
pub(super) fn by_iothread(world: &World) -> (BTreeMap<IoThreadId, Vec<NodeId>>, Vec<NodeId>) {
    world.graph(|graph| {
        let mut at_home: BTreeMap<IoThreadId, Vec<NodeId>> = BTreeMap::new();
        let mut moving = Vec::new();
        for node in graph.live_nodes() {
            if node.moving {
                moving.push(node.id);
            } else {
                at_home.entry(node.iothread).or_default().push(node.id);
            }
        }
        (at_home, moving)
    })
}

/// What a node's answer takes from the nodes below it.
#[derive(Debug, Clone, Copy)]
struct FromBelow {
    /// Bytes on the host, those of its storage children included.
    allocated: Option<u64>,
    /// The node whose driver speaks of the image.
    speaker: Option<NodeId>,
    /// How many images are below.
    depth: i64,
}

/// Worked out from below, so that each node is looked at once however deep the graph is.
fn from_below(graph: &Graph, descriptions: &HashMap<NodeId, Description>) -> HashMap<NodeId, FromBelow> {
    let mut found: HashMap<NodeId, FromBelow> = HashMap::with_capacity(descriptions.len());
    for id in graph.topological(descriptions.keys().copied()).into_iter().rev() {
        let Some(node) = graph.node(id) else { continue };
        let speaker = if node.kind.is_filter() || node.kind.name() == "raw" {
            let child = graph.children_of(id).next().map(|edge| edge.child);
            child.and_then(|child| found.get(&child)?.speaker)
        } else {
            Some(id)
        };
        let below = below(graph, node).and_then(|below| found.get(&below.id));
        let entry = FromBelow {
            allocated: allocated(graph, descriptions, &found, id),
            speaker,
            depth: below.map_or(0, |below| below.depth + 1),
        };
        found.insert(id, entry);
    }
    found
}

fn allocated(
    graph: &Graph,
    descriptions: &HashMap<NodeId, Description>,
    found: &HashMap<NodeId, FromBelow>,
    id: NodeId,
) -> Option<u64> {
    match descriptions.get(&id)?.own_allocated_size {
        Ok(size) => Some(size),
        // As QEMU has it, what filenames can stand for speaks for itself.
        Err(IoError::NotSupported) if graph.node(id).is_some_and(|node| !node.kind.has_filenames()) => {
            // Of a filter it is what it filters, and not what else it writes to.
            let is_filter = graph.node(id).is_some_and(|node| node.kind.is_filter());
            let storage = graph.children_of(id).filter(|edge| match is_filter {
                true => edge.role.contains(Role::FILTERED),
                false => !edge.role.contains(Role::COW),
            });
            let sizes: Option<Vec<u64>> = storage.map(|edge| found.get(&edge.child)?.allocated).collect();
            sizes
                .filter(|sizes| !sizes.is_empty())
                .map(|sizes| sizes.into_iter().fold(0, u64::saturating_add))
        }
        Err(_) => None,
    }
}

/// What a node reads through: its backing node, or what it filters.
fn below<'a>(graph: &'a Graph, node: &Node) -> Option<&'a Node> {
    let through = Role::COW | Role::FILTERED;
    let edge = graph
        .children_of(node.id)
        .find(|edge| edge.role.intersects(through))?;
    graph
        .node(edge.child)
        .filter(|_| node.kind.is_filter() || edge.name == "backing")
}

struct View<'a> {
    graph: &'a Graph,
    names: &'a Filenames,
    from_below: &'a HashMap<NodeId, FromBelow>,
    descriptions: &'a HashMap<NodeId, Description>,
    flat: bool,
}

impl View<'_> {
    fn check_length(&self) -> Result<()> {
        let depths = self.graph.live_nodes().map(|node| self.depth(node));
        let images: u64 = depths.map(|depth| depth.unsigned_abs() + 1).sum();
        if self.flat || images <= MOST_IMAGES {
            return Ok(());
        }
        let text = format!("The answer would describe {images} images: ask with 'flat': true");
        Err(Error::new(ErrorKind::InvalidArgument, text))
    }

    /// A node, and unless flat the images below it, nested.
    fn node(&self, node: &Node) -> Option<BlockDeviceInfo> {
        let mut info = self.info_of(node)?;
        if !self.flat {
            info.image.backing_image = self.images_below(node);
        }
        Some(info)
    }

    fn info_of(&self, node: &Node) -> Option<BlockDeviceInfo> {
        let filename = self.names.get(node.id);
        let description = self.descriptions.get(&node.id)?;
        Some(BlockDeviceInfo {
            file: filename.to_owned(),
            node_name: Some(node.name.clone()),
            ro: node.flags.is_read_only(),
            drv: node.kind.name().to_owned(),
            backing_file: self.backing_filename(node),
            backing_file_depth: if self.flat { 0 } else { self.depth(node) },
            active: !node.flags.contains(OpenFlags::INACTIVE),
            encrypted: self.is_encrypted(node).is_some(),
            detect_zeroes: detect_zeroes(node.settings.detect_zeroes),
            image: self.image(node)?,
            cache: BlockdevCacheInfo {
                writeback: true,
                direct: node.flags.contains(OpenFlags::NOCACHE),
                no_flush: node.flags.contains(OpenFlags::NO_FLUSH),
            },
            // QEMU shows the unsigned number as a signed one.
            write_threshold: description.write_threshold.cast_signed(),
            dirty_bitmaps: bitmaps::shown(node, &description.bitmaps),
            // No limits.
            ..BlockDeviceInfo::default()
        })
    }

    /// The images below a node, the nearest first and the others nested in it.
    fn images_below(&self, node: &Node) -> Option<Box<ImageInfo>> {
        let chain = std::iter::successors(below(self.graph, node), |node| below(self.graph, node));
        let images: Vec<ImageInfo> = chain.map_while(|node| self.image(node)).collect();
        // Put together from below: however deep they nest, nothing calls itself.
        images.into_iter().rev().fold(None, |below, image| {
            Some(Box::new(ImageInfo {
                backing_image: below,
                ..image
            }))
        })
    }

    fn image(&self, node: &Node) -> Option<ImageInfo> {
        let description = self.descriptions.get(&node.id)?;
        let facts = &description.facts;
        let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let link = node.facts.as_ref().and_then(|facts| facts.backing.as_ref());
        let info = self.info(node);
        Some(ImageInfo {
            filename: self.names.get(node.id).to_owned(),
            format: node.kind.name().to_owned(),
            dirty_flag: info.map(|info| info.is_dirty),
            actual_size: self.from_below.get(&node.id)?.allocated.map(signed),
            virtual_size: signed(
                facts
                    .size
                    .checked_next_multiple_of(SECTOR_SIZE)
                    .unwrap_or(facts.size),
            ),
            cluster_size: info
                .map(|info| info.cluster_size)
                .filter(|size| *size != 0)
                .map(signed),
            encrypted: self.is_encrypted(node),
            compressed: None,
            backing_filename: link.map(|link| link.filename.clone()),
            full_backing_filename: full_backing_name(self.graph, node),
            backing_filename_format: link.and_then(|link| link.format.clone()),
            snapshots: self.snapshots(node),
            format_specific: description.specific.clone(),
            backing_image: None,
        })
    }

    /// The snapshots in the image that a node shows, if there are any.
    fn snapshots(&self, node: &Node) -> Option<Vec<SnapshotInfo>> {
        let speaker = self.from_below.get(&node.id)?.speaker?;
        let snapshots = &self.descriptions.get(&speaker)?.snapshots;
        (!snapshots.is_empty()).then(|| snapshots.iter().map(SnapshotInfo::from).collect())
    }

    /// Some, if a node's data is stored encrypted.
    fn is_encrypted(&self, node: &Node) -> Option<bool> {
        let specific = self.descriptions.get(&node.id)?.specific.as_ref()?;
        let is_encrypted = match specific {
            ImageInfoSpecific::Luks(_) => true,
            ImageInfoSpecific::Qcow2(qcow2) => qcow2.data.encrypt.is_some(),
            ImageInfoSpecific::File(_) => false,
        };
        is_encrypted.then_some(true)
    }

    /// The name of the backing node, if there is one.
    fn backing_filename(&self, node: &Node) -> Option<String> {
        self.graph
            .child_named(node.id, "backing")
            .map(|backing| self.names.get(backing).to_owned())
    }

    /// What the driver says of its image, or the one that it passes the question to.
    fn info(&self, node: &Node) -> Option<DriverInfo> {
        let speaker = self.graph.node(self.from_below.get(&node.id)?.speaker?)?;
        self.descriptions
            .get(&speaker.id)
            .filter(|_| !says_nothing(speaker))
            .map(|description| description.info)
    }

    fn depth(&self, node: &Node) -> i64 {
        self.from_below.get(&node.id).map_or(0, |below| below.depth)
    }
}

fn detect_zeroes(mode: DetectZeroes) -> BlockdevDetectZeroesOptions {
    match mode {
        DetectZeroes::Off => BlockdevDetectZeroesOptions::Off,
        DetectZeroes::On => BlockdevDetectZeroesOptions::On,
        DetectZeroes::Unmap => BlockdevDetectZeroesOptions::Unmap,
    }
}
