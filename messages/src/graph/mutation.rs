//! What waits for its turn.

use super::{
    Action, BitmapEdit, BitmapHold, ChildOf, CompletionMode, HeldBitmap, IothreadOptions, JobAction, JobEdit,
    OpenImage, Options, RootRequest, RootUser, Transacted,
};
use crate::common::{
    CheckResult, InternalSnapshot, LatencyHistograms, OpBlocker, Permissions, Repair, RequestFlags, RootId,
    SnapshotChange, Token,
};
use crate::io::Preallocation;

requests! {
    /// A change of the graph, or what else waits for its turn: one runs at a time, in the order in which they came.
    Mutation {
        /// Open an image by name, options or both; answered by the node's name. The node stays until it is deleted.
        ///
        /// # Errors
        /// Whatever an open met; nothing is left behind.
        Open(Box<OpenImage>) -> String: Text,
        /// Open an image and take hold of it, with the permissions that its flags stand for
        /// ([`OpenFlags::root_permissions`](crate::OpenFlags::root_permissions)). The node goes when its holder lets go.
        ///
        /// # Errors
        /// Whatever an open met, or others do not share those permissions; nothing is left behind.
        OpenHeld {
            /// What the image is opened by.
            image: Box<OpenImage>,
            /// Who takes hold of the node.
            holder: RootUser,
        } -> C: Root,
        /// Open a node, with what it needs below it.
        ///
        /// # Errors
        /// Whatever an open met; nothing is left behind.
        AddNode(Options),
        /// Close a node that its user added.
        ///
        /// # Errors
        /// There is none, or it is in use.
        DeleteNode {
            /// The name of the node to close.
            node_name: String,
        },
        /// Change options and children of nodes, all or none.
        ///
        /// # Errors
        /// One of them cannot be; nothing has changed.
        Reopen(Vec<Options>),
        /// Change some options of nodes, all or none; what is not named stays as it is.
        ///
        /// # Errors
        /// One of them cannot be; nothing has changed.
        ReopenKeeping(Vec<Options>),
        /// Make a node, and what takes its options from it, read-only or writable.
        ///
        /// # Errors
        /// Somebody writes to it, or it was opened to stay read-only.
        SetReadOnly {
            /// The name of the node.
            node_name: String,
            /// Whether it becomes read-only, or writable.
            read_only: bool,
        },
        /// Activate or inactivate nodes: an inactive one is not written to, and holds no lock, while another process may use
        /// its image.
        ///
        /// # Errors
        /// Somebody writes to it, an active node stands on it, or another process holds a lock.
        SetActive {
            /// One node, with those below it; all of them if there is no name.
            node_name: Option<String>,
            /// Whether it becomes active, or inactive.
            active: bool,
        },
        /// Drop what a node caches of its image's metadata, and read it again.
        ///
        /// # Errors
        /// There is no such node, or its image cannot be read.
        InvalidateCache {
            /// The name of the node.
            node_name: String,
        },
        /// As [`AttachRoot`], by a user that lets go of its permissions while the node is inactive: it can then
        /// read.
        ///
        /// # Errors
        /// There is none, or others do not share what is asked for.
        AttachRootInactive(RootRequest) -> C: Root,
        /// Put the open node `overlay` on top of `node`, under all of `node`'s parents.
        ///
        /// # Errors
        /// One of them cannot be part of that; nothing has changed.
        Snapshot {
            /// The node to protect.
            node: String,
            /// The node to go on top: a format that supports backing files and has none.
            overlay: String,
        },
        /// Carry out several changes, all or none, in one drained section. A later one is looked at on the graph as the earlier
        /// ones have left it.
        Transact {
            /// The changes, in the order in which they are prepared.
            actions: Vec<Action>,
            /// How the jobs that they start end.
            completion: CompletionMode,
        },
        /// As [`Transact`], of actions that start jobs. What has failed is part of the answer, with what had been done by then.
        TransactForJobs(Vec<JobAction>) -> Box<Transacted>: Transacted,
        /// Make `node` the last of the numbered children of `parent`.
        ///
        /// # Errors
        /// The parent takes no more children, or not this one; nothing has changed.
        AddChild {
            /// The name of the parent.
            parent: String,
            /// The name of the node to add. It has no parent yet.
            node: String,
        },
        /// Take a numbered child away from `parent`.
        ///
        /// # Errors
        /// The parent has no such child, or needs it; nothing has changed.
        DelChild {
            /// The name of the parent.
            parent: String,
            /// The parent's name for the child: `children.1`.
            child: String,
        },
        /// Make an image: what the `blockdev-create` job runs.
        ///
        /// # Errors
        /// The driver's, or the node to format is in use.
        MakeImage(Options),
        /// Change format options of an open image in place, as `qemu-img amend` does.
        ///
        /// # Errors
        /// The format cannot, an option is not for it, somebody relies on what would change, or the driver's.
        Amend {
            /// The name of the node with the image.
            node_name: String,
            /// `qemu-img amend`'s options, by its names: `compat`, `lazy_refcounts`, `size`; `state`, `keyslot`.
            options: Options,
            /// Even what may lose data.
            force: bool,
        },
        /// Make, delete, apply or show a snapshot inside a node's image; answered by which it was. The node is drained meanwhile.
        ///
        /// # Errors
        /// There is no such node or snapshot, the node's format has none or forbids it, or the driver's; nothing has changed.
        ChangeSnapshots {
            /// The name of the node. A filter stands for what it filters.
            device: String,
            /// What is done.
            change: SnapshotChange,
            /// One that is made may have any name: none, or one that others have.
            any_name: bool,
        } -> InternalSnapshot: Snapshot,
        /// Change a node's length.
        ///
        /// # Errors
        /// Somebody relies on it, or the driver's.
        Resize {
            /// The name of the node with the image.
            node_name: String,
            /// The new length in bytes.
            size: u64,
        },
        /// Change a node's length, and say how. [`Resize`] is this with all but the length left out.
        ///
        /// # Errors
        /// Somebody relies on the length, a flag means nothing here, or the driver's.
        Truncate {
            /// The name of the node with the file.
            node_name: String,
            /// The new length in bytes.
            size: u64,
            /// Fail rather than end up longer.
            exact: bool,
            /// How the new space is laid out.
            preallocation: Preallocation,
            /// ZERO_WRITE: the new part must read as zeroes. No other flag has a meaning here, and others are refused.
            flags: RequestFlags,
        },
        /// Check an image's metadata, and mend it if asked. Requests to the node wait until that is done.
        ///
        /// # Errors
        /// There is no such node, its format has nothing to check, somebody forbids what a repair needs, or the driver's.
        CheckImage {
            /// The name of the node.
            node_name: String,
            /// Which faults to repair.
            repair: Repair,
        } -> CheckResult: Checked,
        /// Delete the file that an open node keeps its data in. The node can be used until it is closed.
        ///
        /// # Errors
        /// There is no such node, its driver has no file that it could delete ([`Unsupported`](crate::ErrorKind::Unsupported)), or the host's.
        DeleteFile {
            /// The name of the node.
            node_name: String,
        },
        /// Let a root edge's requests be serialised against all others of its node: from now on the node notes all that it has
        /// in flight. A root edge asks for it by itself when it is sent the first such request.
        Serialise(RootId),
        /// Move a node, and all that is joined to it, to an iothread; `None` is the main one.
        ///
        /// # Errors
        /// There is no such node or iothread, or a user holds it where it is.
        SetIothread {
            /// The name of the node.
            node_name: String,
            /// The iothread's id as its user named it.
            iothread: Option<String>,
            /// Also if an export or another user holds on to it.
            force: bool,
        },
        /// Move one node to an iothread, without those that it is joined to: what passes over its edges goes from one
        /// iothread to another from then on. `None` is the main one.
        ///
        /// # Errors
        /// There is no such node or iothread, or a user holds it where it is.
        MoveNode {
            /// The name of the node.
            node_name: String,
            /// The iothread's id as its user named it.
            iothread: Option<String>,
        },
        /// Take hold of a node.
        ///
        /// # Errors
        /// There is none, or others do not share what is asked for.
        AttachRoot(RootRequest) -> C: Root,
        /// Change what a user of a node takes and shares.
        ///
        /// # Errors
        /// Others do not share that.
        SetRootPermissions {
            /// The number of the root edge.
            root: RootId,
            /// What it will do from now on.
            permissions: Permissions,
            /// What others may do meanwhile.
            shared: Permissions,
        },
        /// Let go of a node.
        ///
        /// # Errors
        /// There is no such hold.
        DetachRoot(RootId),
        /// Put a node in the place of another, and the other behind it: as what a filter filters, or as its backing node.
        ///
        /// # Errors
        /// `new` has such a child already or takes none, it would close a circle, a parent relies on its edge, or
        /// permissions; nothing has changed.
        Append {
            /// The node whose parents move.
            node: String,
            /// The node that gets them. It has no such child yet.
            new: String,
        },
        /// Put a node in the place of another, under all the other's parents that cannot be reached from it.
        ///
        /// # Errors
        /// There are no such nodes, a parent relies on its edge, or permissions; nothing has changed.
        ReplaceNode {
            /// The node that loses its parents. It is closed if nobody holds it any more.
            from: String,
            /// The node that gets them.
            to: String,
        },
        /// Let one edge lead to another node.
        ///
        /// # Errors
        /// There is no such edge or node, it would close a circle, or permissions; nothing has changed.
        ReplaceChild {
            /// Whose child is exchanged.
            of: ChildOf,
            /// Where it leads from now on.
            node: String,
        },
        /// Open a node and put it in the place of one of its children, whole or not at all.
        ///
        /// # Errors
        /// The open's, a parent relies on its edge, or permissions; nothing is left behind.
        InsertNode {
            /// The node whose parents move.
            node: String,
            /// The new node's options. One of them names `node` as its child.
            options: Options,
        },
        /// Take a filter out: what it filters takes its place, and the filter is closed.
        ///
        /// # Errors
        /// There is no such filter, a link is frozen, or permissions; nothing has changed.
        DropFilter {
            /// The name of the filter.
            node_name: String,
        },
        /// Put a node behind another as its backing node, or leave it without. The image's header stays as it is.
        ///
        /// # Errors
        /// The driver has no backing nodes, the link is frozen, it would close a circle, or permissions; nothing has changed.
        SetBacking {
            /// The name of the overlay.
            node_name: String,
            /// The backing node; `None` takes the present one away.
            backing: Option<String>,
        },
        /// Put a node behind an edge that leads nowhere.
        ///
        /// # Errors
        /// There is no such edge or it is taken, it would close a circle, or permissions; nothing has changed.
        AttachChild {
            /// The name of the parent.
            parent: String,
            /// What the parent calls the child.
            child: String,
            /// The name of the child.
            node: String,
        },
        /// Take away the node behind an edge that the parent can do without.
        ///
        /// # Errors
        /// There is no such child, the driver cannot do without it, or the link is frozen; nothing has changed.
        DetachChild {
            /// The name of the parent.
            parent: String,
            /// What the parent calls the child.
            child: String,
        },
        /// Let an image name another backing file. Its backing node stays.
        ///
        /// # Errors
        /// There are no such nodes, the image has no backing file, or its header cannot be written.
        RecordBackingFile {
            /// A node without parents in whose chain the image is.
            device: String,
            /// The name of the node whose header names it.
            image_node_name: String,
            /// The name to be stored; empty stores that there is none.
            backing_file: String,
        },
        /// Take images out of chains: all that has `top` as its child gets `base` instead.
        ///
        /// # Errors
        /// There are no such nodes, `base` is not below `top`, a parent relies on its edge, permissions, or a header cannot be
        /// written; nothing has changed.
        DropIntermediate {
            /// The first image to be taken out.
            top: String,
            /// The image below the last one to be taken out.
            base: String,
            /// What overlays of `top` store as the name of their backing file; `None` is the name that opens `base`.
            backing_file: Option<String>,
        },
        /// Change a dirty bitmap of a node.
        ///
        /// # Errors
        /// There is no such node or bitmap, it is in use, or it cannot be what is asked for; nothing has changed.
        EditBitmap(BitmapEdit),
        /// Keep bitmaps from being changed by others, as long as a user holds its node.
        ///
        /// # Errors
        /// There is no such bitmap, it is in use, or it would go on changing below a user who does not write.
        HoldBitmaps(BitmapHold) -> Vec<HeldBitmap>: Bitmaps,
        /// Change what only jobs change.
        ///
        /// # Errors
        /// The change's; nothing has changed then.
        EditForJob(JobEdit),
        /// Write what an image has of its own to its backing image, and empty it. Requests to it wait until that is done.
        ///
        /// # Errors
        /// It has no backing image, somebody forbids it or relies on the backing image, or an image cannot be read or
        /// written. Then the overlay is as it was; the backing image may have some of it.
        Commit {
            /// The name of the overlay.
            node_name: String,
        },
        /// Let an image forget all that it has of its own.
        ///
        /// # Errors
        /// The driver cannot, or permissions.
        MakeEmpty {
            /// The name of the node.
            node_name: String,
        },
        /// Keep the links of a chain as they are; answered by a token that gives them free.
        ///
        /// # Errors
        /// There are no such nodes, or a link is frozen already or must not be.
        FreezeChain {
            /// Where the chain begins.
            top: String,
            /// Where what is frozen ends; `None` is the end of the chain.
            base: Option<String>,
            /// The hold with which the freeze ends at the latest. Without one it lasts until it is taken back.
            root: Option<RootId>,
        } -> Token: Frozen,
        /// Give a chain's links free.
        UnfreezeChain(Token),
        /// Forbid operations on a node; answered by the token of a new blocker.
        ///
        /// # Errors
        /// There is no such node, or no such hold.
        OpBlock {
            /// The name of the node.
            node_name: String,
            /// What is forbidden from now on.
            operations: Vec<OpBlocker>,
            /// Why it is forbidden, for people.
            reason: String,
            /// The hold with which the blocker ends at the latest. Without one it lasts until it is taken back.
            root: Option<RootId>,
        } -> Token: Blocked,
        /// Let a blocker forbid operations on a node as well.
        ///
        /// # Errors
        /// There is no such node or blocker.
        ExtendOpBlock {
            /// The number that the blocker was given.
            token: Token,
            /// The name of the node.
            node_name: String,
            /// What is forbidden, besides what the blocker forbids there already.
            operations: Vec<OpBlocker>,
        },
        /// Let a blocker forbid operations no longer. One that forbids nothing anywhere is gone.
        OpUnblock {
            /// The number that the blocker was given.
            token: Token,
            /// The node; `None` for all.
            node_name: Option<String>,
            /// What is allowed again as far as this blocker is concerned.
            operations: Vec<OpBlocker>,
        },
        /// Flush every node, and wait for it.
        ///
        /// # Errors
        /// A flush's.
        FlushAll,
        /// Start an iothread with these options.
        ///
        /// # Errors
        /// The id is taken, or a property is out of range.
        AddIothread(IothreadOptions),
        /// Stop an iothread that no node lives in.
        ///
        /// # Errors
        /// There is none, or a node lives there.
        DelIothread {
            /// The id of the iothread.
            id: String,
        },
        /// Change an iothread's polling.
        TuneIothread(IothreadOptions),
        /// Count a node's latencies in new histograms from now on, in place of those of the same kinds; none at all ends those
        /// that there are.
        ///
        /// # Errors
        /// There is no such node.
        SetHistograms {
            /// The name of the node.
            node_name: String,
            /// The histograms to be kept, empty.
            histograms: LatencyHistograms,
        },
        /// Have the first write to a node that ends past an offset reported, by the event `BLOCK_WRITE_THRESHOLD`.
        ///
        /// # Errors
        /// There is no such node.
        SetWriteThreshold {
            /// The name of the node.
            node_name: String,
            /// The offset in bytes; 0 for none.
            offset: u64,
        },
        /// Have every read of a node copied up into it from below, or no longer. Counted: what was turned on twice is turned off
        /// twice.
        ///
        /// # Errors
        /// There is no such node, or it cannot be written.
        CopyOnRead {
            /// The name of the node.
            node_name: String,
            /// Whether one wants it more, or one less.
            on: bool,
        },
    }
}
