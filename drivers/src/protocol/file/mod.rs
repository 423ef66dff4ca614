//! `file` and `host_device`: images in regular files and on the host's block devices.
//!
//! ```text
//!   options   what the user asked for
//!   node      the open file                            known_data  where it is known to have data
//!   open      descriptors, kinds, alignment           lock      locks between processes, as QEMU takes them
//!   state     permissions and reopen: which descriptor, which locks
//!   data      reads and writes                        erase     zero writes and discards
//!   ops       which descriptor serves a request
//!   status    holes and data                          truncate  lengths and preallocation
//!   create    making and deleting files               device    sector sizes and geometry
//!   lane      calls in a row on one thread
//! ```
//!
//! All that may block runs in the ring or on its thread pool; only questions that a file system of this machine answers from
//! memory (length, unlocking) are asked in place.

mod create;
mod data;
mod device;
mod erase;
mod known_data;
mod lane;
mod lifecycle;
mod lock;
mod node;
mod open;
mod ops;
mod options;
mod saved;
mod state;
mod status;
mod truncate;

use std::os::fd::AsFd;
use std::path::Path;
use std::rc::Rc;

use futures_util::future::LocalBoxFuture;
use millpond_messages::graph::Options;
use millpond_messages::io::Preallocation;
use millpond_messages::qapi::{ImageInfoSpecific, ImageInfoSpecificFile, ImageInfoSpecificFileWrapper, Size};
use millpond_messages::{
    BlockSizes, CopySource, Error, ErrorKind, Geometry, IoError, IoResult, Limits, OpenFlags, Permissions,
    Range, RequestFlags, Result, ScsiAnswer, ScsiCommand,
};

use crate::api::{
    Abilities, Ability, AllocationTicket, Answer, ChildKind, CreateRequest, Device, Driver, DriverKind,
    Extent, Image, LengthSource, OpenRequest, Opened, OptionNames, Placement, Purpose, Transfer,
};
use millpond_ring::buffer::{Buffers, OPT_MEM_ALIGN};
use millpond_ring::os::scsi;

pub use create::{CreateFile, create_file, create_temporary, delete_file};
pub use device::{probe_blocksizes, probe_geometry};
pub use options::strip_protocol;

use node::{Caps, Config, File, State, Usage};
use open::{Access, Handle, Kind};
use options::{FileOptions, Locking};

/// One of the two drivers on files of the host.
#[derive(Debug, Clone, Copy)]
pub struct FileKind {
    name: &'static str,
}

impl FileKind {
    /// `file`, for regular files.
    pub const FILE: Self = Self { name: "file" };
    /// `host_device`, for block and character devices.
    pub const HOST_DEVICE: Self = Self { name: "host_device" };
}

impl DriverKind for FileKind {
    fn name(&self) -> &'static str {
        self.name
    }

    fn option_names(&self) -> OptionNames {
        OptionNames::Checked
    }

    fn children(&self) -> &'static [ChildKind] {
        &[]
    }

    fn is_protocol(&self) -> bool {
        true
    }

    fn parse_filename(&self, filename: &str) -> Result<Options> {
        let mut options = Options::new();
        let path = strip_protocol(self.name, filename).into_owned();
        options.insert("filename".to_owned(), path.into());
        Ok(options)
    }

    fn open(&self, request: OpenRequest) -> LocalBoxFuture<'static, Result<Opened>> {
        let driver = self.name;
        Box::pin(async move {
            let OpenRequest {
                options, flags, ring, ..
            } = request;
            let parsed = FileOptions::new(driver, &options, flags)?;
            let filename = parsed.filename.clone();
            // Nobody uses a node that is being opened: no permission is taken, and no byte locked.
            let access = Access::new(flags, Permissions::empty());
            let open = move || {
                let handle = Handle::open(driver, &filename, access)?;
                let has_locks = lock::is_available(&handle.fd);
                Ok::<_, Error>((handle, has_locks))
            };
            let (handle, has_locks) = ring.blocking(open).await?;
            let locking = uses_locks(parsed.locking, has_locks)?;
            if flags.contains(OpenFlags::TEMPORARY) {
                let filename = parsed.filename.clone();
                ring.blocking(move || create::unlink(&filename)).await?;
            }
            let config = Config {
                driver,
                options,
                parsed,
                flags,
                locking,
            };
            let state = State {
                config,
                handle,
                used: Usage::NONE,
                caps: Caps::ALL,
                flush_error: None,
                releases: Vec::new(),
            };
            Ok(Opened {
                driver: Rc::new(File::new(state, ring)),
                flags,
                backing: None,
            })
        })
    }

    fn creates(&self) -> bool {
        self.name == Self::FILE.name
    }

    fn create(&self, request: CreateRequest) -> LocalBoxFuture<'static, Result<()>> {
        let driver = self.name;
        Box::pin(async move {
            if driver != FileKind::FILE.name {
                let text = format!("Driver '{driver}' does not support blockdev-create");
                return Err(Error::new(ErrorKind::Unsupported, text));
            }
            let wanted: CreateFile = crate::api::parse_options(request.options)?;
            request.ring.blocking(move || create_file(&wanted)).await
        })
    }
}

