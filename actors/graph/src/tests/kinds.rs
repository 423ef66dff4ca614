//! Drivers that only have a shape.

use std::sync::Arc;

use futures_util::future::LocalBoxFuture;
use millpond_drivers::api::{
    ChildChange, ChildKind, DriverKind, EdgeUse, OpenRequest, Opened, OptionNames, Registry,
};
use millpond_messages::graph::Options;
use millpond_messages::{Error, ErrorKind, Permissions, Result, Role};

const FILE: ChildKind = ChildKind::file(Role::IMAGE);
const BACKING: ChildKind = ChildKind::BACKING;
const FILTERED: Role = Role::FILTERED.union(Role::PRIMARY);

/// A driver that only has a shape.
struct Kind {
    name: &'static str,
    children: &'static [ChildKind],
    is_filter: bool,
    /// Its children are counted, and one must be left.
    numbered: bool,
}

impl DriverKind for Kind {
    fn name(&self) -> &'static str {
        self.name
    }

    fn option_names(&self) -> OptionNames {
        OptionNames::Checked
    }

    fn children(&self) -> &'static [ChildKind] {
        self.children
    }

    fn numbered(&self) -> Option<ChildKind> {
        self.numbered.then_some(ChildKind {
            leads_elsewhere: true,
            ..ChildKind::named("children", Role::DATA)
        })
    }

    /// The kind with two children passes on to both what is asked of it.
    fn child_permissions(&self, edge: EdgeUse<'_>) -> (Permissions, Permissions) {
        let role = if self.name == "two" { FILTERED } else { edge.role };
        millpond_messages::child_permissions(role, edge.taken, edge.shared, edge.writable, edge.force_share)
    }

    fn check_change(&self, change: ChildChange, _: &Options, numbered: usize) -> Result<()> {
        if change == ChildChange::Remove && numbered == 1 {
            return Err(Error::new(ErrorKind::InvalidArgument, "The last child stays"));
        }
        Ok(())
    }

    fn is_protocol(&self) -> bool {
        self.children.is_empty() && !self.numbered
    }

    fn is_filter(&self) -> bool {
        self.is_filter
    }

    fn amends(&self) -> bool {
        self.name == "fmt"
    }

    fn has_snapshots(&self) -> bool {
        self.name == "fmt"
    }

    fn never_freeze(&self) -> bool {
        self.name == "fleeting"
    }

    fn probe(&self, head: &[u8]) -> u8 {
        if head == self.name.as_bytes() { 100 } else { 0 }
    }

    fn open(&self, _: OpenRequest) -> LocalBoxFuture<'static, Result<Opened>> {
        unreachable!("fake nodes are not opened")
    }
}

pub fn registry() -> Registry {
    let mut registry = Registry::empty();
    let kinds: [(&'static str, &'static [ChildKind], bool); 10] = [
        ("file", &[], false),
        ("many", &[], false),
        ("over", &[BACKING], false),
        ("fmt", &[FILE, BACKING], false),
        ("qcow2", &[FILE, BACKING], false),
        (
            "raw",
            &[ChildKind {
                role: FILTERED,
                ..FILE
            }],
            false,
        ),
        (
            "filter",
            &[ChildKind {
                role: FILTERED,
                ..FILE
            }],
            true,
        ),
        (
            "greedy",
            &[ChildKind {
                required: false,
                ..FILE
            }],
            true,
        ),
        (
            "fleeting",
            &[ChildKind {
                role: FILTERED,
                ..FILE
            }],
            true,
        ),
        (
            "two",
            &[
                ChildKind {
                    role: FILTERED,
                    ..FILE
                },
                ChildKind {
                    name: "other",
                    role: Role::DATA,
                    required: false,
                    leads_elsewhere: true,
                },
            ],
            true,
        ),
    ];
    for (name, children, is_filter) in kinds {
        registry
            .register(Arc::new(Kind {
                name,
                children,
                is_filter,
                numbered: name == "many",
            }))
            .unwrap();
    }
    registry
}
