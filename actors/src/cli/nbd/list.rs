//! `--list`: what the exports of a server are.

use super::negotiate::{self, ListError, Listed};
use super::options::{DEFAULT_HOST, DEFAULT_PORT, Plan};
use crate::cli::tool::{Failure, print};
use crate::tls::TlsRegistry;
use millpond_drivers::tls::ClientCredentials;
use millpond_messages::IoError;
use millpond_messages::nbd::TransmissionFlags;
use millpond_messages::qapi::schema::QCryptoTLSCredsEndpoint;
use std::fmt::Write;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

/// The names of the flags, in the order of their bits.
const FLAGS: [(TransmissionFlags, &str); 10] = [
    (TransmissionFlags::READ_ONLY, "readonly"),
    (TransmissionFlags::SEND_FLUSH, "flush"),
    (TransmissionFlags::SEND_FUA, "fua"),
    (TransmissionFlags::SEND_TRIM, "trim"),
    (TransmissionFlags::SEND_WRITE_ZEROES, "zeroes"),
    (TransmissionFlags::SEND_DF, "df"),
    (TransmissionFlags::CAN_MULTI_CONN, "multi"),
    (TransmissionFlags::SEND_CACHE, "cache"),
    (TransmissionFlags::SEND_FAST_ZERO, "fast-zero"),
    (TransmissionFlags::BLOCK_STAT_PAYLOAD, "block-status-payload"),
];

/// Connects to a server, and prints what it offers. `credentials` are those that the command line has made.
///
/// # Errors
/// In `qemu-nbd`'s words: there is no server, or it does not do as the protocol says.
pub fn list(plan: &Plan, credentials: Option<&TlsRegistry>) -> Result<ExitCode, Failure> {
    let tls = match plan.tls_creds.as_deref().zip(credentials) {
        Some((id, registry)) => {
            let found = registry.credentials_for(id, QCryptoTLSCredsEndpoint::Client);
            Some(found.map_err(|error| Failure::from(error).within("Failed to get TLS creds"))?)
        }
        None => None,
    };
    let hostname = match (&plan.tls_hostname, &plan.socket) {
        (None, None) => Some(plan.bind.as_deref().unwrap_or(DEFAULT_HOST)),
        (hostname, _) => hostname.as_deref(),
    };
    let begin = tls.map(|credentials| move || credentials.connect(hostname));
    let refused = |place: &str, error: std::io::Error| {
        Failure::new(format!(
            "Failed to connect to '{place}': {}",
            IoError::from(error)
        ))
    };
    let listed = match &plan.socket {
        Some(path) => {
            let stream = UnixStream::connect(path).map_err(|error| refused(path, error))?;
            negotiate::exports(stream, begin)
        }
        None => {
            let host = plan.bind.as_deref().unwrap_or(DEFAULT_HOST);
            let port = plan.port.as_deref().unwrap_or(DEFAULT_PORT);
            let place = format!("{host}:{port}");
            let addresses = place
                .to_socket_addrs()
                .map_err(|error| unresolved(&place, &error))?;
            let addresses: Vec<_> = addresses.collect();
            let stream = TcpStream::connect(&*addresses).map_err(|error| refused(&place, error))?;
            negotiate::exports(stream, begin)
        }
    };
    let listed = listed.map_err(|error| {
        let failure = Failure::new(error.to_string());
        match error {
            ListError::Refused { hint: Some(hint), .. } => failure.with_hint(hint),
            _ => failure,
        }
    })?;
    print(&shown(&listed));
    Ok(ExitCode::SUCCESS)
}

/// What is told of a host that has no address.
fn unresolved(place: &str, error: &std::io::Error) -> Failure {
    let why = error.to_string();
    let why = why
        .strip_prefix("failed to lookup address information: ")
        .unwrap_or(&why);
    Failure::new(format!("address resolution failed for {place}: {why}"))
}

fn shown(listed: &[Listed]) -> String {
    let mut text = format!("exports available: {}\n", listed.len());
    for export in listed {
        // Writing to a string does not fail.
        let _ = writeln!(text, " export: '{}'", export.name);
        if let Some(description) = export.description.as_deref().filter(|text| !text.is_empty()) {
            let _ = writeln!(text, "  description: {description}");
        }
        if export.flags.contains(TransmissionFlags::HAS_FLAGS) {
            let _ = write!(
                text,
                "  size:  {}\n  flags: 0x{:x} (",
                export.size,
                export.flags.bits()
            );
            for (flag, name) in FLAGS {
                if export.flags.contains(flag) {
                    let _ = write!(text, " {name}");
                }
            }
            text.push_str(" )\n");
        }
        if let Some([least, preferred, most]) = export.blocks {
            let _ = write!(
                text,
                "  min block: {least}\n  opt block: {preferred}\n  max block: {most}\n"
            );
        }
        let bits = if export.is_extended { 64 } else { 32 };
        let _ = writeln!(text, "  transaction size: {bits}-bit");
        if !export.contexts.is_empty() {
            let _ = writeln!(text, "  available meta contexts: {}", export.contexts.len());
            for context in &export.contexts {
                let _ = writeln!(text, "   {context}");
            }
        }
    }
    text
}
