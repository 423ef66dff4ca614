//! Which drivers are told that the data below them is other data, in which order, and what of it.

use millpond_messages::NodeId;
use millpond_messages::graph::{AddIothread, AttachRoot, DropFilter, IothreadOptions, Reopen, ReplaceNode};
use serde_json::{Value, json};

use super::world::Exchanged;
use super::*;

/// Files `a` and `b`.
fn files() -> FakeWorld {
    let mut world = FakeWorld::new();
    for name in ["a", "b"] {
        world.ok(add(
            json!({"driver": "file", "node-name": name, "filename": name}),
        ));
    }
    world
}

fn over(driver: &str, name: &str, file: &str) -> Value {
    match driver {
        "fmt" => json!({"driver": driver, "node-name": name, "file": file, "backing": null}),
        _ => json!({"driver": driver, "node-name": name, "file": file}),
    }
}

fn reopen_all(list: &[Value]) -> Reopen {
    Reopen(list.iter().cloned().map(options).collect())
}

/// What nodes were told since it was last asked, by their names.
fn told(world: &mut FakeWorld) -> Vec<String> {
    let facts = world.facts();
    let name = |id: NodeId| {
        let node = facts.nodes.iter().find(|node| node.id == id);
        node.map_or_else(|| id.to_string(), |node| node.name.clone())
    };
    let exchanges = std::mem::take(&mut world.exchanges);
    exchanges
        .into_iter()
        .map(|exchange| match exchange {
            Exchanged::Left(id) => format!("{} leaves", name(id)),
            Exchanged::Entered(id) => format!("{} enters", name(id)),
            Exchanged::AskedAnew(id) => format!("{} asks", name(id)),
            Exchanged::Kept(id) => format!("{} keeps", name(id)),
            Exchanged::TakenBack(id) => format!("{} takes back", name(id)),
        })
        .collect()
}

#[test]
fn another_node_is_other_data_and_a_filter_is_not() {
    let mut world = files();
    world.ok(add(over("fmt", "q", "a")));
    world.ok(add(over("filter", "f", "a")));
    world.exchanges.clear();
    world.ok(reopen(over("fmt", "q", "f")));
    assert_eq!(told(&mut world), ["q asks"]);
    world.ok(reopen(over("fmt", "q", "a")));
    assert_eq!(told(&mut world), ["q asks"]);
    world.ok(reopen(over("fmt", "q", "b")));
    assert_eq!(told(&mut world), ["q leaves", "q enters", "q keeps"]);
    // A filter over the old data is not the new data.
    world.ok(reopen(over("fmt", "q", "f")));
    assert_eq!(told(&mut world), ["q leaves", "q enters", "q keeps"]);
    world.assert_settled(&[]);
}

#[test]
fn those_above_write_back_before_those_below_and_read_after_them() {
    let mut world = files();
    world.ok(add(over("raw", "r", "a")));
    world.ok(add(over("filter", "f", "r")));
    world.ok(add(over("fmt", "q", "f")));
    // Of what is behind a backing edge nothing is kept, but what is above shows other data.
    world.ok(add(json!({"driver": "fmt", "node-name": "o", "backing": "q",
        "file": {"driver": "file", "filename": "o"}})));
    world.ok(add(over("filter", "top", "o")));
    world.exchanges.clear();
    world.ok(reopen(over("raw", "r", "b")));
    let told = told(&mut world);
    let of = |what: &str| -> Vec<&str> {
        let those = told.iter().filter_map(|told| told.strip_suffix(what));
        those.collect()
    };
    assert_eq!(of(" leaves"), ["top", "q", "f", "r"]);
    assert_eq!(of(" enters"), ["r", "f", "q", "top"]);
    let asks: Vec<&str> = of(" asks");
    assert!(asks.is_empty(), "facts are as they were: {asks:?}");
}

/// The filter gets other data in the same step in which it is put in between: who had its data before keeps it.
#[test]
fn what_is_compared_is_the_graph_before_with_the_graph_after() {
    let mut world = files();
    world.ok(add(over("fmt", "q", "a")));
    world.ok(add(over("filter", "f", "b")));
    world.exchanges.clear();
    world.ok(reopen_all(&[over("fmt", "q", "f"), over("filter", "f", "a")]));
    assert_eq!(told(&mut world), ["f leaves", "f enters", "q asks", "f keeps"]);
    world.assert_settled(&[]);
}

#[test]
fn two_that_swap_their_files_both_write_back_before_either_changes() {
    let mut world = files();
    world.ok(add(over("fmt", "p", "a")));
    world.ok(add(over("fmt", "q", "b")));
    world.exchanges.clear();
    world.ok(reopen_all(&[over("fmt", "p", "b"), over("fmt", "q", "a")]));
    let told = told(&mut world);
    assert_eq!(told.len(), 6);
    assert!(told[..2].iter().all(|told| told.ends_with("leaves")), "{told:?}");
    assert!(told[2..4].iter().all(|told| told.ends_with("enters")), "{told:?}");
}

