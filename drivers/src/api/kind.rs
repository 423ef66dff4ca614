//! The description of a driver from which nodes of it are opened and images created.

use futures_util::future::LocalBoxFuture;
use millpond_messages::graph::Options;
use millpond_messages::{ChildSlot, Error, ErrorKind, ImagePlan, OpenFlags, Permissions, Result, Role};
use serde::de::DeserializeOwned;
use std::borrow::Cow;
use std::rc::Rc;

use super::child::Child;
use super::confused::{Confused, Size};
use super::driver::Driver;
use super::image::BackingLink;
use super::notice::Notices;
use millpond_ring::Ring;

/// A child that nodes of a driver may have. Its place in [`DriverKind::children`] is its [`ChildSlot`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChildKind {
    /// The option that names it: `file`, `backing`.
    pub name: &'static str,
    /// What the child is to the node.
    pub role: Role,
    /// Whether the node cannot be opened without it.
    pub required: bool,
    /// Whether a reopen may lead the edge to another node.
    pub leads_elsewhere: bool,
}

impl ChildKind {
    /// The child called `file`: the node in which a format stores its image, or that a filter filters.
    #[must_use]
    pub const fn file(role: Role) -> Self {
        Self {
            leads_elsewhere: true,
            ..Self::named("file", role)
        }
    }

    /// The backing node of a format's image, where it has one.
    pub const BACKING: Self = Self {
        name: "backing",
        role: Role::COW,
        required: false,
        leads_elsewhere: true,
    };

    /// The node that has the guest's data, where a format's file has the metadata alone.
    pub const DATA_FILE: Self = Self {
        required: false,
        ..Self::named("data-file", Role::DATA)
    };

    /// The node that a filter filters.
    pub const FILTERED: Self = Self::file(Role::FILTERED.union(Role::PRIMARY));

    /// A child that is required, and that a reopen cannot change.
    #[must_use]
    pub const fn named(name: &'static str, role: Role) -> Self {
        Self {
            name,
            role,
            required: true,
            leads_elsewhere: false,
        }
    }
}

/// An edge whose permissions are asked for, and how the node above it is used.
#[derive(Debug, Clone, Copy)]
pub struct EdgeUse<'a> {
    /// What the child is to the node.
    pub role: Role,
    /// The driver's own options.
    pub options: &'a Options,
    /// What all parents of the node take.
    pub taken: Permissions,
    /// What all of them share.
    pub shared: Permissions,
    /// There are such parents.
    pub is_used: bool,
    /// The node is open read-write and active.
    pub writable: bool,
    /// Another process owns the image.
    pub inactive: bool,
    /// The node shares everything below it.
    pub force_share: bool,
}

/// What is to be done to an open node's numbered children.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChildChange {
    /// The node gets one child more.
    Add,
    /// The node loses one of its children.
    Remove,
}

/// Which options a driver takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionNames {
    /// These options. Any other is refused before the driver is asked.
    These(&'static [&'static str]),
    /// Any options: the driver itself refuses those that it does not know, by [`parse_options`] for example.
    Checked,
}

impl OptionNames {
    /// Refuses options that are not among them.
    ///
    /// # Errors
    /// Names the first that is not.
    pub fn check(self, options: &Options) -> Result<()> {
        let Self::These(names) = self else { return Ok(()) };
        match options.keys().find(|name| !names.contains(&name.as_str())) {
            None => Ok(()),
            Some(name) => {
                let text = format!("Parameter '{name}' is unexpected");
                Err(Error::new(ErrorKind::InvalidArgument, text))
            }
        }
    }
}

