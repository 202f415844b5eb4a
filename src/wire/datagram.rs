//! UDP datagrams (placeholder until the membership branch lands).
use serde::{Deserialize, Serialize};
/// Placeholder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Datagram {}
