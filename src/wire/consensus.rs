//! Messages of the replicated log (placeholder until the consensus branch lands).
use serde::{Deserialize, Serialize};
/// Placeholder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Message {}