/// One driver by name: how to open it, and what the graph has to know before that.
pub trait DriverKind: Send + Sync + 'static {
    /// The `driver` option's value.
    fn name(&self) -> &'static str;

    /// Its children. `backing`, where supported, is optional: the graph opens what the image names.
    fn children(&self) -> &'static [ChildKind];

    /// What each of its numbered children is, where it may have any number of them: the option `name` lists them, and
    /// they are called `name.0`, `name.1` and so on. Their slots follow those of [`DriverKind::children`].
    fn numbered(&self) -> Option<ChildKind> {
        None
    }

    /// The child in `slot`, declared or numbered, if the driver can have such a child.
    fn child(&self, slot: ChildSlot) -> Option<ChildKind> {
        self.children().get(slot.index()).copied().or(self.numbered())
    }

    /// What the child in `slot` is to a node with these options of its own: what [`DriverKind::child`] says, unless
    /// options make a difference.
    fn child_role(&self, slot: ChildSlot, _options: &Options) -> Role {
        self.child(slot).map_or(Role::empty(), |child| child.role)
    }

    /// What the edge in `slot` takes on its child and shares there, when the node is itself used with the cumulative
    /// permissions `taken` and `shared`. Only a driver whose edges differ from what their roles mean says otherwise.
    fn child_permissions(&self, edge: EdgeUse<'_>) -> (Permissions, Permissions) {
        millpond_messages::child_permissions(
            edge.role,
            edge.taken,
            edge.shared,
            edge.writable,
            edge.force_share,
        )
    }

    /// The options of its own that nodes may have. A driver that says nothing takes none.
    fn option_names(&self) -> OptionNames {
        OptionNames::These(&[])
    }

    /// The options of its own that images may be created with. A driver that says nothing takes those of its nodes.
    fn create_option_names(&self) -> OptionNames {
        self.option_names()
    }

    /// Looks at a node's options before any of its children is opened. `numbered` is how many numbered children they
    /// list.
    ///
    /// # Errors
    /// The options are wrong, whatever the children are.
    fn check_options(&self, options: &Options, numbered: usize) -> Result<()> {
        let _ = (options, numbered);
        Ok(())
    }

    /// Whether an open node with these options, which has so many numbered children, may get one more or lose one.
    ///
    /// # Errors
    /// It may not.
    fn check_change(&self, change: ChildChange, options: &Options, numbered: usize) -> Result<()> {
        let _ = (change, options, numbered);
        Ok(())
    }

    /// What stands before the colon in filenames that are for it, besides its name, where it is a protocol.
    fn filename_prefixes(&self) -> &'static [&'static str] {
        &[]
    }

    /// Its nodes are what other machines have, or other programs: an image that names such a node does not have it opened.
    fn reaches_out(&self) -> bool {
        false
    }

    /// A protocol stores bytes itself and has no `file` child.
    fn is_protocol(&self) -> bool;

    /// A filter passes its child's data on.
    fn is_filter(&self) -> bool {
        false
    }

    /// Whether a flush of a node reaches what is behind one of its declared children: all that it stores anything in for
    /// those who flush. What is read by copy-on-write alone has nothing of theirs.
    fn flushes_child(&self, child: &ChildKind) -> bool {
        !child.role.contains(Role::COW)
    }

    /// [`Driver::flush`](super::Driver::flush) is there for durability alone: a node that ignores flushes leaves it out.
    fn flushes_to_disk(&self) -> bool {
        self.is_protocol()
    }

    /// The node down to which the chain below a node with these options stays as it is, by its name.
    fn chain_bottom<'a>(&self, _options: &'a Options) -> Option<&'a str> {
        None
    }

    /// Its nodes have something to do before they are granted other permissions, or once they are: then
    /// [`Lifecycle::permissions_prepare`](super::Lifecycle::permissions_prepare) and what follows it are called. A driver that
    /// leaves those as they are says no, and spares whoever changes the graph a round trip.
    fn prepares_permissions(&self) -> bool {
        true
    }

    /// Nodes can be reopened with other options, or in another mode. [`Lifecycle::reopen_prepare`](super::Lifecycle::reopen_prepare)
    /// of those that cannot answers so as well.
    fn reopens(&self) -> bool {
        true
    }

    /// A node that stays open the way it is can have these new options readied while requests are in flight.
    fn readies_ahead(&self, _old: &Options, _new: &Options) -> bool {
        true
    }

    /// What an image that is yet to be made with these options needs, `size` included.
    ///
    /// # Errors
    /// The options are wrong, or the format cannot tell.
    fn measure(&self, _options: Options) -> Result<ImagePlan> {
        let text = format!("Block driver '{}' does not support size measurement", self.name());
        Err(Error::new(ErrorKind::Unsupported, text))
    }

    /// Options of an open image can be changed in place: [`Image::amend`](super::Image::amend) is implemented.
    fn amends(&self) -> bool {
        false
    }

    /// Images can have snapshots inside: [`Image::change_snapshots`](super::Image::change_snapshots) is implemented.
    fn has_snapshots(&self) -> bool {
        false
    }

    /// Its images can store dirty bitmaps: [`Image::bitmaps`](super::Image::bitmaps) is implemented.
    fn stores_bitmaps(&self) -> bool {
        false
    }

    /// An image that is opened with these options keeps a log of its dirty bitmaps: it is to store them whenever they change
    /// otherwise than by writes ([`StoresBitmaps::store_and_log`](super::StoresBitmaps::store_and_log)).
    fn logs_bitmaps(&self, _options: &Options) -> bool {
        false
    }

    /// What whoever amends an image takes on its node.
    fn amend_permissions(&self) -> Permissions {
        Permissions::CONSISTENT_READ | Permissions::WRITE | Permissions::RESIZE
    }

    /// Links to nodes of this driver cannot be frozen: such a node comes and goes with a job.
    fn never_freeze(&self) -> bool {
        false
    }

    /// A filename can stand for a node of it, with the driver's name as its prefix where that is not left out.
    fn has_filenames(&self) -> bool {
        self.is_protocol()
    }

    /// The options that a filename stands for, as command lines and image headers give it: with the protocol's prefix, if it
    /// has one.
    ///
    /// # Errors
    /// The rest of the name is not what the protocol expects there.
    fn parse_filename(&self, filename: &str) -> Result<Options> {
        let mut options = Options::new();
        options.insert("filename".to_owned(), filename.into());
        Ok(options)
    }

    /// The filename that opens a node with these options of its own, over declared children that open by `children`, if one
    /// does. What has no children says it of the open node: [`Image::filename`](super::Image::filename).
    fn filename_over(&self, options: &Options, children: &[&str]) -> Option<String> {
        let _ = (options, children);
        None
    }

    /// A node of it is called what its primary child is called, though that name opens the child alone.
    fn borrows_filename(&self) -> bool {
        false
    }

    /// How sure it is, from 0 to 100, that an image that starts with `head` is of this format.
    fn probe(&self, _head: &[u8]) -> u8 {
        0
    }

    /// Opens a node. Runs on the node's iothread. What a protocol writes meanwhile it makes durable itself: the node is not
    /// flushed before it is written to.
    fn open(&self, request: OpenRequest) -> LocalBoxFuture<'static, Result<Opened>>;

    /// Images can be made: [`DriverKind::create`] is implemented.
    fn creates(&self) -> bool {
        false
    }

    /// Images can be made with their header in a node of its own, `header`, and then without a file.
    fn creates_detached(&self) -> bool {
        false
    }

    /// Makes an image. Runs on the iothread of `file`, of `header` where there is no file, or the main one.
    fn create(&self, request: CreateRequest) -> LocalBoxFuture<'static, Result<()>> {
        drop(request);
        let error = Error::new(
            ErrorKind::Unsupported,
            format!("Driver '{}' does not support blockdev-create", self.name()),
        );
        Box::pin(async move { Err(error) })
    }
}

