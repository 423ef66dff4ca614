//! The driver's description for the registry, and the order of what an open does.

use futures_util::future::LocalBoxFuture;
use millpond_messages::graph::Options;
use millpond_messages::{Error, ErrorKind, ImagePlan, OpenFlags, Result, Role};

use super::create::create;
use super::file::ImageFile;
use super::header;
use super::image::{Children, GivenOptions, Qcow2};
use super::layout::bytes::be32;
use super::measure::measure;
use super::open::{backing_link, is_writable, open_state};
use super::options::logs_bitmaps;
use super::table::overlap::Kind;
use crate::api::{ChildKind, CreateRequest, DriverKind, OpenRequest, Opened, OptionNames, declared};
use crate::secret::Secrets;

const CHILDREN: [ChildKind; 3] = [
    ChildKind::file(Role::IMAGE),
    ChildKind::BACKING,
    ChildKind::DATA_FILE,
];

/// The driver `qcow2`, which opens and makes images, with the passwords among some secrets where they are encrypted.
#[derive(Debug, Clone, Default)]
pub struct Qcow2Kind {
    secrets: Secrets,
}

impl Qcow2Kind {
    /// The driver for nodes whose passwords are among these secrets.
    #[must_use]
    pub const fn new(secrets: Secrets) -> Self {
        Self { secrets }
    }
}

impl DriverKind for Qcow2Kind {
    fn name(&self) -> &'static str {
        "qcow2"
    }

    fn option_names(&self) -> OptionNames {
        OptionNames::Checked
    }

    fn children(&self) -> &'static [ChildKind] {
        &CHILDREN
    }

    fn is_protocol(&self) -> bool {
        false
    }

    fn prepares_permissions(&self) -> bool {
        false
    }

    fn amends(&self) -> bool {
        true
    }

    /// The cache is empty when its slices get another size, and stays so until then.
    fn readies_ahead(&self, old: &Options, new: &Options) -> bool {
        old.get("l2-cache-entry-size") == new.get("l2-cache-entry-size")
    }

    fn measure(&self, options: Options) -> Result<ImagePlan> {
        measure(&self.secrets, options)
    }

    fn has_snapshots(&self) -> bool {
        true
    }

    fn stores_bitmaps(&self) -> bool {
        true
    }

    fn logs_bitmaps(&self, options: &Options) -> bool {
        logs_bitmaps(options)
    }

    fn probe(&self, head: &[u8]) -> u8 {
        let known = be32(head, 0) == header::MAGIC && be32(head, 4) >= 2;
        if known { 100 } else { 0 }
    }

    fn open(&self, request: OpenRequest) -> LocalBoxFuture<'static, Result<Opened>> {
        Box::pin(open(self.secrets.clone(), request))
    }

    fn creates(&self) -> bool {
        true
    }

    fn create(&self, request: CreateRequest) -> LocalBoxFuture<'static, Result<()>> {
        Box::pin(create(self.secrets.clone(), request))
    }
}

async fn open(secrets: Secrets, request: OpenRequest) -> Result<Opened> {
    let children: Children = declared(request.children)?;
    let [file, _, data_file] = &children;
    let flags = request.flags;
    let given = GivenOptions {
        options: request.options,
        flags,
        secrets,
    };
    let image = ImageFile::new(file.clone());
    let mut state = open_state(&image, &request.ring, &given, None).await?;
    state.notices = request.notices;
    let link = backing_link(&state.header);
    if data_file.is_connected() && !state.geometry.external {
        let text = "'data-file' can only be set for images with an external data file";
        return Err(Error::new(ErrorKind::InvalidArgument, text));
    }
    let driver = Qcow2::new(children, request.ring, state, given);
    let guarded = driver.state.borrow().settings.guarded;
    if guarded.has(Kind::InactiveL2) {
        driver.guard_metadata(guarded).await?;
    }
    if !flags.contains(OpenFlags::CHECK) {
        driver.load_bitmaps(!flags.contains(OpenFlags::INACTIVE)).await?;
    }
    // A check repairs explicitly, so nothing is activated here.
    if is_writable(flags) && !flags.contains(OpenFlags::CHECK) {
        driver.activate().await?;
    }
    Ok(Opened {
        driver,
        flags,
        backing: link,
    })
}
