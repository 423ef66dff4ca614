//! What is explored. `MILLPOND_MODEL=large` explores each with more requests.

use millpond_messages::graph::{
    DetachRoot, DrainScope, DropFilter, InsertNode, MakeImage, Reopen, ReplaceNode, Resize, SetIothread,
};
use serde_json::json;

use super::super::{ALL, READ_WRITE, add, add_child, attach, del, del_child, options, reopen, snapshot};
use super::explore;
use super::live::{Do, Live, Scenario};
use super::print::print;

fn node(name: &str) -> Do {
    Do::Drain(DrainScope::Node(name.to_owned()))
}

fn subtree(name: &str) -> Do {
    Do::Drain(DrainScope::Subtree(name.to_owned()))
}

fn all() -> Do {
    Do::Drain(DrainScope::All)
}

fn more() -> u8 {
    u8::from(std::env::var("MILLPOND_MODEL").is_ok_and(|size| size == "large"))
}

fn scenario(name: &'static str, setup: fn(&mut Live)) -> Scenario {
    Scenario {
        name,
        setup,
        users: Vec::new(),
        requests: Vec::new(),
        background: Vec::new(),
        failures: 0,
        may_refuse: false,
    }
}

/// `top` over `mid` over `base`.
fn chain(live: &mut Live) {
    for (name, backing) in [
        ("base", json!(null)),
        ("mid", json!("base")),
        ("top", json!("mid")),
    ] {
        live.ok(add(
            json!({"driver": "over", "node-name": name, "backing": backing}),
        ));
    }
    live.root(attach("top", READ_WRITE, ALL));
}

/// `top` over `base`.
fn pair(live: &mut Live) {
    live.ok(add(
        json!({"driver": "over", "node-name": "base", "backing": null}),
    ));
    live.ok(add(
        json!({"driver": "over", "node-name": "top", "backing": "base"}),
    ));
    live.root(attach("top", READ_WRITE, ALL));
}

/// The chain, each node in an iothread of its own.
fn spread_chain(live: &mut Live) {
    live.iothreads();
    for (name, iothread) in [("base", None), ("mid", Some("io0")), ("top", Some("io1"))] {
        live.ok(add(json!({"driver": "over", "node-name": name, "backing": null})));
        live.ok(set_iothread(name, iothread));
    }
    live.ok(reopen(
        json!({"driver": "over", "node-name": "mid", "backing": "base"}),
    ));
    live.ok(reopen(
        json!({"driver": "over", "node-name": "top", "backing": "mid"}),
    ));
    live.root(attach("top", READ_WRITE, ALL));
}

fn diamond(live: &mut Live) {
    live.ok(add(
        json!({"driver": "file", "node-name": "base", "filename": "b"}),
    ));
    for side in ["left", "right"] {
        live.ok(add(
            json!({"driver": "filter", "node-name": side, "file": "base"}),
        ));
    }
    live.ok(add(
        json!({"driver": "two", "node-name": "top", "file": "left", "other": "right"}),
    ));
    live.root(attach("top", READ_WRITE, ALL));
}

/// `a` and `b` over `base`.
fn shared(live: &mut Live) {
    live.ok(add(
        json!({"driver": "over", "node-name": "base", "backing": null}),
    ));
    for name in ["a", "b"] {
        live.ok(add(
            json!({"driver": "over", "node-name": name, "backing": "base"}),
        ));
        live.root(attach(name, READ_WRITE, ALL));
    }
}

fn two_roots(live: &mut Live) {
    live.ok(add(
        json!({"driver": "over", "node-name": "base", "backing": null}),
    ));
    live.root(attach("base", READ_WRITE, ALL));
    live.root(attach("base", READ_WRITE, ALL));
}

fn set_iothread(name: &str, iothread: Option<&str>) -> SetIothread {
    SetIothread {
        node_name: name.to_owned(),
        iothread: iothread.map(str::to_owned),
        force: true,
    }
}

