//! TLS in the handshake: who must begin it, and what is left of what was agreed on before.

use super::option::Step;
use super::{Drop, Handshake, Progress, Stepped, answer};
use millpond_messages::nbd::{Mode, option, reply};

/// What the server makes of a client that wants to go on inside TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tls {
    /// The server has no credentials: it refuses.
    #[default]
    Unavailable,
    /// It has some: until the client begins TLS, it takes nothing else.
    Required,
    /// The client speaks inside TLS already.
    Established,
}

impl Handshake {
    /// Sees to an option, with `length` bytes of payload, of a client that has to begin TLS first.
    pub(super) fn before_tls(&mut self, option: u32, length: u32, out: &mut Vec<u8>) -> Stepped {
        let text = format!("Option 0x{option:x} not permitted before TLS");
        self.step = match option {
            option::STARTTLS if length == 0 => {
                answer::ack(out, option);
                self.restart_inside_tls();
                return Ok(Progress::StartTls);
            }
            option::STARTTLS => Step::unexpected_length(option, length),
            // There is no other way to refuse this one.
            option::EXPORT_NAME => return Err(Drop(text)),
            option::ABORT => {
                answer::error(out, option, reply::ERR_TLS_REQD, &text);
                self.aborted = true;
                return Err(Drop("the client ended the handshake".to_owned()));
            }
            _ => Step::refuse(option, length, reply::ERR_TLS_REQD, text),
        };
        Ok(Progress::Continue)
    }

    /// The refusal of a STARTTLS that cannot be, or that was.
    pub(super) fn refuse_tls(&self) -> Step {
        let (kind, text) = match self.tls {
            Tls::Unavailable | Tls::Required => (reply::ERR_POLICY, "TLS not configured"),
            Tls::Established => (reply::ERR_INVALID, "TLS already enabled"),
        };
        Step::refuse(option::STARTTLS, 0, kind, text)
    }

    /// Forgets all that was agreed on in the clear, where anybody on the way could have had a say: the client begins again
    /// with its first option. Only its flags stay, which it does not send again.
    ///
    /// Each field is named, so that a new one cannot be forgotten.
    fn restart_inside_tls(&mut self) {
        *self = Self {
            step: Step::Header,
            partial: Vec::new(),
            flags: self.flags,
            mode: Mode::Simple,
            contexts: None,
            missing: None,
            aborted: false,
            tls: Tls::Established,
        };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::export::nbd::handshake::Contexts;
    use crate::export::nbd::offer::Offer;
    use millpond_messages::nbd::{HandshakeFlags, MAGIC_OPTION};

    fn offer() -> Arc<Offer> {
        Arc::new(Offer {
            name: "disk".to_owned(),
            description: None,
            size: 1 << 20,
            flags: Offer::base_flags(true, true),
            request_alignment: 1,
            max_transfer: 0,
            allocation_depth: true,
            bitmaps: Vec::new(),
        })
    }

    fn option_bytes(option: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = MAGIC_OPTION.to_be_bytes().to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend((payload.len() as u32).to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    /// A handshake whose client has said which flags it has.
    fn begun(tls: Tls) -> Handshake {
        let mut out = Vec::new();
        let mut handshake = Handshake::begin(tls, &mut out);
        let flags = HandshakeFlags::all().bits().to_be_bytes();
        let (used, progress) = handshake.feed(&flags, [].as_slice(), &mut out);
        assert!(used == 4 && matches!(progress, Progress::Continue));
        handshake
    }

    /// What an option is answered by: the kind of the one reply and its text, and where that led.
    fn answered(handshake: &mut Handshake, option: u32, payload: &[u8]) -> (u32, String, Progress) {
        let (mut out, input) = (Vec::new(), option_bytes(option, payload));
        let (used, progress) = handshake.feed(&input, [offer()].as_slice(), &mut out);
        assert!(used == input.len() || option == option::ABORT);
        let kind = out
            .get(12..16)
            .map_or(0, |kind| u32::from_be_bytes(kind.try_into().unwrap()));
        let text = String::from_utf8_lossy(out.get(20..).unwrap_or_default()).into_owned();
        (kind, text, progress)
    }

    /// The texts and what follows them are those of QEMU's server with and without credentials.
    #[test]
    fn only_tls_may_be_begun_before_tls() {
        let mut handshake = begun(Tls::Required);
        for option in [
            option::STRUCTURED_REPLY,
            option::LIST,
            option::INFO,
            option::GO,
            99,
        ] {
            let (kind, text, progress) = answered(&mut handshake, option, b"xyz");
            assert_eq!(kind, reply::ERR_TLS_REQD);
            assert_eq!(text, format!("Option 0x{option:x} not permitted before TLS"));
            assert!(matches!(progress, Progress::Continue));
        }
        let (kind, _, progress) = answered(&mut handshake, option::STARTTLS, b"x");
        assert!(kind == reply::ERR_INVALID && matches!(progress, Progress::Continue));
        let (_, _, progress) = answered(&mut begun(Tls::Required), option::EXPORT_NAME, b"");
        assert!(matches!(progress, Progress::Close(why) if why == "Option 0x1 not permitted before TLS"));
        let (kind, _, progress) = answered(&mut begun(Tls::Required), option::ABORT, b"");
        assert!(kind == reply::ERR_TLS_REQD && matches!(progress, Progress::Close(_)));
        let (kind, _, progress) = answered(&mut handshake, option::STARTTLS, b"");
        assert!(kind == reply::ACK && matches!(progress, Progress::StartTls));
        let (kind, text, _) = answered(&mut handshake, option::STARTTLS, b"");
        assert_eq!((kind, text.as_str()), (reply::ERR_INVALID, "TLS already enabled"));
    }

    #[test]
    fn without_credentials_tls_is_refused_and_the_client_goes_on() {
        let mut handshake = begun(Tls::Unavailable);
        let (kind, text, _) = answered(&mut handshake, option::STARTTLS, b"");
        assert_eq!((kind, text.as_str()), (reply::ERR_POLICY, "TLS not configured"));
        let (kind, ..) = answered(&mut handshake, option::STRUCTURED_REPLY, b"");
        assert_eq!(kind, reply::ACK);
    }

    #[test]
    fn nothing_that_was_agreed_on_in_the_clear_holds_inside_tls() {
        let mut handshake = Handshake {
            step: Step::ExportName(7),
            partial: b"partial".to_vec(),
            flags: HandshakeFlags::all(),
            mode: Mode::Extended,
            contexts: Some((offer(), Contexts::default())),
            missing: Some("export 'x' not present".to_owned()),
            aborted: true,
            tls: Tls::Required,
        };
        handshake.restart_inside_tls();
        let Handshake {
            step,
            partial,
            flags,
            mode,
            contexts,
            missing,
            aborted,
            tls,
        } = &handshake;
        assert!(matches!(step, Step::Header) && partial.is_empty() && contexts.is_none());
        assert!(missing.is_none() && !aborted);
        assert_eq!((*mode, *tls), (Mode::Simple, Tls::Established));
        assert_eq!(
            *flags,
            HandshakeFlags::all(),
            "the client does not send them again"
        );
        let (kind, ..) = answered(&mut handshake, option::SET_META_CONTEXT, b"");
        assert_eq!(
            kind,
            reply::ERR_INVALID,
            "structured replies are to be agreed on again"
        );
        let (kind, ..) = answered(&mut handshake, option::STRUCTURED_REPLY, b"");
        assert_eq!(kind, reply::ACK);
    }
}
