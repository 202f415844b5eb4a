//! What people type and read: commands parsed once and run alike from the node's
//! stdin and from the `dlc` client.
//!
//! Decides: the command language, the words of answers, tables and JSON, and how a
//! client moves the bytes of files. Leaves to others: everything that the cluster
//! decides; the console is a client over TCP even of its own node, so that there is
//! one way in.

mod bulk;
pub mod client;
pub mod command;
pub mod dataset;
mod fsck;
mod jobs;
pub mod place;
mod progress;
mod rebuild;
pub mod run;
pub mod stdin;
mod tables;
mod training;
pub mod transfer;

use serde_json::Value;

/// What a command printed.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// For people.
    pub text: String,
    /// For programs (`--json`).
    pub json: Value,
}

/// Asks a person whether to do what the text says.
pub type Ask<'a> = &'a mut dyn FnMut(&str) -> bool;

fn answer(text: impl Into<String>, json: Value) -> Result<Answer, client::ClientError> {
    Ok(Answer {
        text: text.into(),
        json,
    })
}
