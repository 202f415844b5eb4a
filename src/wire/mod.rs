//! The one place for the wire format: frames on TCP, datagrams on UDP, and what is in them.
//!
//! Decides: how values become bytes, the limits on their size, and the protocol
//! version. Leaves to others: what the messages mean, and when they are sent.
//!
//! TCP: a connection starts with one [`Hello`] frame from the side that dialled, which
//! says the protocol version and what the connection is for. Every frame is
//! `length: u32 LE, kind: u8, payload`; `length` counts the payload only. The place for
//! authenticated encryption is between the frame and its payload: nothing above this
//! module sees lengths or kinds.
//!
//! UDP: one byte of protocol version, then the datagram; at most [`DATAGRAM_MAX`] bytes.

mod bytes;
pub mod client;
pub mod consensus;
pub mod datagram;
mod dial;
mod frame;
pub mod peer;
pub mod pull;
pub mod schedule;
pub mod store;

pub use dial::{dial, prepare};
pub use frame::{
    CHUNK_MAX, DATAGRAM_MAX, FRAME_MAX, Frame, PROTOCOL_VERSION, WireError, decode,
    decode_datagram, decode_large, encode, encode_datagram, read_frame, read_message, write_chunk,
    write_message,
};
