//! The image that `convert` writes.

use millpond_graph::NewImage;
use millpond_graph::new_image::{Given, protocol_of};
use millpond_messages::OpenFlags;
use millpond_messages::graph::{
    AddIothread, FindRoot, IothreadOptions, ListDrivers, NodeFacts, RootUser, SetIothread,
};
use serde_json::Value;

use super::plan::ConvertPlan;
use crate::cli::img::chain::backing_of;
use crate::cli::tool::{Failure, ImageName, Tool};
use crate::node::Client;

/// What the end of an option's name says of it: it names a secret, which is needed to open the image too.
const SECRET: &str = "key-secret";
/// The iothread that the target lives in, beside that of the sources.
const IOTHREAD: &str = "target";

/// A target that is to be made, checked as far as that can be without making it.
pub struct New {
    image: NewImage,
    given: Given,
    /// The backing image that it is to have.
    pub backing: Option<String>,
    takes_compressed: bool,
}

/// Looks at what the target is to be.
///
/// # Errors
/// There is no such format, it makes no images, or an option is not for it.
pub async fn prepare(tool: &Tool<'_>, plan: &ConvertPlan, length: u64) -> Result<New, Failure> {
    let drivers = tool.graph().ask(ListDrivers { read_only: false }).await?;
    let mut formats = drivers.iter();
    let format = formats
        .find(|driver| driver.name == plan.format)
        .ok_or_else(|| Failure::new(format!("Unknown file format '{}'", plan.format)))?;
    let (protocol, _) = protocol_of(&plan.target);
    let mut protocols = drivers.iter();
    let protocol = protocols
        .find(|driver| driver.name == protocol && driver.is_protocol)
        .ok_or_else(|| Failure::new(format!("Unknown protocol '{protocol}'")))?;
    for (what, driver) in [("Format", format), ("Protocol", protocol)] {
        if !driver.creates && driver.name != "raw" {
            let text = format!("{what} driver '{}' does not support image creation", driver.name);
            return Err(Failure::new(text));
        }
    }
    let comma = if plan.options.is_empty() { "" } else { "," };
    let image = NewImage {
        filename: plan.target.clone(),
        format: plan.format.clone(),
        base: plan.backing.clone(),
        base_format: plan.backing_format.clone(),
        // The disk is as long as the sources, whatever is said of it: of two options of a name the last one counts.
        options: format!("{}{comma}size={length}", plan.options),
        size: None,
        flags: OpenFlags::NO_BACKING,
        quiet: true,
    };
    let given = Given::new(&image)?;
    let backing = given.get("backing_file").map(str::to_owned);
    super::check_backing(plan, backing.as_deref())?;
    if backing.is_some() && given.get("backing_fmt").is_none() {
        return Err(Failure::new(
            "Use of backing file requires explicit backing format",
        ));
    }
    Ok(New {
        takes_compressed: plan.format != "raw" && !format.is_protocol,
        backing,
        given,
        image,
    })
}

impl New {
    /// Refuses what compression cannot go with.
    ///
    /// # Errors
    /// Says what that is.
    pub fn check_compression(&self) -> Result<(), Failure> {
        let given = |name| self.given.get(name);
        let encrypts = given("encryption") == Some("on") || given("encrypt.format").is_some();
        let allocates = given("preallocation").is_some_and(|mode| mode != "off");
        let text = if !self.takes_compressed {
            "Compression not supported for this file format"
        } else if encrypts {
            "Compression and encryption not supported at the same time"
        } else if allocates {
            "Compression and preallocation not supported at the same time"
        } else {
            return Ok(());
        };
        Err(Failure::new(text))
    }

    /// The options of the new image that are needed to open it.
    fn secrets(&self) -> Vec<(String, Value)> {
        let names = [format!("encrypt.{SECRET}"), SECRET.to_owned()];
        let given = names.into_iter().filter_map(|name| {
            let value = self.given.get(&name)?.into();
            Some((name, value))
        });
        given.collect()
    }
}

/// Makes the target, if it is to be made, and opens it.
///
/// # Errors
/// It cannot be made or opened.
pub async fn open(
    tool: &Tool<'_>,
    plan: &ConvertPlan,
    new: Option<New>,
) -> Result<(Client, NodeFacts), Failure> {
    let (mut flags, writes_through) = plan.target_cache()?;
    flags |= OpenFlags::RDWR;
    flags.set(OpenFlags::UNMAP, plan.least_zeroes > 0);
    let mut secrets = Vec::new();
    if let Some(new) = new {
        secrets = new.secrets();
        let told = format!("{}: error while converting {}", plan.target, plan.format);
        let made = tool.graph().create_image(new.image).await;
        made.map_err(|error| Failure::from(error).within(&told))?;
    }
    let name = ImageName {
        name: plan.target.clone(),
        format: (!plan.format.is_empty()).then(|| plan.format.clone()),
        is_options: plan.target_is_options,
        flags,
        writes_through,
        force_share: false,
    };
    let mut image = name.to_open(tool.program())?;
    image.options.extend(secrets);
    let user = RootUser::Embedder(tool.program().0.to_owned());
    let told = format!("Could not open '{}'", plan.target);
    let client = tool.graph().open_held(image, user).await;
    let client = client.map_err(|error| Failure::from(error).within(&told))?;
    let facts = tool.graph().ask(FindRoot(client.root())).await?;
    give_thread(tool, &facts.name).await?;
    Ok((client, facts))
}

/// Gives the target an iothread of its own, so that it is written while the sources are read.
async fn give_thread(tool: &Tool<'_>, node: &str) -> Result<(), Failure> {
    let graph = tool.graph();
    graph.ask(AddIothread(IothreadOptions::named(IOTHREAD))).await?;
    let moved = graph.ask(SetIothread {
        node_name: node.to_owned(),
        iothread: Some(IOTHREAD.to_owned()),
        force: true,
    });
    // What must stay where it is is copied all the same.
    drop(moved.await);
    Ok(())
}

/// How long the backing image of a node is, if it has one.
pub async fn backing_length(tool: &Tool<'_>, node: &str) -> Option<u64> {
    let backing = backing_of(tool, node).await.ok()??;
    let facts = tool.graph().node(backing).await.ok()?;
    Some(facts.size)
}
