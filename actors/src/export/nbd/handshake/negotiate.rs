//! Drives a handshake over a connection, on the control thread.

use std::io;

use super::{Handshake, Negotiated, Progress};
use crate::export::nbd::offer::Catalogue;
use crate::export::nbd::transport::Channel;

/// Bytes received at a time. Options are short, and what follows the last one is carried to the iothread.
const RECEIVE: usize = 4096;

/// How a handshake failed.
#[derive(Debug, thiserror::Error)]
pub(in crate::export::nbd) enum Failed {
    /// The client broke the rules, or ended it.
    #[error("{0}")]
    Client(String),
    /// The client left before the handshake was over.
    #[error("the client went away")]
    Gone,
    /// The socket failed during the handshake.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// A handshake that chose an export.
pub(in crate::export::nbd) struct Chosen {
    /// What was agreed on.
    pub(in crate::export::nbd) negotiated: Negotiated,
    /// What to send before the first reply.
    pub(in crate::export::nbd) output: Vec<u8>,
    /// What the client sent already.
    pub(in crate::export::nbd) received: Vec<u8>,
}

/// Negotiates until the client has chosen an export. The last output is left to the caller, who first makes the choice
/// known.
pub(in crate::export::nbd) async fn negotiate(
    channel: &mut impl Channel,
    exports: &(impl Catalogue + ?Sized),
) -> Result<Chosen, Failed> {
    let mut output = Vec::new();
    let mut handshake = Handshake::begin(channel.tls(), &mut output);
    let mut input = vec![0; RECEIVE];
    loop {
        send(channel, &mut output).await?;
        let n = channel.receive(&mut input).await?;
        if n == 0 {
            return Err(left(&handshake));
        }
        let mut rest = input.get(..n).unwrap_or_default();
        while !rest.is_empty() {
            let (used, progress) = handshake.feed(rest, exports, &mut output);
            rest = rest.get(used..).unwrap_or_default();
            match progress {
                Progress::Continue => {}
                Progress::Chosen(negotiated) => {
                    return Ok(Chosen {
                        negotiated,
                        output,
                        received: rest.to_vec(),
                    });
                }
                Progress::StartTls if rest.is_empty() => {
                    send(channel, &mut output).await?;
                    channel.start_tls().await?;
                }
                // Anybody on the way could have put it there, to be taken for what came inside TLS.
                Progress::StartTls => {
                    return Err(Failed::Client("data in the clear behind STARTTLS".to_owned()));
                }
                Progress::Close(why) => {
                    send(channel, &mut output).await?;
                    return Err(if handshake.was_aborted() {
                        left(&handshake)
                    } else {
                        Failed::Client(why)
                    });
                }
            }
            if !rest.is_empty() {
                send(channel, &mut output).await?;
            }
        }
    }
}

/// Sends all of `output`, which is empty then.
async fn send(channel: &mut impl Channel, output: &mut Vec<u8>) -> io::Result<()> {
    channel.send(output).await?;
    output.clear();
    Ok(())
}

/// Why a client that has gone went, as far as that can be known.
fn left(handshake: &Handshake) -> Failed {
    match handshake.missing() {
        Some(missing) => Failed::Client(missing.to_owned()),
        None => Failed::Gone,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Arc;

    use futures_util::FutureExt;
    use millpond_ring::Fd;

    use super::*;
    use crate::export::nbd::handshake::Tls;
    use crate::export::nbd::offer::Offer;
    use millpond_messages::nbd::Mode;
    use millpond_messages::nbd::{MAGIC_OPTION, option, reply};

    /// A client whose bytes are written down before. Inside what stands for TLS each byte is turned over.
    #[derive(Default)]
    struct Script {
        receives: VecDeque<Vec<u8>>,
        /// What was sent in the clear, and inside TLS.
        sent: [Vec<u8>; 2],
        is_inside: bool,
    }

    impl Channel for Script {
        type Link = Fd;

        fn tls(&self) -> Tls {
            Tls::Required
        }

        async fn start_tls(&mut self) -> io::Result<()> {
            assert!(!self.is_inside);
            self.is_inside = true;
            Ok(())
        }

        async fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let bytes = self.receives.pop_front().unwrap_or_default();
            let turned = bytes
                .iter()
                .map(|byte| if self.is_inside { !byte } else { *byte });
            buffer.iter_mut().zip(turned).for_each(|(to, byte)| *to = byte);
            Ok(bytes.len())
        }

        async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
            self.sent[usize::from(self.is_inside)].extend_from_slice(bytes);
            Ok(())
        }

        fn leave(self) -> io::Result<Fd> {
            unreachable!("a script has no socket")
        }
    }

    fn exports() -> [Arc<Offer>; 1] {
        [Arc::new(Offer {
            name: String::new(),
            description: None,
            size: 1 << 20,
            flags: Offer::base_flags(true, true),
            request_alignment: 1,
            max_transfer: 0,
            allocation_depth: false,
            bitmaps: Vec::new(),
        })]
    }

    fn header(option: u32, length: u32) -> Vec<u8> {
        let mut bytes = MAGIC_OPTION.to_be_bytes().to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes
    }

    /// Flags of the client, an option that TLS must come before, and STARTTLS.
    fn in_the_clear() -> Vec<u8> {
        let mut bytes = 3_u32.to_be_bytes().to_vec();
        bytes.extend(header(option::STRUCTURED_REPLY, 0));
        bytes.extend(header(option::STARTTLS, 0));
        bytes
    }

    #[test]
    fn a_handshake_goes_on_inside_tls_from_its_beginning() {
        let mut inside = header(option::GO, 6);
        inside.extend([0; 6]);
        inside.extend(b"request");
        let mut script = Script {
            receives: [in_the_clear(), inside.iter().map(|byte| !byte).collect()].into(),
            ..Script::default()
        };
        let chosen = negotiate(&mut script, exports().as_slice()).now_or_never();
        let chosen = chosen.unwrap().unwrap_or_else(|failed| panic!("{failed}"));
        assert_eq!(chosen.negotiated.mode, Mode::Simple, "nothing of before holds");
        assert_eq!(chosen.received, b"request");
        let [clear, inside] = &script.sent;
        let last_kind = clear.get(clear.len() - 8..clear.len() - 4);
        assert_eq!(last_kind.unwrap(), reply::ACK.to_be_bytes(), "told in the clear");
        assert!(inside.is_empty(), "the last output is the caller's");
    }

    #[test]
    fn bytes_in_the_clear_behind_starttls_are_not_taken_for_the_clients() {
        let mut injected = in_the_clear();
        injected.extend(header(option::STRUCTURED_REPLY, 0));
        let mut script = Script {
            receives: [injected].into(),
            ..Script::default()
        };
        let refused = negotiate(&mut script, exports().as_slice())
            .now_or_never()
            .unwrap();
        assert!(matches!(refused, Err(Failed::Client(why)) if why.contains("STARTTLS")));
        assert!(!script.is_inside);
    }
}
