//! How replies to options are written.

use crate::export::nbd::handshake::{Contexts, Negotiated};
use crate::export::nbd::offer::Offer;
use millpond_messages::nbd::{
    MAGIC_OPTION_REPLY, MAX_PAYLOAD, MAX_STRING, Mode, PADDING, TransmissionFlags, context, info, option,
    reply,
};

/// Writes a reply of `kind` to `option` with the parts of its payload.
fn answer(out: &mut Vec<u8>, option: u32, kind: u32, payload: &[&[u8]]) {
    // Payloads are made here from strings of at most MAX_STRING bytes.
    let length = payload.iter().map(|part| part.len()).sum::<usize>() as u32;
    out.extend_from_slice(&MAGIC_OPTION_REPLY.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
    payload.iter().for_each(|part| out.extend_from_slice(part));
}

/// The part of `text` that fits a string of the protocol.
fn clip(text: &str) -> &[u8] {
    let bytes = text.as_bytes();
    bytes.get(..MAX_STRING).unwrap_or(bytes)
}

/// Ends an option with success.
pub(super) fn ack(out: &mut Vec<u8>, option: u32) {
    answer(out, option, reply::ACK, &[]);
}

/// Ends an option with an error and a text for people.
pub(super) fn error(out: &mut Vec<u8>, option: u32, kind: u32, text: &str) {
    answer(out, option, kind, &[clip(text)]);
}

/// One line of LIST.
pub(super) fn server(out: &mut Vec<u8>, offer: &Offer) {
    let name = clip(&offer.name);
    let description = clip(offer.description.as_deref().unwrap_or_default());
    answer(
        out,
        option::LIST,
        reply::SERVER,
        &[&(name.len() as u32).to_be_bytes(), name, description],
    );
}

/// A metadata context, by name and the id that stands for it from now on.
pub(super) fn meta_context(out: &mut Vec<u8>, option: u32, id: u32, name: &str) {
    answer(out, option, reply::META_CONTEXT, &[&id.to_be_bytes(), clip(name)]);
}

/// All contexts of `contexts`; LIST gives none an id.
pub(super) fn meta_contexts(out: &mut Vec<u8>, option: u32, contexts: Contexts, offer: &Offer) {
    let id = |id| {
        if option == option::LIST_META_CONTEXT {
            0
        } else {
            id
        }
    };
    if contexts.base_allocation {
        meta_context(
            out,
            option,
            id(context::BASE_ALLOCATION),
            context::BASE_ALLOCATION_NAME,
        );
    }
    if contexts.allocation_depth {
        meta_context(
            out,
            option,
            id(context::ALLOCATION_DEPTH),
            context::ALLOCATION_DEPTH_NAME,
        );
    }
    for (place, bitmap) in (0..).zip(&offer.bitmaps) {
        if contexts.has_bitmap(place as usize) {
            let name = format!("{}{}", context::DIRTY_BITMAPS_NAME, bitmap.name());
            meta_context(out, option, id(context::DIRTY_BITMAPS + place), &name);
        }
    }
    ack(out, option);
}

/// The transmission flags that one client is told.
fn client_flags(offer: &Offer, mode: Mode, status_payload: bool) -> TransmissionFlags {
    let mut flags = offer.flags;
    if mode >= Mode::Structured {
        flags |= TransmissionFlags::SEND_DF;
    }
    if mode >= Mode::Extended && status_payload {
        flags |= TransmissionFlags::BLOCK_STAT_PAYLOAD;
    }
    flags
}

/// The reply to EXPORT_NAME, which has no header.
pub(super) fn export_name(out: &mut Vec<u8>, offer: &Offer, mode: Mode, no_zeroes: bool) {
    out.extend_from_slice(&offer.size.to_be_bytes());
    out.extend_from_slice(&client_flags(offer, mode, false).bits().to_be_bytes());
    if !no_zeroes {
        out.resize(out.len() + PADDING, 0);
    }
}

/// What an INFO or GO wants to know.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Wanted {
    pub(super) name: bool,
    pub(super) block_size: bool,
}

/// All that INFO and GO tell, before they end, of an export that is chosen or may be.
pub(super) fn information(out: &mut Vec<u8>, option: u32, wanted: Wanted, chosen: &Negotiated) {
    let Negotiated {
        export: offer,
        mode,
        contexts,
    } = chosen;
    if wanted.name {
        answer(
            out,
            option,
            reply::INFO,
            &[&info::NAME.to_be_bytes(), clip(&offer.name)],
        );
    }
    if let Some(description) = &offer.description {
        answer(
            out,
            option,
            reply::INFO,
            &[&info::DESCRIPTION.to_be_bytes(), clip(description)],
        );
    }
    // A client that chose the export without asking for sizes may send any: the node takes care of them.
    let asked = option == option::INFO || wanted.block_size;
    let minimum = if asked { offer.request_alignment } else { 1 };
    let maximum = match offer.max_transfer {
        0 => MAX_PAYLOAD,
        limit => limit.min(MAX_PAYLOAD),
    };
    let sizes = [minimum, minimum.max(4096), maximum].map(u32::to_be_bytes);
    answer(
        out,
        option,
        reply::INFO,
        &[&info::BLOCK_SIZE.to_be_bytes(), sizes.as_flattened()],
    );
    let flags = client_flags(offer, *mode, option == option::INFO || contexts.count() > 0);
    answer(
        out,
        option,
        reply::INFO,
        &[
            &info::EXPORT.to_be_bytes(),
            &offer.size.to_be_bytes(),
            &flags.bits().to_be_bytes(),
        ],
    );
}