/// What a driver is opened with.
pub struct OpenRequest {
    /// The name of the node that is opened.
    pub node_name: String,
    /// The driver's own options: neither those common to all nodes, nor the children.
    pub options: Options,
    /// Read-only or not, cache mode, discard, inactive, check.
    pub flags: OpenFlags,
    /// One handle for each of [`DriverKind::children`], connected or not, then one for each numbered child. `backing` is
    /// connected after the open.
    pub children: Vec<Child>,
    /// The ring of the iothread where it will live.
    pub ring: Ring,
    /// Where the driver tells what users of the node should know.
    pub notices: Notices,
}

/// What an open gives.
pub struct Opened {
    /// The driver of the open node.
    pub driver: Rc<dyn Driver>,
    /// The flags in force: an open with AUTO_RDONLY may have lost RDWR.
    pub flags: OpenFlags,
    /// The backing file that the image names.
    pub backing: Option<BackingLink>,
}

/// What an image is made with.
pub struct CreateRequest {
    /// QAPI's `BlockdevCreateOptions`, the driver's part, without `driver` and without references to nodes.
    pub options: Options,
    /// The node to format, where the driver is a format.
    pub file: Option<Child>,
    /// The node that the header is to be in, where the driver can have it elsewhere and that is asked for.
    pub header: Option<Child>,
    /// The node that the guest's data is to be in, where that is asked for: [`ChildKind::DATA_FILE`].
    pub data_file: Option<Child>,
    /// The ring of the iothread where it is made.
    pub ring: Ring,
}

