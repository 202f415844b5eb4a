//! What nodes say to one another.
pub mod datagram;
