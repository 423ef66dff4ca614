//! One image served to NBD clients, until the last has gone or a signal comes.

use super::options::{DEFAULT_HOST, DEFAULT_PORT, Plan};
use crate::cli::background::Background;
use crate::cli::pidfile::Pidfile;
use crate::cli::signals::Signals;
use crate::cli::tool::{Failure, ImageName, Tool, warn_of_raw};
use crate::socket::activation;
use millpond_messages::OpenFlags;
use millpond_messages::graph::{AddNode, FindRoot, Options, RootUser};
use millpond_messages::qapi::{
    BlockDirtyBitmapOrStr, BlockExportKind, BlockExportOptions, FdSocketAddress, InetSocketAddress,
    NbdExportOptions, NbdServerOptions, QCryptoTLSCredsEndpoint, SocketAddress, UnixSocketAddress,
};
use serde_json::json;
use std::process::ExitCode;

/// The id of the export.
const EXPORT: &str = "qemu-nbd";
/// The node that shows the image from an offset on.
const BEHIND_OFFSET: &str = "from-offset";

/// Serves an image to its end.
///
/// # Errors
/// In `qemu-nbd`'s words: it cannot listen, or the image cannot be opened or shown so.
pub async fn serve(
    tool: &Tool<'_>,
    plan: &Plan,
    image: &str,
    background: Option<Background>,
) -> Result<ExitCode, Failure> {
    let mut signals =
        Signals::catch().map_err(|error| Failure::new(format!("signals cannot be caught: {error}")))?;
    let exports = tool.daemon().exports();
    // Who connects as soon as the server listens must find the export.
    exports.hold_clients(true);
    check_credentials(tool, plan)?;
    exports.start_server(&server_options(plan)?).await?;
    let node = open(tool, plan, image).await?;
    exports.add(&export_options(plan, node)).await?;
    // The file outlives the nodes, so that whoever waits for it to go finds everything flushed.
    let _pidfile = plan
        .pid_file
        .as_deref()
        .map(Pidfile::write)
        .transpose()
        .map_err(Failure::new)?;
    if let Some(background) = background {
        background
            .detach_here()
            .map_err(|error| Failure::new(format!("Failed to daemonize: {error}")))?;
    }
    exports.hold_clients(false);
    tokio::select! {
        () = signals.next() => {}
        () = exports.left_by_served(), if !plan.persistent => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether the credentials are there, and a server's.
fn check_credentials(tool: &Tool<'_>, plan: &Plan) -> Result<(), Failure> {
    let Some(id) = &plan.tls_creds else {
        return Ok(());
    };
    let found = tool
        .daemon()
        .site()
        .tls
        .credentials_for(id, QCryptoTLSCredsEndpoint::Server);
    found
        .map(drop)
        .map_err(|error| Failure::from(error).within("Failed to get TLS creds"))
}

fn server_options(plan: &Plan) -> Result<NbdServerOptions, Failure> {
    Ok(NbdServerOptions {
        handshake_max_seconds: Some(plan.handshake_limit),
        tls_creds: plan.tls_creds.clone(),
        tls_authz: plan.tls_authz.clone(),
        max_connections: Some(plan.shared),
        addr: match passed(plan)? {
            Some(address) => address,
            None => address(plan),
        },
    })
}

/// The address that the options name: to listen at, or to connect to.
pub fn address(plan: &Plan) -> SocketAddress {
    match &plan.socket {
        Some(path) => SocketAddress::Unix(UnixSocketAddress {
            path: path.clone(),
            ..UnixSocketAddress::default()
        }),
        None => SocketAddress::Inet(InetSocketAddress {
            host: plan.bind.clone().unwrap_or_else(|| DEFAULT_HOST.to_owned()),
            port: plan.port.clone().unwrap_or_else(|| DEFAULT_PORT.to_owned()),
            ..InetSocketAddress::default()
        }),
    }
}

/// The socket that a service manager has passed, if it has passed one.
fn passed(plan: &Plan) -> Result<Option<SocketAddress>, Failure> {
    let why = match (activation::all(), &plan.socket, &plan.bind, &plan.port) {
        ([], ..) => return Ok(None),
        (_, Some(_), ..) => "Unix socket can't be set when using socket activation",
        (_, _, Some(_), _) => "The interface can't be set when using socket activation",
        (_, _, _, Some(_)) => "TCP port number can't be set when using socket activation",
        ([one], ..) => {
            return Ok(Some(SocketAddress::Fd(FdSocketAddress {
                name: one.number.to_string(),
            })));
        }
        _ => "qemu-nbd does not support socket activation with LISTEN_FDS > 1",
    };
    Err(Failure::new(why))
}

/// Opens the image as it is to be shown; answers the name of its node, which is held until the end.
async fn open(tool: &Tool<'_>, plan: &Plan, image: &str) -> Result<String, Failure> {
    let name = ImageName {
        name: image.to_owned(),
        format: plan.format.clone(),
        is_options: plan.is_options,
        flags: plan.flags,
        ..ImageName::default()
    };
    let mut opening = name.to_open(tool.program())?;
    if let Some(mode) = &plan.detect_zeroes {
        let mode = mode.as_str().into();
        opening.options.insert("detect-zeroes".to_owned(), mode);
    }
    let is_guess = !plan.is_options && plan.format.is_none() && plan.flags.contains(OpenFlags::RDWR);
    let user = RootUser::Embedder(tool.program().0.to_owned());
    let opened = tool.graph().open_held(opening, user).await;
    let client =
        opened.map_err(|error| Failure::from(error).within(&format!("Failed to blk_new_open '{image}'")))?;
    if is_guess {
        warn_of_raw(tool.graph(), &client).await?;
    }
    let node = tool.graph().ask(FindRoot(client.root())).await?.name;
    if let Some(snapshot) = &plan.snapshot {
        snapshot.show(tool, &node).await?;
    }
    if plan.offset == 0 {
        return Ok(node);
    }
    if i64::try_from(plan.offset).is_err() {
        let offset = plan.offset.cast_signed();
        let why = format!("Value '{offset}' is out of range for parameter 'offset'");
        return Err(Failure::new(why));
    }
    let mut options = Options::new();
    options.insert("driver".to_owned(), json!("raw"));
    options.insert("node-name".to_owned(), json!(BEHIND_OFFSET));
    options.insert("file".to_owned(), json!(node));
    options.insert("offset".to_owned(), json!(plan.offset));
    let is_writable = plan.flags.contains(OpenFlags::RDWR);
    options.insert("read-only".to_owned(), json!(!is_writable));
    tool.graph().ask(AddNode(options)).await?;
    Ok(BEHIND_OFFSET.to_owned())
}

fn export_options(plan: &Plan, node_name: String) -> BlockExportOptions {
    let bitmaps = plan
        .bitmap
        .clone()
        .map(|name| vec![BlockDirtyBitmapOrStr::Local(name)]);
    BlockExportOptions {
        kind: BlockExportKind::Nbd(NbdExportOptions {
            name: Some(plan.export_name.clone()),
            description: plan.description.clone(),
            bitmaps,
            allocation_depth: Some(plan.allocation_depth),
        }),
        writable: Some(plan.flags.contains(OpenFlags::RDWR)),
        writethrough: Some(plan.writethrough),
        ..BlockExportOptions::nbd(EXPORT, &node_name, &plan.export_name)
    }
}
