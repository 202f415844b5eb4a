//! Runs of bytes among other fields, taken over as one piece instead of number by number.
//! The encoding is that of a list of `u8`.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serializer};

pub(super) fn serialize<S: Serializer>(bytes: &Arc<[u8]>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_bytes(bytes)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Arc<[u8]>, D::Error> {
    serde_bytes::ByteBuf::deserialize(from).map(|bytes| bytes.into_vec().into())
}