#[test]
fn a_chain_of_three() {
    explore(Scenario {
        users: vec![vec![node("base"), Do::End]],
        requests: vec![3 + more()],
        ..scenario("a chain of three", chain)
    });
}

#[test]
fn a_chain_over_three_iothreads() {
    explore(Scenario {
        users: vec![vec![node("base"), Do::End]],
        requests: vec![2 + more()],
        ..scenario("a chain over three iothreads", spread_chain)
    });
}

#[test]
fn drivers_that_work_of_themselves() {
    explore(Scenario {
        users: vec![vec![node("base"), Do::End], vec![node("top"), Do::End]],
        requests: vec![1],
        background: vec![("top", 1 + more())],
        ..scenario("background work", pair)
    });
}

#[test]
fn a_diamond() {
    explore(Scenario {
        users: vec![vec![node("base"), Do::End]],
        requests: vec![2 + more()],
        ..scenario("a diamond", diamond)
    });
}

#[test]
fn a_shared_child_with_two_parents() {
    explore(Scenario {
        users: vec![vec![node("base"), Do::End]],
        requests: vec![2 + more(), 1],
        ..scenario("a shared child", shared)
    });
}

#[test]
fn two_roots_on_one_node() {
    explore(Scenario {
        users: vec![vec![node("base"), Do::End]],
        requests: vec![2, 2 + more()],
        ..scenario("two roots on one node", two_roots)
    });
}

#[test]
fn two_drainers_with_overlapping_scopes() {
    explore(Scenario {
        users: vec![vec![node("base"), Do::End], vec![subtree("mid"), Do::End]],
        requests: vec![2 + more()],
        ..scenario("two drainers", chain)
    });
}

#[test]
fn sections_within_sections() {
    explore(Scenario {
        users: vec![vec![all(), node("base"), Do::End, Do::End]],
        requests: vec![3 + more()],
        ..scenario("nested", pair)
    });
}

#[test]
fn a_section_after_a_section() {
    explore(Scenario {
        // The first may end before its driver has stopped.
        users: vec![vec![node("base"), Do::Die, node("base"), Do::End]],
        requests: vec![2 + more()],
        background: vec![("base", 2)],
        ..scenario("one after the other", |live| {
            live.ok(add(
                json!({"driver": "over", "node-name": "base", "backing": null}),
            ));
            live.root(attach("base", READ_WRITE, ALL));
        })
    });
}

#[test]
fn a_node_is_added_and_one_removed_while_everything_is_drained() {
    explore(Scenario {
        users: vec![
            vec![all(), Do::End],
            vec![
                Do::Change(|_| add(json!({"driver": "over", "node-name": "new", "backing": "base"})).into()),
                Do::Change(|_| del("new").into()),
            ],
        ],
        requests: vec![1],
        ..scenario("add and remove inside drain-all", pair)
    });
}

#[test]
fn a_node_is_added_and_used_while_everything_is_drained() {
    explore(Scenario {
        users: vec![
            vec![all(), Do::End],
            vec![
                Do::Change(|_| add(json!({"driver": "over", "node-name": "new", "backing": null})).into()),
                Do::Change(|_| attach("new", READ_WRITE, ALL).into()),
            ],
        ],
        requests: vec![1, 1 + more()],
        ..scenario("add and use inside drain-all", pair)
    });
}

#[test]
fn a_filter_is_put_in_and_taken_out_during_a_section() {
    explore(Scenario {
        users: vec![
            vec![node("base"), Do::End],
            vec![
                Do::Change(|_| {
                    let node = "base".to_owned();
                    let options = options(json!({"driver": "filter", "node-name": "f", "file": "base"}));
                    InsertNode { node, options }.into()
                }),
                Do::Change(|_| {
                    let node_name = "f".to_owned();
                    DropFilter { node_name }.into()
                }),
            ],
        ],
        requests: vec![1],
        failures: more(),
        ..scenario("filter in and out", |live| {
            live.ok(add(
                json!({"driver": "over", "node-name": "base", "backing": null}),
            ));
            live.root(attach("base", READ_WRITE, ALL));
        })
    });
}

