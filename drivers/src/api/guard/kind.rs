//! A kind of driver, behind its guard.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use futures_util::future::LocalBoxFuture;
use millpond_messages::error::errno::EIO;
use millpond_messages::graph::Options;
use millpond_messages::{ChildSlot, Error, ImagePlan, IoError, Permissions, Result, Role};

use super::driver::Guarded;
use super::watched::{Health, Watched, panic_text};
use crate::api::kind::{
    ChildChange, ChildKind, CreateRequest, DriverKind, EdgeUse, OpenRequest, Opened, OptionNames,
};
use crate::api::notice::Notices;

/// A kind of driver that may panic. Every method of [`DriverKind`] is here: a default would leave out the kind's own.
pub struct GuardedKind {
    kind: Arc<dyn DriverKind>,
    name: &'static str,
    children: &'static [ChildKind],
}

impl GuardedKind {
    /// Guards `kind`. What it is called and which children it declares is asked here, once.
    #[must_use]
    pub fn new(kind: Arc<dyn DriverKind>) -> Self {
        Self {
            name: kind.name(),
            children: kind.children(),
            kind,
        }
    }

    fn run<'a, T>(&'a self, code: impl FnOnce(&'a dyn DriverKind) -> T) -> Option<T> {
        match catch_unwind(AssertUnwindSafe(|| code(&*self.kind))) {
            Ok(value) => Some(value),
            Err(panic) => {
                let text = panic_text(&*panic);
                tracing::error!(driver = self.name, "a driver panicked: {text}");
                None
            }
        }
    }

    fn checked<T>(&self, result: Option<Result<T>>) -> Result<T> {
        result.unwrap_or_else(|| Err(self.error()))
    }

    fn error(&self) -> Error {
        Error::io(&format!("Driver '{}' panicked", self.name), IoError::Os(EIO))
    }
}

