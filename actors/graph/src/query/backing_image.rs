//! Which image of a chain a filename means.

use millpond_engine::node::OrderOutcome;
use millpond_messages::path::{full_backing_filename, path_has_protocol};
use millpond_messages::{Error, NodeId, Result};

use crate::order::IothreadOrder;
use crate::value::chain;
use crate::value::filename::{self, Filenames};
use crate::value::graph::Graph;
use crate::value::node::Node;
use crate::world::World;

/// The image of a chain that an overlay in it has as its backing file by this name, as headers or users tell it. Two paths
/// are the same if they lead to the same file; the host is asked for that, off the threads that serve requests.
///
/// # Errors
/// There is no such node as `top`.
pub async fn find(world: &World, top: &str, filename: &str) -> Result<Option<NodeId>> {
    let candidates = world.graph(|graph| {
        let top = graph.find(top)?.id;
        Ok::<_, Error>(candidates(graph, top, filename))
    })?;
    let paths: Vec<String> = candidates.iter().flat_map(Candidate::paths).collect();
    let mut real = Vec::new();
    if !paths.is_empty() {
        let main = world.with(|state| state.main);
        if let OrderOutcome::RealPaths(found) =
            world.ask_iothread(main, IothreadOrder::RealPaths(paths)).await
        {
            real = found;
        }
    }
    let mut real = real.into_iter();
    let mut next = || real.next().flatten();
    for candidate in candidates {
        match candidate {
            Candidate::Named(below) => return Ok(Some(below)),
            Candidate::Perhaps { below, .. } => {
                let (full, wanted) = (next(), next());
                if full.is_some() && full == wanted {
                    return Ok(Some(below));
                }
            }
        }
    }
    Ok(None)
}

/// A backing image that a name may mean.
enum Candidate {
    /// The node below is the one that is named.
    Named(NodeId),
    /// It is, if both paths lead to the same file.
    Perhaps {
        below: NodeId,
        full: String,
        wanted: String,
    },
}

impl Candidate {
    fn paths(&self) -> Vec<String> {
        match self {
            Self::Named(_) => Vec::new(),
            Self::Perhaps { full, wanted, .. } => vec![full.clone(), wanted.clone()],
        }
    }
}

/// The images that `filename` may mean, down to the first that it means for sure.
fn candidates(graph: &Graph, top: NodeId, filename: &str) -> Vec<Candidate> {
    let mut candidates = Vec::new();
    let mut at = chain::skip_filters(graph, top);
    let names = Filenames::of(graph, [at]);
    while let (Some(below), Some(overlay)) = (chain::next_image(graph, at), graph.node(at)) {
        let candidate = candidate(graph, &names, overlay, below, filename);
        let is_sure = matches!(candidate, Some(Candidate::Named(_)));
        candidates.extend(candidate);
        if is_sure {
            break;
        }
        at = below;
    }
    candidates
}

/// Whether `filename` means the backing image `below` of `overlay`.
fn candidate(
    graph: &Graph,
    names: &Filenames,
    overlay: &Node,
    below: NodeId,
    filename: &str,
) -> Option<Candidate> {
    let named = |is_it: bool| is_it.then_some(Candidate::Named(below));
    if names.backing_overridden(graph, overlay) {
        return named(names.get(below) == filename);
    }
    let stored = overlay.facts.as_ref()?.backing.as_ref()?.filename.as_str();
    let image = filename::image_filename(graph, overlay.id);
    let full = full_backing_filename(&image, stored).ok();
    if path_has_protocol(filename) || path_has_protocol(stored) {
        return named(filename == stored || full.as_deref() == Some(filename));
    }
    let wanted = full_backing_filename(&image, filename).ok()?;
    Some(Candidate::Perhaps {
        below,
        full: full?,
        wanted,
    })
}
