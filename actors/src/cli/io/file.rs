//! Images opened, closed, and opened otherwise.

use millpond_messages::graph::{DetachRoot, FindRoot, OpenImage, Options, Probing, ReopenKeeping, RootUser};
use millpond_messages::{OpenFlags, Permissions};
use serde_json::Value;

use super::aio;
use super::shell::{Ended, Failed, Image, Shell};
use super::words::cut;
use crate::cli::tool::{Program, read_cache, read_pairs, warn_of_raw};

/// How an image is to be opened, as the command line and `open` say it alike.
#[derive(Debug, Clone)]
pub struct Opening {
    /// The flags of its node.
    pub flags: OpenFlags,
    /// Every write is made durable before it is reported.
    pub writethrough: bool,
    /// Others may use the image as they like.
    pub force_share: bool,
    /// Options of the node.
    pub options: Options,
}

impl Default for Opening {
    fn default() -> Self {
        Self {
            flags: OpenFlags::UNMAP | OpenFlags::RDWR,
            writethrough: true,
            force_share: false,
            options: Options::new(),
        }
    }
}

impl Opening {
    /// Takes an option that both have.
    ///
    /// # Errors
    /// What is told of a value that is none.
    pub fn take(&mut self, option: char, value: &str) -> Result<(), String> {
        match option {
            'r' => self.flags -= OpenFlags::RDWR,
            's' => self.flags |= OpenFlags::SNAPSHOT,
            'n' => {
                self.flags |= OpenFlags::NOCACHE;
                self.writethrough = false;
            }
            'C' => self.flags |= OpenFlags::COPY_ON_READ,
            'U' => self.force_share = true,
            't' => {
                let (flags, writethrough) =
                    read_cache(value).ok_or_else(|| format!("Invalid cache option: {value}"))?;
                self.flags -= OpenFlags::NOCACHE | OpenFlags::NO_FLUSH;
                self.flags |= flags;
                self.writethrough = writethrough;
            }
            'd' => match value {
                "off" | "ignore" => self.flags -= OpenFlags::UNMAP,
                "on" | "unmap" => self.flags |= OpenFlags::UNMAP,
                _ => return Err(format!("Invalid discard option: {value}")),
            },
            'k' => return self.take('i', "native"),
            'i' => {
                self.flags -= OpenFlags::NATIVE_AIO | OpenFlags::IO_URING;
                match value {
                    "threads" => {}
                    "native" => self.flags |= OpenFlags::NATIVE_AIO,
                    "io_uring" => self.flags |= OpenFlags::IO_URING,
                    _ => return Err(format!("Invalid aio option: {value}")),
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// `open`: opens an image.
pub async fn open(shell: &mut Shell, words: &[String]) -> Ended {
    let cut = cut(words, "snCro:ki:t:d:U");
    let mut opening = Opening::default();
    for (option, value) in &cut.options {
        match option {
            'o' => add_options(shell, &mut opening.options, value)?,
            _ => {
                if let Err(why) = opening.take(*option, value) {
                    return shell.complain(&why);
                }
            }
        }
    }
    match (cut.operands.as_slice(), cut.wrong) {
        ([], None) => open_image(shell, None, opening).await,
        ([name], None) => open_image(shell, Some(name), opening).await,
        (_, wrong) => shell.misused(words, wrong),
    }
}

/// Reads options of a node, and adds them to those that are there.
pub fn add_options(shell: &Shell, options: &mut Options, text: &str) -> Ended {
    let program = Program(&shell.program);
    let pairs = match read_pairs(text, None, |warning| program.warn(warning)) {
        Ok(pairs) => pairs,
        Err(failure) => {
            failure.tell(program);
            return Err(Failed);
        }
    };
    options.extend(pairs.into_iter().map(|(name, value)| (name, Value::from(value))));
    Ok(())
}

/// Opens an image and takes hold of it.
pub async fn open_image(shell: &mut Shell, name: Option<&str>, opening: Opening) -> Ended {
    if shell.image.is_some() {
        return shell.complain("file open already, try 'help close'");
    }
    let Opening {
        flags,
        writethrough,
        force_share,
        mut options,
    } = opening;
    if force_share {
        if options.get("force-share").is_some_and(|value| value != "on") {
            return shell.complain("-U conflicts with image options");
        }
        options.insert("force-share".to_owned(), "on".into());
    }
    let is_guess = flags.contains(OpenFlags::RDWR)
        && !options.contains_key("driver")
        && name.is_some_and(|name| !name.starts_with("json:"));
    let image = OpenImage {
        filename: name.map(str::to_owned),
        options,
        flags,
        probing: Probing::Always,
        ..OpenImage::default()
    };
    let user = RootUser::Embedder(shell.program.clone());
    let graph = shell.graph.clone();
    let client = match shell.wait(graph.open_held(image, user)).await {
        Ok(client) => client,
        Err(error) => {
            let device = name.map_or_else(String::new, |name| format!(" device {name}"));
            return shell.complain_of(&error.within(&format!("can't open{device}")));
        }
    };
    if is_guess && let Err(failure) = shell.wait(warn_of_raw(&graph, &client)).await {
        failure.tell(Program(&shell.program));
        return Err(Failed);
    }
    let asked = graph.ask(FindRoot(client.root()));
    match shell.wait(asked).await {
        Ok(facts) => {
            shell.image = Some(Image {
                permissions: client.permissions(),
                node: facts.name,
                client,
                writethrough,
            });
            Ok(())
        }
        Err(error) => shell.complain_of(&error),
    }
}

/// `close`: ends what is in flight, and closes the image.
pub async fn close(shell: &mut Shell) -> Ended {
    aio::flush(shell).await?;
    let image = shell.image.take().ok_or(Failed)?;
    shell.armed.clear();
    match shell.graph.ask(DetachRoot(image.client.root())).await {
        Ok(()) => Ok(()),
        Err(error) => shell.complain_of(&error),
    }
}

/// `reopen`: changes how the image is open. What is not named stays as it is.
pub async fn reopen(shell: &mut Shell, words: &[String]) -> Ended {
    let cut = cut(words, "c:o:rw");
    let mut options = Options::new();
    let (mut read_only, mut cache) = (None, None);
    for (option, value) in &cut.options {
        match option {
            'c' => match read_cache(value) {
                Some(mode) => cache = Some(mode),
                None => return shell.complain(&format!("Invalid cache option: {value}")),
            },
            'o' => add_options(shell, &mut options, value)?,
            _ if read_only.is_some() => return shell.complain("Only one -r/-w option may be given"),
            option => read_only = Some(*option == 'r'),
        }
    }
    if cut.wrong.is_some() || !cut.operands.is_empty() {
        return shell.misused(words, cut.wrong);
    }
    if let Some(read_only) = read_only {
        if options.contains_key("read-only") {
            return shell.complain("Cannot set both -r/-w and 'read-only'");
        }
        options.insert("read-only".to_owned(), read_only.into());
    }
    if let Some((flags, _)) = cache {
        if options.contains_key("cache.direct") || options.contains_key("cache.no-flush") {
            return shell.complain("Cannot set both -c and the cache options");
        }
        let direct = flags.contains(OpenFlags::NOCACHE);
        options.insert("cache.direct".to_owned(), direct.into());
        let no_flush = flags.contains(OpenFlags::NO_FLUSH);
        options.insert("cache.no-flush".to_owned(), no_flush.into());
    }
    let node = shell.image()?.node.clone();
    if options.get("node-name").is_some_and(|name| *name != node) {
        return shell.complain("Cannot change the option 'node-name'");
    }
    options.insert("node-name".to_owned(), node.into());
    reopen_with(
        shell,
        options,
        read_only,
        cache.map(|(_, writethrough)| writethrough),
    )
    .await
}

async fn reopen_with(
    shell: &mut Shell,
    options: Options,
    read_only: Option<bool>,
    writethrough: Option<bool>,
) -> Ended {
    if read_only == Some(true) {
        let writing = Permissions::WRITE | Permissions::WRITE_UNCHANGED;
        let permissions = shell.image()?.permissions - writing;
        shell.set_permissions(permissions).await?;
    }
    let asked = shell.graph.ask(ReopenKeeping(vec![options]));
    if let Err(error) = shell.wait(asked).await {
        return shell.complain_of(&error);
    }
    if let (Some(image), Some(writethrough)) = (&mut shell.image, writethrough) {
        image.writethrough = writethrough;
    }
    Ok(())
}
