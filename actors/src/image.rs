//! New images, as `qemu-img create` makes them: in a file that is made for it, perhaps on top of another image.

use millpond_messages::error::errno::EFBIG;
use millpond_messages::graph::{
    DeleteFile, DetachRoot, DriverFacts, FindRoot, ListDrivers, MakeImage, NodeFacts, OpenImage, Options,
    Probing, RootUser,
};
use millpond_messages::path::full_backing_filename;
use millpond_messages::qapi::parse_size;
use millpond_messages::{Error, ErrorKind, IoError, OpenFlags, Result, RootId, SECTOR_SIZE};

use crate::graph::GraphHandle;
pub use millpond_graph::NewImage;
use millpond_graph::new_image::{Given, check_base, known, protocol_of};

/// The hold on what is opened meanwhile.
const USER: &str = "create-image";
/// The format of a base is never guessed: who writes to the base could choose it.
const NO_BASE_FORMAT: &str = "Backing file specified without backing format";

impl GraphHandle {
    /// Makes an image, as `qemu-img create` does; answers the line that it tells of it, unless that is not wanted. Where it
    /// fails, a file that was made for it is deleted.
    ///
    /// # Errors
    /// In `qemu-img`'s words: a format that is not known or makes no images, an option that is not for it, a base that cannot
    /// be opened or whose format is not said, no size, or the driver's.
    pub async fn create_image(&self, image: NewImage) -> Result<Option<String>> {
        let mut told = Vec::new();
        create(self, image, &mut told).await?;
        Ok(told.pop())
    }
}

fn invalid(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidArgument, text.into())
}

/// Makes an image: see [`GraphHandle::create_image`]. The line that is told of it is added to `told` before anything is made,
/// for those who tell it also where that fails.
///
/// # Errors
/// As there.
pub(crate) async fn create(graph: &GraphHandle, image: NewImage, told: &mut Vec<String>) -> Result<()> {
    let drivers = graph.ask(ListDrivers { read_only: false }).await?;
    let format = maker(&drivers, &image.format, "file format", "Format driver")?;
    let (protocol, filename) = protocol_of(&image.filename);
    maker(&drivers, protocol, "protocol", "Protocol driver")?;
    let given = Given::new(&image)?;
    let base = given.get("backing_file");
    check_base(&image.filename, base)?;
    let mut size = given.get("size").and_then(parse_size);
    if let Some(base) = base.filter(|_| !image.flags.contains(OpenFlags::NO_BACKING)) {
        let length = length_of_base(graph, &image, base, given.get("backing_fmt")).await?;
        size = size.or(Some(length));
    }
    if base.is_some() && given.get("backing_fmt").is_none() {
        return Err(invalid(NO_BASE_FORMAT));
    }
    let size = size.ok_or_else(|| invalid("Image creation needs a size parameter"))?;
    if !image.quiet {
        told.push(given.told(&image, size));
    }
    let size = size
        .checked_next_multiple_of(SECTOR_SIZE)
        .ok_or_else(|| invalid(format!("Image size {size} is too large")))?;
    let mut options = given.to_create()?;
    if let Some(format) = given.get("backing_fmt") {
        check_base_format(&drivers, format)?;
    }
    // A raw image is its file.
    if image.format == "raw" || format.is_protocol {
        let driver = if format.is_protocol {
            &image.format
        } else {
            protocol
        };
        let made = make_file(graph, driver, filename, size, options).await;
        return made.map_err(|error| told_if_too_large(error, &image.format));
    }
    let data_file = options.get("data-file").and_then(|name| name.as_str());
    let data_file = data_file.map(str::to_owned);
    let mut made = Vec::new();
    let formatted = async {
        made.push(make_and_open(graph, protocol, filename, given.to_create_file()?).await?);
        if let Some(name) = &data_file {
            let (protocol, filename) = protocol_of(name);
            maker(&drivers, protocol, "protocol", "Protocol driver")?;
            made.push(make_and_open(graph, protocol, filename, Options::new()).await?);
        }
        let mut nodes = made.iter().map(|(_, facts)| facts.name.clone());
        let file = nodes.next().unwrap_or_default();
        if let Some(data_file) = nodes.next() {
            options.insert("data-file".to_owned(), data_file.into());
        }
        let formatted = format_file(graph, &image.format, &file, size, options).await;
        formatted.map_err(|error| told_if_too_large(error, &image.format))
    };
    let result = formatted.await;
    let_go(graph, made, result).await
}

/// Lets go of the files of an image, and deletes them where it was not made.
async fn let_go(graph: &GraphHandle, made: Vec<(RootId, NodeFacts)>, mut result: Result<()>) -> Result<()> {
    for (root, facts) in made {
        if result.is_err() {
            delete_file(graph, &facts.name).await;
        }
        result = result.and(graph.ask(DetachRoot(root)).await);
    }
    result
}