#[test]
fn a_node_takes_the_place_of_another_that_a_section_holds() {
    explore(Scenario {
        users: vec![
            vec![node("base"), Do::End],
            vec![Do::Change(|_| {
                let (from, to) = ("base".to_owned(), "other".to_owned());
                ReplaceNode { from, to }.into()
            })],
        ],
        requests: vec![1 + more()],
        failures: 1,
        ..scenario("replace", |live| {
            live.ok(add(
                json!({"driver": "over", "node-name": "other", "backing": null}),
            ));
            pair(live);
        })
    });
}

#[test]
fn a_child_comes_and_goes_during_a_section() {
    explore(Scenario {
        users: vec![
            vec![node("two"), Do::End],
            vec![
                Do::Change(|_| add_child("many", "two").into()),
                Do::Change(|_| del_child("many", "children.0").into()),
            ],
        ],
        requests: vec![1],
        failures: 1,
        ..scenario("add-child and del-child", |live| {
            live.ok(add(
                json!({"driver": "file", "node-name": "one", "filename": "1"}),
            ));
            live.ok(add(
                json!({"driver": "file", "node-name": "two", "filename": "2"}),
            ));
            live.ok(add(
                json!({"driver": "many", "node-name": "many", "children": ["one"]}),
            ));
            live.root(attach("many", READ_WRITE, ALL));
        })
    });
}

#[test]
fn an_edge_is_taken_away_and_put_back_while_a_section_is_in_force() {
    explore(Scenario {
        users: vec![
            vec![node("base"), Do::End],
            vec![
                Do::Change(|_| reopen(json!({"driver": "over", "node-name": "top", "backing": null})).into()),
                Do::Change(|_| {
                    reopen(json!({"driver": "over", "node-name": "top", "backing": "base"})).into()
                }),
            ],
        ],
        requests: vec![1],
        ..scenario("reopen", pair)
    });
}

#[test]
fn a_snapshot_while_a_section_is_in_force() {
    explore(Scenario {
        users: vec![
            vec![node("base"), Do::End],
            vec![Do::Change(|_| snapshot("base", "over").into())],
        ],
        requests: vec![1],
        ..scenario("snapshot", |live| {
            live.ok(add(
                json!({"driver": "over", "node-name": "base", "backing": null}),
            ));
            live.ok(add(
                json!({"driver": "over", "node-name": "over", "backing": null}),
            ));
            live.root(attach("base", READ_WRITE, ALL));
        })
    });
}

#[test]
fn a_user_dies_while_it_waits_or_holds() {
    explore(Scenario {
        users: vec![vec![node("base"), Do::Die], vec![node("mid"), Do::End]],
        requests: vec![1 + more()],
        ..scenario("a user dies", chain)
    });
}

#[test]
fn nodes_move_to_another_iothread_during_a_section() {
    explore(Scenario {
        users: vec![
            vec![node("base"), Do::End],
            vec![Do::Change(|_| set_iothread("top", Some("io0")).into())],
        ],
        requests: vec![2 + more()],
        ..scenario("iothread move", |live| {
            live.iothreads();
            pair(live);
        })
    });
}

#[test]
fn a_node_is_deleted_during_a_section() {
    explore(Scenario {
        users: vec![
            vec![node("base"), Do::End],
            vec![
                Do::Change(|roots| DetachRoot(roots[0]).into()),
                Do::Change(|_| del("top").into()),
            ],
        ],
        requests: vec![1 + more()],
        may_refuse: true,
        ..scenario("detach and delete", pair)
    });
}

#[test]
fn a_snapshot_fails_at_a_step() {
    explore(Scenario {
        users: vec![
            vec![Do::Change(|_| snapshot("base", "over").into())],
            vec![node("over"), Do::End],
        ],
        requests: vec![1],
        failures: 1,
        ..scenario("a snapshot that fails", |live| {
            live.ok(add(
                json!({"driver": "over", "node-name": "base", "backing": null}),
            ));
            live.ok(add(
                json!({"driver": "over", "node-name": "over", "backing": null}),
            ));
            live.root(attach("base", READ_WRITE, ALL));
        })
    });
}