fn uses_locks(locking: Locking, available: bool) -> Result<bool> {
    if locking == Locking::On && !available {
        let text = "locking=on was specified, but the file does not support OFD locks";
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    Ok(locking != Locking::Off && available)
}

impl Driver for File {
    fn abilities(&self) -> Abilities {
        let handle = self.handle.borrow();
        let Caps {
            zero_range,
            punch_hole,
            allocate,
        } = self.caps.get();
        let native = |yes| if yes { Ability::Native } else { Ability::Emulated };
        let discards = self.may_unmap() && punch_hole && handle.kind != Kind::Character;
        Abilities {
            limits: Limits {
                request_alignment: handle.alignment.request,
                mem_alignment: handle.alignment.memory,
                opt_mem_alignment: handle.alignment.memory.max(OPT_MEM_ALIGN as u32),
                write_zeroes_alignment: handle.alignment.erase,
                discard_alignment: handle.alignment.erase,
                ..Limits::default()
            },
            write_zeroes: native(zero_range || punch_hole || allocate),
            zero_unmap: self.may_unmap(),
            discard: if discards { Ability::Native } else { Ability::None },
            fua: Ability::Native,
            has_zero_init: handle.kind == Kind::Regular,
            // A device answers itself that it has no more room.
            grows: true,
            // A device's medium may be changed, or its volume made larger.
            length: match handle.kind {
                Kind::Regular => LengthSource::Requests,
                _ => LengthSource::Driver,
            },
            ..Abilities::default()
        }
    }

    fn locate(&self, purpose: Purpose, range: Range) -> Answer<'_, IoResult<Extent>> {
        self.locate_data(purpose, range)
    }

    fn read(
        self: Rc<Self>,
        offset: u64,
        buffers: Buffers,
        _flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        Answer::wait(async move { self.read_all(offset, buffers).await })
    }

    fn place(&self, range: Range, _flags: RequestFlags) -> Answer<'_, IoResult<Placement>> {
        Answer::ready(Ok(Placement::own(range.len())))
    }

    fn settle(&self, _ticket: AllocationTicket, written: IoResult<()>) -> Answer<'_, IoResult<()>> {
        Answer::ready(written)
    }

    fn write(
        self: Rc<Self>,
        offset: u64,
        buffers: Buffers,
        flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        Answer::wait(async move {
            self.write_all(offset, buffers, flags.contains(RequestFlags::FUA))
                .await
        })
    }

    fn write_zeroes(&self, range: Range, flags: RequestFlags) -> Answer<'_, IoResult<()>> {
        Answer::wait(self.zero(range, flags))
    }

    fn discard(&self, range: Range) -> Answer<'_, IoResult<()>> {
        Answer::wait(self.forget(range))
    }

    fn flush(&self) -> Answer<'_, IoResult<()>> {
        Answer::wait(self.sync())
    }

    fn truncate(
        &self,
        size: u64,
        exact: bool,
        preallocation: Preallocation,
        _flags: RequestFlags,
    ) -> Answer<'_, Result<()>> {
        Answer::wait(self.resize(size, exact, preallocation))
    }

    fn length(&self) -> Answer<'_, IoResult<u64>> {
        self.end()
    }

    fn allocated_size(&self) -> Answer<'_, IoResult<u64>> {
        let fd = self.fd();
        Answer::wait(async move {
            let facts = self
                .ring
                .blocking(move || rustix::fs::fstat(&fd))
                .await
                .map_err(open::errno)?;
            // `st_blocks` counts units of 512 bytes, whatever the file system's blocks are.
            u64::try_from(facts.st_blocks)
                .ok()
                .and_then(|blocks| blocks.checked_mul(512))
                .ok_or(IoError::Invalid)
        })
    }

    fn image(&self) -> &dyn Image {
        self
    }

    fn device(&self) -> &dyn Device {
        self
    }
}

impl Image for File {
    fn delete_file(&self) -> Answer<'_, Result<()>> {
        if self.config.borrow().driver != FileKind::FILE.name {
            return Answer::ready(Err(Error::new(
                ErrorKind::Unsupported,
                "A device is no file that could be deleted",
            )));
        }
        let (fd, filename) = (self.fd(), self.config.borrow().parsed.filename.clone());
        let delete = move || create::delete_open_file(&fd, Path::new(&filename));
        Answer::wait(self.ring.blocking(delete))
    }

    fn specific_info(&self) -> Option<ImageInfoSpecific> {
        let hint = u64::from(self.handle.borrow().extent_size_hint);
        let data = ImageInfoSpecificFile {
            extent_size_hint: Some(Size(hint)).filter(|_| hint != 0),
        };
        Some(ImageInfoSpecific::File(ImageInfoSpecificFileWrapper { data }))
    }

    fn filename(&self) -> Option<String> {
        Some(self.config.borrow().parsed.filename.clone())
    }
}

impl Device for File {
    fn is_scsi_generic(&self) -> bool {
        self.kind() == Kind::Character && scsi::is_generic(self.fd().as_fd())
    }

    fn send_scsi(&self, command: ScsiCommand) -> Answer<'_, IoResult<ScsiAnswer>> {
        if self.kind() == Kind::Regular {
            return Answer::ready(Err(IoError::NotSupported));
        }
        let fd = self.fd();
        Answer::wait(
            self.ring
                .blocking(move || scsi::send(fd.as_fd(), command).map_err(IoError::from)),
        )
    }

    fn copy_source(&self, range: Range) -> Option<CopySource> {
        Some(CopySource {
            file: self.fd(),
            offset: range.offset(),
        })
    }

    fn copy_from(&self, source: CopySource, range: Range) -> Answer<'_, IoResult<u64>> {
        Answer::wait(self.copy_in(source, range))
    }

    fn block_sizes(&self) -> Answer<'_, IoResult<BlockSizes>> {
        if self.kind() != Kind::Block {
            return Answer::ready(Err(IoError::NotSupported));
        }
        let fd = self.fd();
        Answer::wait(self.ring.blocking(move || probe_blocksizes(&fd)))
    }

    fn geometry(&self) -> Answer<'_, IoResult<Geometry>> {
        if self.kind() != Kind::Block {
            return Answer::ready(Err(IoError::NotSupported));
        }
        let fd = self.fd();
        Answer::wait(self.ring.blocking(move || probe_geometry(&fd)))
    }
}