impl DriverKind for GuardedKind {
    fn name(&self) -> &'static str {
        self.name
    }

    fn children(&self) -> &'static [ChildKind] {
        self.children
    }

    fn numbered(&self) -> Option<ChildKind> {
        self.run(|kind| kind.numbered()).flatten()
    }

    fn child(&self, slot: ChildSlot) -> Option<ChildKind> {
        self.run(|kind| kind.child(slot)).flatten()
    }

    fn child_role(&self, slot: ChildSlot, options: &Options) -> Role {
        let role = self.run(|kind| kind.child_role(slot, options));
        role.unwrap_or_else(|| self.child(slot).map_or(Role::empty(), |child| child.role))
    }

    fn child_permissions(&self, edge: EdgeUse<'_>) -> (Permissions, Permissions) {
        let permissions = self.run(|kind| kind.child_permissions(edge));
        // As the role has it.
        permissions.unwrap_or_else(|| {
            millpond_messages::child_permissions(
                edge.role,
                edge.taken,
                edge.shared,
                edge.writable,
                edge.force_share,
            )
        })
    }

    fn option_names(&self) -> OptionNames {
        self.run(|kind| kind.option_names())
            .unwrap_or(OptionNames::Checked)
    }

    fn create_option_names(&self) -> OptionNames {
        let names = self.run(|kind| kind.create_option_names());
        names.unwrap_or(OptionNames::Checked)
    }

    fn check_options(&self, options: &Options, numbered: usize) -> Result<()> {
        self.option_names().check(options)?;
        self.checked(self.run(|kind| kind.check_options(options, numbered)))
    }

    fn check_change(&self, change: ChildChange, options: &Options, numbered: usize) -> Result<()> {
        self.checked(self.run(|kind| kind.check_change(change, options, numbered)))
    }

    fn filename_prefixes(&self) -> &'static [&'static str] {
        self.run(|kind| kind.filename_prefixes()).unwrap_or_default()
    }

    fn reaches_out(&self) -> bool {
        self.run(|kind| kind.reaches_out()).unwrap_or(true)
    }

    fn is_protocol(&self) -> bool {
        self.run(|kind| kind.is_protocol()).unwrap_or_default()
    }

    fn is_filter(&self) -> bool {
        self.run(|kind| kind.is_filter()).unwrap_or_default()
    }

    fn flushes_to_disk(&self) -> bool {
        self.run(|kind| kind.flushes_to_disk()).unwrap_or_default()
    }

    fn flushes_child(&self, child: &ChildKind) -> bool {
        self.run(|kind| kind.flushes_child(child)).unwrap_or(true)
    }

    fn chain_bottom<'a>(&self, options: &'a Options) -> Option<&'a str> {
        self.run(|kind| kind.chain_bottom(options)).flatten()
    }

    fn prepares_permissions(&self) -> bool {
        self.run(|kind| kind.prepares_permissions()).unwrap_or(true)
    }

    fn reopens(&self) -> bool {
        self.run(|kind| kind.reopens()).unwrap_or_default()
    }

    fn borrows_filename(&self) -> bool {
        self.run(|kind| kind.borrows_filename()).unwrap_or_default()
    }

    fn filename_over(&self, options: &Options, children: &[&str]) -> Option<String> {
        self.run(|kind| kind.filename_over(options, children)).flatten()
    }

    fn measure(&self, options: Options) -> Result<ImagePlan> {
        self.checked(self.run(|kind| kind.measure(options)))
    }

    fn amends(&self) -> bool {
        self.run(|kind| kind.amends()).unwrap_or_default()
    }

    fn readies_ahead(&self, old: &Options, new: &Options) -> bool {
        self.run(|kind| kind.readies_ahead(old, new)).unwrap_or_default()
    }

    fn has_snapshots(&self) -> bool {
        self.run(|kind| kind.has_snapshots()).unwrap_or_default()
    }

    fn stores_bitmaps(&self) -> bool {
        self.run(|kind| kind.stores_bitmaps()).unwrap_or_default()
    }

    fn logs_bitmaps(&self, options: &Options) -> bool {
        self.run(|kind| kind.logs_bitmaps(options)).unwrap_or_default()
    }

    fn amend_permissions(&self) -> Permissions {
        self.run(|kind| kind.amend_permissions())
            .unwrap_or_else(Permissions::all)
    }

    fn creates_detached(&self) -> bool {
        self.run(|kind| kind.creates_detached()).unwrap_or_default()
    }

    fn never_freeze(&self) -> bool {
        self.run(|kind| kind.never_freeze()).unwrap_or_default()
    }

    fn has_filenames(&self) -> bool {
        self.run(|kind| kind.has_filenames()).unwrap_or_default()
    }

    fn parse_filename(&self, filename: &str) -> Result<Options> {
        let parsed = self.run(|kind| kind.parse_filename(filename));
        parsed.unwrap_or_else(|| Err(self.error()))
    }

    fn probe(&self, head: &[u8]) -> u8 {
        self.run(|kind| kind.probe(head)).unwrap_or_default()
    }

    fn open(&self, request: OpenRequest) -> LocalBoxFuture<'static, Result<Opened>> {
        let names = self.option_names();
        if let Err(error) = names.check(&request.options) {
            return Box::pin(async move { Err(error) });
        }
        let node = request.node_name.clone();
        let health = Health::new(node, self.name, request.notices.clone(), false);
        let opened = health.run(|| self.kind.open(request));
        Box::pin(async move {
            let Some(opened) = opened else {
                return Err(health.error());
            };
            let opened = Watched::new(opened, &health).await?;
            health.is_open.set(true);
            Ok(Opened {
                driver: Guarded::new(opened.driver, names, health),
                ..opened
            })
        })
    }

    fn creates(&self) -> bool {
        self.run(|kind| kind.creates()).unwrap_or_default()
    }

    fn create(&self, request: CreateRequest) -> LocalBoxFuture<'static, Result<()>> {
        if let Err(error) = self.create_option_names().check(&request.options) {
            return Box::pin(async move { Err(error) });
        }
        let health = Health::new(String::new(), self.name, Notices::nowhere(), false);
        match health.run(|| self.kind.create(request)) {
            Some(created) => Box::pin(Watched::new(created, &health)),
            None => Box::pin(async move { Err(health.error()) }),
        }
    }
}
