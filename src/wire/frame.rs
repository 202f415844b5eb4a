//! Frames and their codec. See the parent module for the format.

use std::io::{self, Read, Write};

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::datagram::Datagram;

/// First byte of every datagram and part of every [`super::peer::Hello`]; raised when the format changes.
pub const PROTOCOL_VERSION: u8 = 11;
/// Largest UDP payload, in bytes: fits every path with an MTU of 1,280.
pub const DATAGRAM_MAX: usize = 1200;
/// Largest frame payload, in bytes; a longer one ends the connection.
pub const FRAME_MAX: usize = 16 << 20;
/// Largest value in [`decode_large`], in bytes.
const LARGE_MAX: usize = 4 << 30;
/// Largest chunk of file bytes in one frame, in bytes.
pub const CHUNK_MAX: usize = 256 << 10;

const KIND_MESSAGE: u8 = 1;
const KIND_CHUNK: u8 = 2;
const HEADER: usize = 5;

/// Why bytes could not be read or written as a frame or datagram.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The connection failed or ended.
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    /// The bytes are no value of the expected type; nothing was changed.
    #[error("malformed message: {0}")]
    Malformed(String),
    /// More bytes than the limit; nothing was sent or accepted.
    #[error("message of {0} bytes is over the limit of {1}")]
    TooLarge(usize, usize),
    /// A frame kind that this version does not know, or not the one expected here.
    #[error("unexpected frame kind {0}")]
    Kind(u8),
    /// The other side speaks another version of the protocol.
    #[error("protocol version {0}, this node speaks {PROTOCOL_VERSION}")]
    Version(u8),
}

/// One frame as it was read.
#[derive(Debug)]
pub enum Frame {
    /// An encoded message; see [`decode`].
    Message(Vec<u8>),
    /// A run of a file's bytes.
    Chunk(Vec<u8>),
}

fn codec() -> Configuration<LittleEndian, Fixint, Limit<FRAME_MAX>> {
    bincode::config::standard()
        .with_fixed_int_encoding()
        .with_limit::<FRAME_MAX>()
}

/// The bytes of `value`.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // Serialising our own types fails only on the size limit, which the encoder does not apply.
    bincode::serde::encode_to_vec(value, codec()).expect("wire types are serialisable")
}

/// The value in `bytes`, which must be used up to the last one.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    match bincode::serde::decode_from_slice(bytes, codec()) {
        Ok((value, used)) if used == bytes.len() => Ok(value),
        Ok((_, used)) => Err(WireError::Malformed(format!(
            "{} bytes left over",
            bytes.len() - used
        ))),
        Err(error) => Err(WireError::Malformed(error.to_string())),
    }
}

/// The value in `bytes`, which come from this node's own disk or piece by piece from its leader,
/// and may be more than a frame holds.
pub fn decode_large<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    let codec = codec().with_limit::<LARGE_MAX>();
    match bincode::serde::decode_from_slice(bytes, codec) {
        Ok((value, used)) if used == bytes.len() => Ok(value),
        Ok(_) => Err(WireError::Malformed("bytes left over".into())),
        Err(error) => Err(WireError::Malformed(error.to_string())),
    }
}

/// A datagram as it goes on UDP.
pub fn encode_datagram(datagram: &Datagram) -> Result<Vec<u8>, WireError> {
    let mut bytes = vec![PROTOCOL_VERSION];
    let compact = bincode::config::standard();
    bytes.extend(
        bincode::serde::encode_to_vec(datagram, compact)
            .map_err(|e| WireError::Malformed(e.to_string()))?,
    );
    if bytes.len() > DATAGRAM_MAX {
        return Err(WireError::TooLarge(bytes.len(), DATAGRAM_MAX));
    }
    Ok(bytes)
}

/// The datagram in the UDP payload `bytes`.
pub fn decode_datagram(bytes: &[u8]) -> Result<Datagram, WireError> {
    let (version, body) = bytes
        .split_first()
        .ok_or(WireError::Malformed("empty".into()))?;
    if *version != PROTOCOL_VERSION {
        return Err(WireError::Version(*version));
    }
    if bytes.len() > DATAGRAM_MAX {
        return Err(WireError::TooLarge(bytes.len(), DATAGRAM_MAX));
    }
    let compact = bincode::config::standard().with_limit::<DATAGRAM_MAX>();
    match bincode::serde::decode_from_slice(body, compact) {
        Ok((datagram, used)) if used == body.len() => Ok(datagram),
        Ok(_) => Err(WireError::Malformed("bytes left over".into())),
        Err(error) => Err(WireError::Malformed(error.to_string())),
    }
}

fn write_frame(to: &mut impl Write, kind: u8, payload: &[u8]) -> Result<(), WireError> {
    if payload.len() > FRAME_MAX {
        return Err(WireError::TooLarge(payload.len(), FRAME_MAX));
    }
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    header[4] = kind;
    // One write for small frames: two would make two packets on a socket without delay.
    if payload.len() <= 4096 {
        let mut joined = Vec::with_capacity(HEADER + payload.len());
        joined.extend_from_slice(&header);
        joined.extend_from_slice(payload);
        to.write_all(&joined)?;
    } else {
        to.write_all(&header)?;
        to.write_all(payload)?;
    }
    Ok(())
}

/// Sends `message` as one frame; does not flush.
pub fn write_message<T: Serialize>(to: &mut impl Write, message: &T) -> Result<(), WireError> {
    write_frame(to, KIND_MESSAGE, &encode(message))
}

/// Sends a run of a file's bytes, at most [`CHUNK_MAX`], as one frame; does not flush.
pub fn write_chunk(to: &mut impl Write, chunk: &[u8]) -> Result<(), WireError> {
    if chunk.len() > CHUNK_MAX {
        return Err(WireError::TooLarge(chunk.len(), CHUNK_MAX));
    }
    write_frame(to, KIND_CHUNK, chunk)
}

/// The next frame.
pub fn read_frame(from: &mut impl Read) -> Result<Frame, WireError> {
    let mut header = [0; HEADER];
    from.read_exact(&mut header)?;
    let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
    let limit = match header[4] {
        KIND_MESSAGE => FRAME_MAX,
        KIND_CHUNK => CHUNK_MAX,
        kind => return Err(WireError::Kind(kind)),
    };
    if length > limit {
        return Err(WireError::TooLarge(length, limit));
    }
    // Grow with what arrives rather than trust the length for one large allocation.
    let mut payload = Vec::with_capacity(length.min(CHUNK_MAX));
    let got = from.take(length as u64).read_to_end(&mut payload)?;
    if got < length {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(if header[4] == KIND_MESSAGE {
        Frame::Message(payload)
    } else {
        Frame::Chunk(payload)
    })
}

/// The next frame, which must be a message of type `T`.
pub fn read_message<T: DeserializeOwned>(from: &mut impl Read) -> Result<T, WireError> {
    match read_frame(from)? {
        Frame::Message(bytes) => decode(&bytes),
        Frame::Chunk(_) => Err(WireError::Kind(KIND_CHUNK)),
    }
}