/// Refuses to store a format for the base that nobody knows.
fn check_base_format(drivers: &[DriverFacts], format: &str) -> Result<()> {
    let is_ours = drivers.iter().any(|driver| driver.name == format);
    if is_ours || known::FORMATS.contains(&format) {
        return Ok(());
    }
    let text = format!("Parameter 'backing-fmt' does not accept value '{format}'");
    Err(invalid(text))
}

/// What is told of an image that the host has no room for in one file.
fn told_if_too_large(error: Error, format: &str) -> Error {
    match error.kind() {
        ErrorKind::Io(IoError::Os(EFBIG)) => {
            let hint = match known::of_format(format)
                .iter()
                .any(|known| known.name == "cluster_size")
            {
                true => " (try using a larger cluster size)",
                false => "",
            };
            let text = format!("The image size is too large for file format '{format}'{hint}");
            Error::caused_by(error.kind(), text, error)
        }
        _ => error,
    }
}

/// Makes an empty file, and opens it to be written to.
async fn make_and_open(
    graph: &GraphHandle,
    protocol: &str,
    filename: &str,
    options: Options,
) -> Result<(RootId, NodeFacts)> {
    make_file(graph, protocol, filename, 0, options).await?;
    open_file(graph, protocol, filename).await
}

/// The driver of a name, which can make images.
pub(crate) fn maker<'a>(
    drivers: &'a [DriverFacts],
    name: &str,
    what: &str,
    which: &str,
) -> Result<&'a DriverFacts> {
    let found = drivers.iter().find(|driver| driver.name == name);
    match found {
        // What a raw image is made by is its file's driver.
        Some(driver) if driver.creates || name == "raw" => return Ok(driver),
        None if !known::FORMATS.contains(&name) => return Err(invalid(format!("Unknown {what} '{name}'"))),
        _ => {}
    }
    let text = format!("{which} '{name}' does not support image creation");
    Err(Error::new(ErrorKind::Unsupported, text))
}

/// How long the base is, which is opened to be read for so long.
async fn length_of_base(
    graph: &GraphHandle,
    image: &NewImage,
    base: &str,
    format: Option<&str>,
) -> Result<u64> {
    let filename =
        full_backing_filename(&image.filename, base).map_err(|error| invalid(error.to_string()))?;
    let mut options = Options::new();
    if let Some(format) = format {
        options.insert("driver".to_owned(), format.into());
    }
    let unwanted = OpenFlags::RDWR | OpenFlags::SNAPSHOT | OpenFlags::NO_BACKING;
    let opened = OpenImage {
        filename: Some(filename),
        options,
        // Only its length is looked at, which needs no key.
        flags: (image.flags - unwanted) | OpenFlags::NO_IO,
        probing: Probing::ReadOnly,
        ..OpenImage::default()
    };
    let held = hold(graph, opened).await;
    let (root, facts) = held.map_err(|error| error.with_hint("Could not open backing image."))?;
    graph.ask(DetachRoot(root)).await?;
    if format.is_none() {
        let hint = format!("Detected format of {}.", facts.driver);
        return Err(invalid(NO_BASE_FORMAT).with_hint(hint));
    }
    Ok(facts.size)
}

/// Opens an image and takes hold of it.
async fn hold(graph: &GraphHandle, image: OpenImage) -> Result<(RootId, NodeFacts)> {
    let holder = RootUser::Embedder(USER.to_owned());
    let root = graph.open_held(image, holder).await?.root();
    match graph.ask(FindRoot(root)).await {
        Ok(facts) => Ok((root, facts)),
        Err(error) => {
            graph.detach(root).await?;
            Err(error)
        }
    }
}

async fn make_file(
    graph: &GraphHandle,
    driver: &str,
    filename: &str,
    size: u64,
    mut options: Options,
) -> Result<()> {
    options.insert("driver".to_owned(), driver.into());
    options.insert("filename".to_owned(), filename.into());
    options.insert("size".to_owned(), size.into());
    graph.ask(MakeImage(options)).await
}

async fn open_file(graph: &GraphHandle, protocol: &str, filename: &str) -> Result<(RootId, NodeFacts)> {
    let mut options = Options::new();
    options.insert("driver".to_owned(), protocol.into());
    options.insert("filename".to_owned(), filename.into());
    let file = OpenImage {
        options,
        flags: OpenFlags::RDWR | OpenFlags::RESIZE,
        ..OpenImage::default()
    };
    hold(graph, file).await
}

async fn format_file(
    graph: &GraphHandle,
    format: &str,
    node: &str,
    size: u64,
    mut options: Options,
) -> Result<()> {
    options.insert("driver".to_owned(), format.into());
    options.insert("file".to_owned(), node.into());
    options.insert("size".to_owned(), size.into());
    graph.ask(MakeImage(options)).await
}

/// Half an image helps nobody. If its file cannot go, the error that is told already says enough.
async fn delete_file(graph: &GraphHandle, node: &str) {
    let node_name = node.to_owned();
    if let Err(error) = graph.ask(DeleteFile { node_name }).await {
        tracing::warn!(%error, "half an image is left");
    }
}