/// What a node of this driver calls the child in `slot`, if it can have such a child.
#[must_use]
pub fn slot_name(kind: &dyn DriverKind, slot: ChildSlot) -> Option<Cow<'static, str>> {
    let declared = kind.children();
    if let Some(child) = declared.get(slot.index()) {
        return Some(Cow::Borrowed(child.name));
    }
    let number = slot.index().checked_sub(declared.len())?;
    kind.numbered()
        .map(|child| Cow::Owned(format!("{}.{number}", child.name)))
}

/// The slot of the child of this name, if the driver can have such a child.
#[must_use]
pub fn slot_named(kind: &dyn DriverKind, name: &str) -> Option<ChildSlot> {
    let declared = kind.children();
    if let Some(index) = declared.iter().position(|child| child.name == name) {
        return ChildSlot::at(index);
    }
    let number = name.strip_prefix(kind.numbered()?.name)?.strip_prefix('.')?;
    let index = declared.len().checked_add(number.parse().ok()?)?;
    // `+1` and `01` are numbers, but no child is called that.
    ChildSlot::at(index).filter(|slot| slot_name(kind, *slot).as_deref() == Some(name))
}

/// Reads a driver's options into its own struct, which has `#[serde(deny_unknown_fields)]`.
///
/// # Errors
/// Names the option that is unknown, missing or of the wrong type.
pub fn parse_options<T: DeserializeOwned>(options: Options) -> Result<T> {
    T::deserialize(Confused(serde_json::Value::Object(options)))
        .map_err(|error| invalid_options(&error.to_string()))
}

/// A size among a driver's options.
///
/// # Errors
/// It is no number of bytes.
pub fn parse_size(name: &str, value: Option<&Size>) -> Result<Option<u64>> {
    let Some(value) = value else { return Ok(None) };
    let size = value.as_u64().ok_or_else(|| {
        let value: &serde_json::Number = value;
        let text = format!("Value '{value}' is out of range for parameter '{name}'");
        Error::new(ErrorKind::InvalidArgument, text)
    })?;
    Ok(Some(size))
}

/// The error for options that do not fit, in the words that QMP's users know where serde's can be told apart.
#[must_use]
pub fn invalid_options(problem: &str) -> Error {
    let named = |prefix: &str| {
        problem
            .strip_prefix(prefix)
            .and_then(|rest| rest.split('`').nth(1))
            .map(ToOwned::to_owned)
    };
    let text = if let Some(name) = named("unknown field ") {
        format!("Parameter '{name}' is unexpected")
    } else if let Some(name) = named("missing field ") {
        format!("Parameter '{name}' is missing")
    } else {
        format!("Invalid options: {problem}")
    };
    Error::new(ErrorKind::InvalidArgument, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[expect(dead_code, reason = "only whether it parses matters")]
        size: u64,
    }

    fn text(json: serde_json::Value) -> String {
        let serde_json::Value::Object(options) = json else {
            panic!("not an object")
        };
        parse_options::<Sample>(options).unwrap_err().to_string()
    }

    #[test]
    fn bad_options_are_named() {
        assert_eq!(
            text(serde_json::json!({"size": 1, "colour": 2})),
            "Parameter 'colour' is unexpected"
        );
        assert_eq!(text(serde_json::json!({})), "Parameter 'size' is missing");
        assert!(text(serde_json::json!({"size": "x"})).contains("invalid type"));
    }
}
