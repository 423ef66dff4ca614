//! Nodes whose images have snapshots inside.

use millpond_engine::node::{Description, OrderOutcome};
use millpond_messages::graph::ChangeSnapshots;
use millpond_messages::{Error, ErrorKind, InternalSnapshot, IoError, NodeId, SnapshotChange, SnapshotName};

use super::disk;
use super::facts::facts;
use super::failures::{each_step_fails, two_disks};
use super::world::{FakeNode, FakeWorld};

/// What a node answers that is asked to change its snapshots.
pub fn change(node: Option<&mut FakeNode>, change: &SnapshotChange, fails: bool) -> OrderOutcome {
    let there = node.and_then(|node| node.snapshots.as_mut());
    let gone = || Error::new(ErrorKind::NotFound, "There is no such snapshot");
    let changed = match (there, change) {
        _ if fails => Err(Error::io("The image cannot be written", IoError::NoSpace)),
        (None, _) | (_, SnapshotChange::Show(_)) => Ok(InternalSnapshot::default()),
        (Some(there), SnapshotChange::Create(new)) => {
            let id = (there.len() + 1).to_string();
            there.push(InternalSnapshot { id, ..new.clone() });
            Ok(there.last().cloned().unwrap_or_default())
        }
        (Some(there), SnapshotChange::Delete(name)) => {
            let at = there.iter().position(|one| name.fits(one)).ok_or_else(gone);
            at.map(|at| there.remove(at))
        }
        (Some(there), SnapshotChange::Apply(name)) => {
            let found = there.iter().find(|one| one.name == *name);
            found.cloned().ok_or_else(gone)
        }
    };
    OrderOutcome::Snapshot(changed)
}

/// What such a node says of itself.
pub fn describe(node: &FakeNode, size: u64, fails: bool) -> OrderOutcome {
    let description = Description {
        snapshots: node.snapshots.clone().unwrap_or_default(),
        ..disk::description(facts(node, None, size))
    };
    OrderOutcome::Described(match fails {
        true => Err(IoError::NoMedium),
        false => Ok(Box::new(description)),
    })
}

fn snapshot(id: &str, disk_size: u64) -> InternalSnapshot {
    InternalSnapshot {
        id: id.to_owned(),
        name: format!("s{id}"),
        disk_size,
        ..InternalSnapshot::default()
    }
}

/// A disk with a snapshot of its length, and one of another.
fn snapped() -> FakeWorld {
    let mut world = two_disks();
    world.node("a").snapshots = Some(vec![snapshot("1", 1 << 20), snapshot("2", 2 << 20)]);
    world
}

/// What the images of all nodes have.
pub fn all(world: &FakeWorld) -> Vec<(NodeId, Option<Vec<InternalSnapshot>>)> {
    let nodes = world.nodes.iter();
    nodes.map(|(id, node)| (*id, node.snapshots.clone())).collect()
}

#[test]
fn whichever_step_of_a_change_fails_there_are_the_same_snapshots() {
    for change in [
        SnapshotChange::Create(snapshot("3", 0)),
        SnapshotChange::Delete(SnapshotName::named("s1")),
        SnapshotChange::Apply("s1".to_owned()),
        SnapshotChange::Apply("s2".to_owned()),
    ] {
        each_step_fails(|| {
            let (device, change) = ("a".to_owned(), change.clone());
            (
                snapped(),
                ChangeSnapshots {
                    device,
                    change,
                    any_name: false,
                }
                .into(),
            )
        });
    }
}