#[test]
fn a_reopen_fails_at_a_step() {
    explore(Scenario {
        users: vec![
            vec![Do::Change(|_| {
                let top = json!({"driver": "over", "node-name": "top", "backing": null});
                let base = json!({"driver": "over", "node-name": "base", "backing": null, "read-only": true});
                Reopen([top, base].map(options).to_vec()).into()
            })],
            vec![node("base"), Do::End],
        ],
        requests: vec![1],
        failures: 1,
        ..scenario("a reopen that fails", pair)
    });
}

#[test]
fn a_reopen_fails_at_a_step_while_everything_is_drained() {
    explore(Scenario {
        users: vec![
            vec![Do::Change(|_| {
                reopen(json!({"driver": "over", "node-name": "top", "backing": null})).into()
            })],
            vec![all(), Do::End],
        ],
        requests: vec![1],
        failures: 1,
        ..scenario("a reopen that fails inside drain-all", pair)
    });
}

#[test]
fn an_add_and_an_attach_fail_at_a_step() {
    explore(Scenario {
        users: vec![
            vec![
                Do::Change(|_| add(json!({"driver": "over", "node-name": "new", "backing": "base"})).into()),
                Do::Change(|_| attach("base", READ_WRITE, ALL).into()),
            ],
            vec![all(), Do::End],
        ],
        requests: vec![1],
        failures: 1,
        ..scenario("an add that fails", |live| {
            live.ok(add(
                json!({"driver": "over", "node-name": "base", "backing": null}),
            ));
            live.root(attach("base", READ_WRITE, ALL));
        })
    });
}

#[test]
fn an_image_is_made_beside_a_section() {
    explore(Scenario {
        users: vec![
            vec![Do::Change(|_| {
                MakeImage(options(json!({"driver": "filter", "file": "base"}))).into()
            })],
            vec![node("base"), Do::End],
        ],
        requests: vec![1],
        ..scenario("create", |live| {
            live.ok(add(
                json!({"driver": "over", "node-name": "base", "backing": null}),
            ));
            live.root(attach("base", READ_WRITE, ALL));
        })
    });
}

#[test]
fn a_resize_beside_a_section() {
    explore(Scenario {
        users: vec![
            vec![Do::Change(|_| {
                let (node_name, size) = ("base".to_owned(), 4096);
                Resize { node_name, size }.into()
            })],
            vec![node("base"), Do::End],
        ],
        requests: vec![2],
        failures: 1,
        ..scenario("resize", |live| {
            live.ok(add(
                json!({"driver": "over", "node-name": "base", "backing": null}),
            ));
            live.root(attach("base", READ_WRITE, ALL));
        })
    });
}

/// The search relies on it: the same steps lead to the same state.
#[test]
fn a_replayed_trace_leads_to_the_same_state() {
    let scenario = Scenario {
        users: vec![
            vec![all(), Do::End],
            vec![
                Do::Change(|_| set_iothread("top", Some("io0")).into()),
                Do::Change(|_| {
                    add(json!({"driver": "two", "node-name": "new", "file": "left", "other": "right"})).into()
                }),
                Do::Change(|_| set_iothread("top", Some("io1")).into()),
            ],
        ],
        requests: vec![2],
        ..scenario("replays", |live| {
            live.iothreads();
            diamond(live);
        })
    };
    for seed in 0..10 {
        let mut live = Live::new(&scenario);
        let mut again = Live::new(&scenario);
        for step in 0.. {
            let actions = live.actions();
            assert_eq!(actions, again.actions(), "seed {seed}, step {step}");
            assert_eq!(print(&live), print(&again), "seed {seed}, step {step}");
            let Some(action) = actions.get((seed * 7 + step * 31) % actions.len().max(1)) else {
                break;
            };
            live.apply(*action);
            again.apply(*action);
        }
        assert_eq!(live.site.breaches, 0);
    }
}