#[test]
fn children_that_are_counted_come_and_go_without_other_data() {
    let mut world = files();
    world.ok(add(
        json!({"driver": "many", "node-name": "m", "children": ["a"]}),
    ));
    world.ok(add(over("fmt", "q", "m")));
    world.exchanges.clear();
    world.ok(add_child("m", "b"));
    assert_eq!(told(&mut world), ["m asks"]);
    world.ok(del_child("m", "children.1"));
    assert_eq!(told(&mut world), ["m asks"]);
    world.ok(add(json!({"driver": "file", "node-name": "c", "filename": "c"})));
    world.ok(ReplaceNode {
        from: "a".to_owned(),
        to: "c".to_owned(),
    });
    assert_eq!(
        told(&mut world),
        [
            "q leaves", "m leaves", "m enters", "q enters", "m keeps", "q keeps"
        ]
    );
    world.assert_settled(&[]);
}

#[test]
fn a_failure_takes_back_what_was_read() {
    for step in 0..20 {
        let mut world = files();
        world.ok(add(over("fmt", "q", "a")));
        world.ok(add(over("raw", "top", "q")));
        world.exchanges.clear();
        world.fail_after = Some(step);
        let result = world.request(reopen(over("fmt", "q", "b")));
        world.fail_after = None;
        if result.is_ok() {
            assert!(step > 4, "the steps can fail");
            return;
        }
        let told = told(&mut world);
        for node in ["q", "top"] {
            assert!(!told.contains(&format!("{node} keeps")), "{told:?}");
            let taken_back = told.contains(&format!("{node} takes back"));
            assert!(
                taken_back || !told.contains(&format!("{node} enters")),
                "{told:?}"
            );
        }
        world.assert_settled(&[]);
    }
    panic!("the request never got through");
}

/// A node goes to the iothread of the one that is held in place, whichever of the two an edit names first.
#[test]
fn what_is_joined_goes_to_where_somebody_is_held() {
    let (one, two) = (millpond_messages::IoThreadId(2), millpond_messages::IoThreadId(3));
    let hold = |node: &str, iothread, required| {
        let AttachRoot(request) = attach(node, READ, ALL);
        AttachRoot(RootRequest {
            iothread: Some(iothread),
            iothread_required: required,
            ..request
        })
    };
    let homes = |world: &mut FakeWorld, names: &[&str]| -> Vec<u64> {
        let facts = world.facts();
        let home = |name: &&str| {
            let node = facts.nodes.iter().find(|node| node.name == **name);
            node.expect("it is there").iothread.0.into()
        };
        names.iter().map(home).collect()
    };
    for required in [false, true] {
        let mut world = files();
        for id in ["one", "two"] {
            world.ok(AddIothread(IothreadOptions::named(id)));
        }
        world.root(hold("a", one, required));
        assert_eq!(homes(&mut world, &["a", "b"]), [2, 1]);
        // A snapshot: the overlay comes, with its file.
        world.ok(add(json!({"driver": "fmt", "node-name": "o", "backing": null,
            "file": {"driver": "file", "filename": "o", "node-name": "of"}})));
        world.ok(snapshot("a", "o"));
        assert_eq!(homes(&mut world, &["a", "o", "of"]), [2, 2, 2]);
        // A node that names both: the free one comes, even where it is named first.
        world.ok(add(
            json!({"driver": "many", "node-name": "m", "children": ["b", "a"]}),
        ));
        assert_eq!(homes(&mut world, &["a", "b", "m"]), [2, 2, 2]);
        // Children that come and go, and nodes in place of others.
        world.ok(add(json!({"driver": "file", "node-name": "c", "filename": "c"})));
        world.ok(add_child("m", "c"));
        assert_eq!(homes(&mut world, &["c"]), [2]);
        world.ok(add(json!({"driver": "file", "node-name": "d", "filename": "d"})));
        world.ok(ReplaceNode {
            from: "c".to_owned(),
            to: "d".to_owned(),
        });
        assert_eq!(homes(&mut world, &["d"]), [2]);
        // Two that are held in different places stay there.
        world.ok(add(json!({"driver": "fmt", "node-name": "x", "backing": null,
            "file": {"driver": "file", "filename": "x"}})));
        world.root(hold("x", two, required));
        world.ok(reopen(json!({"driver": "fmt", "node-name": "x", "backing": "b"})));
        assert_eq!(homes(&mut world, &["x", "b"]), [3, 2]);
        world.assert_settled(&[]);
    }
}

/// What is below may not be able to store anything any more.
#[test]
fn a_filter_is_taken_out_without_being_asked_to_write_anything_back() {
    let mut world = files();
    world.ok(add(over("filter", "x", "a")));
    world.root(attach("x", READ_WRITE, ALL));
    world.exchanges.clear();
    world.ok(DropFilter {
        node_name: "x".to_owned(),
    });
    let told = std::mem::take(&mut world.exchanges);
    let asked = told.iter().any(|told| matches!(told, Exchanged::Left(_)));
    assert!(!asked, "{told:?}");
}
