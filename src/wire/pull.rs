//! Reading many blobs from nodes: one exchange for those that come from the same one.
//!
//! Decides: that bytes which do not have the expected length or digest are no copy, and that
//! their source hears of it.
//! Leaves to others: which source to ask and what to do with the bytes.

use std::collections::BTreeMap;
use std::io::BufReader;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::peer::{BlobReply, BlobRequest, Purpose};
use super::store::{Located, Target};
use super::{Frame, WireError, dial, read_frame, read_message, write_message};
use crate::types::{BlobId, Digest, Server};

/// Blobs asked for in one request.
pub const BLOBS_IN_REQUEST: usize = 64;
const CONNECT: Duration = Duration::from_millis(800);
/// A source without progress for so long has failed.
const STALL: Duration = Duration::from_secs(2);
const BUFFER: usize = 64 << 10;

/// What is wanted of a blob.
#[derive(Clone, Debug)]
pub struct Want {
    /// Its id.
    pub blob: BlobId,
    /// Length in bytes.
    pub bytes: u64,
    /// BLAKE3 of the bytes.
    pub digest: Digest,
    /// Who holds it.
    pub sources: Vec<Target>,
}

impl Want {
    /// The source to ask in attempt number `attempt`, never `me`. Different blobs
    /// start at different sources, so that no holder has to serve all.
    fn source(&self, attempt: usize, me: Option<&Server>) -> Option<SocketAddr> {
        let other = |source: &&Target| me.is_none_or(|me| source.server != *me);
        let others: Vec<&Target> = self.sources.iter().filter(other).collect();
        let place = (self.blob.counter as usize).wrapping_add(attempt);
        (attempt < others.len()).then(|| others[place % others.len()].addr)
    }
}

impl From<&Located> for Want {
    fn from(located: &Located) -> Want {
        Want {
            blob: located.blob,
            bytes: located.bytes,
            digest: located.digest,
            sources: located.sources.clone(),
        }
    }
}

/// Groups of wants, by number, that go to the same source in this attempt; none to `me`.
pub fn by_source(
    wants: &[Want],
    open: impl Iterator<Item = usize>,
    attempt: usize,
    me: Option<&Server>,
) -> BTreeMap<SocketAddr, Vec<usize>> {
    let mut groups: BTreeMap<SocketAddr, Vec<usize>> = BTreeMap::new();
    for number in open {
        if let Some(addr) = wants[number].source(attempt, me) {
            groups.entry(addr).or_default().push(number);
        }
    }
    groups
}

/// A connection to one source.
pub struct Source {
    reader: BufReader<TcpStream>,
}

/// Why a blob did not come.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The source does not have it; the connection goes on.
    #[error("the source refused: {0}")]
    Refused(String),
    /// The connection is of no more use.
    #[error("{0}")]
    Broken(#[from] WireError),
    /// The bytes are others than the wanted ones; the connection is of no more use.
    #[error("the source sent other bytes than were wanted")]
    Different,
    /// The bytes are as many as were wanted, but others. The source has been told to look at its
    /// copy; the connection goes on.
    #[error("the source's copy is corrupt, or has become so on its way")]
    Corrupt,
    /// The sink refused; the connection is of no more use.
    #[error("{0}")]
    Sink(String),
}

impl PullError {
    /// Whether the connection's next answer can still be read.
    pub fn goes_on(&self) -> bool {
        matches!(self, PullError::Refused(_) | PullError::Corrupt)
    }
}

impl Source {
    /// Connects to `addr`.
    pub fn open(addr: SocketAddr) -> Result<Source, WireError> {
        let stream = dial(addr, Purpose::Blobs, CONNECT, STALL)?;
        Ok(Source {
            reader: BufReader::with_capacity(BUFFER, stream),
        })
    }

    /// Asks for these blobs from their first byte on.
    pub fn request(&mut self, blobs: &[BlobId]) -> Result<(), WireError> {
        let list = blobs.iter().map(|blob| (*blob, 0)).collect();
        write_message(self.reader.get_mut(), &BlobRequest::Read(list))
    }

    /// Reads the next answer into `sink`: exactly the wanted bytes, or an error.
    pub fn receive(
        &mut self,
        want: &Want,
        mut sink: impl FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<(), PullError> {
        match read_message(&mut self.reader)? {
            BlobReply::Sending(bytes) if bytes == want.bytes => {}
            BlobReply::Sending(_) | BlobReply::Stored(_) => return Err(PullError::Different),
            BlobReply::Refused(reason) => return Err(PullError::Refused(reason)),
        }
        let mut hasher = blake3::Hasher::new();
        let mut left = want.bytes;
        while left > 0 {
            let Frame::Chunk(chunk) = read_frame(&mut self.reader)? else {
                return Err(PullError::Different);
            };
            if chunk.is_empty() || chunk.len() as u64 > left {
                return Err(PullError::Different);
            }
            left -= chunk.len() as u64;
            hasher.update(&chunk);
            sink(&chunk).map_err(PullError::Sink)?;
        }
        match *hasher.finalize().as_bytes() == want.digest.0 {
            true => Ok(()),
            false => {
                let complaint = BlobRequest::Check(vec![want.blob]);
                write_message(self.reader.get_mut(), &complaint)?;
                Err(PullError::Corrupt)
            }
        }
    }
}
