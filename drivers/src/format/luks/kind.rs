//! The driver's description for the registry.

use std::rc::Rc;
use std::sync::Arc;

use futures_util::future::LocalBoxFuture;
use millpond_messages::graph::Options;
use millpond_messages::{ImagePlan, Permissions, Result, Role};

use super::create::create;
use super::driver::Luks;
use super::header_file::HeaderFile;
use super::volume::{Volume, is_looked_at};
use crate::api::{
    ChildKind, CreateRequest, DriverKind, EdgeUse, OpenRequest, Opened, OptionNames, declared, parse_options,
};
use crate::crypto::luks::{NewVolume, is_luks};
use crate::secret::{Password, Secrets};

const CHILDREN: [ChildKind; 2] = [
    ChildKind::file(Role::IMAGE),
    ChildKind {
        required: false,
        ..ChildKind::named("header", Role::METADATA)
    },
];

/// The driver `luks`, which opens and makes volumes with the passwords among some secrets.
#[derive(Debug, Clone)]
pub struct LuksKind {
    secrets: Secrets,
}

impl LuksKind {
    /// The driver for nodes whose passwords are among these secrets.
    #[must_use]
    pub const fn new(secrets: Secrets) -> Self {
        Self { secrets }
    }
}

/// The options as QAPI's `BlockdevOptionsLUKS`.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct LuksOptions {
    key_secret: Option<String>,
}

/// The password that a node's options name.
pub(super) fn password(secrets: &Secrets, options: &Options) -> Result<Password> {
    let LuksOptions { key_secret } = parse_options(options.clone())?;
    secrets.required_password(key_secret.as_deref(), "key-secret")
}

impl DriverKind for LuksKind {
    fn name(&self) -> &'static str {
        "luks"
    }

    fn option_names(&self) -> OptionNames {
        OptionNames::Checked
    }

    fn children(&self) -> &'static [ChildKind] {
        &CHILDREN
    }

    /// The header is written only while keys change, so several nodes may show one volume, as they may show one file.
    fn child_permissions(&self, edge: EdgeUse<'_>) -> (Permissions, Permissions) {
        let (taken, shared) = millpond_messages::child_permissions(
            edge.role,
            edge.taken,
            edge.shared,
            edge.writable,
            edge.force_share,
        );
        let changes = Permissions::WRITE | Permissions::RESIZE;
        (taken, shared | (edge.shared & changes))
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

    /// Keys leave the data and its length as they are.
    fn amend_permissions(&self) -> Permissions {
        Permissions::CONSISTENT_READ | Permissions::WRITE
    }

    fn probe(&self, head: &[u8]) -> u8 {
        if is_luks(head) { 100 } else { 0 }
    }

    fn open(&self, request: OpenRequest) -> LocalBoxFuture<'static, Result<Opened>> {
        let secrets = self.secrets.clone();
        Box::pin(async move {
            let children = declared(request.children)?;
            let header = HeaderFile::among(&children);
            let volume = match is_looked_at(request.flags) {
                true => Volume::look_at(&header).await?,
                false => {
                    let password = password(&secrets, &request.options)?;
                    Volume::open(&header, &request.ring, &password).await?
                }
            };
            let driver = Luks::new(secrets, request.options, Arc::new(volume), children, request.ring);
            Ok(Opened {
                driver: Rc::new(driver),
                flags: request.flags,
                backing: None,
            })
        })
    }

    fn measure(&self, options: Options) -> Result<ImagePlan> {
        let volume: NewVolume = parse_options(options)?;
        self.secrets
            .required_password(volume.key_secret.as_deref(), "key-secret")?;
        Ok(ImagePlan {
            metadata: volume.header_len()?,
            disk: volume.size,
            sparse: None,
            is_overlay: false,
            bitmaps: None,
        })
    }

    fn creates(&self) -> bool {
        true
    }

    fn creates_detached(&self) -> bool {
        true
    }

    fn create(&self, request: CreateRequest) -> LocalBoxFuture<'static, Result<()>> {
        Box::pin(create(self.secrets.clone(), request))
    }
}
