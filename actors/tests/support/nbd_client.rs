//! A client of an NBD server in this process, which does everything by hand.

use std::path::Path;

use millpond_messages::nbd::{MAGIC_OPTION, option, reply};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// A client of the server.
pub struct Client(UnixStream);

impl Client {
    /// Connects, and chooses the export `disk` after the options given.
    pub async fn connect(path: &Path, options: &[(u32, &[u8])]) -> Self {
        let mut client = Self(UnixStream::connect(path).await.unwrap());
        client.take(18).await;
        client.send(&3_u32.to_be_bytes()).await;
        for (option, payload) in options {
            client.ask(*option, payload).await;
        }
        client.ask(option::GO, b"\0\0\0\x04disk\0\0").await;
        client
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    pub async fn take(&mut self, n: usize) -> Vec<u8> {
        let mut bytes = vec![0; n];
        self.0.read_exact(&mut bytes).await.unwrap();
        bytes
    }

    /// Asks for an option, which is acknowledged.
    pub async fn ask(&mut self, option: u32, payload: &[u8]) {
        self.send(&asked(option, payload)).await;
        loop {
            let header = self.take(20).await;
            let field = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
            self.take(field(16) as usize).await;
            match field(12) {
                reply::ACK => return,
                refused if refused >> 31 == 1 => panic!("option {option} is refused: {refused:x}"),
                _ => {}
            }
        }
    }
}

/// What asks for an option.
pub fn asked(option: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap();
    let header = [MAGIC_OPTION.to_be_bytes().as_slice(), &option.to_be_bytes()].concat();
    [header.as_slice(), &length.to_be_bytes(), payload].concat()
}

/// The header of a request of 1000 bytes at the export's beginning.
pub fn request(command: u16) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend([0; 2]);
    bytes.extend(command.to_be_bytes());
    bytes.extend(7_u64.to_be_bytes());
    bytes.extend(0_u64.to_be_bytes());
    bytes.extend(1000_u32.to_be_bytes());
    bytes
}

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
