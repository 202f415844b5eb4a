//! What the threads of connections and copies ask of the core, and tell it, in order.

use crossbeam_channel::Sender;

use crate::types::BlobId;
use crate::wire::client::{Reply, Request};

/// One question or report.
pub(super) enum Ask {
    /// A client's command.
    Request {
        /// The command.
        request: Request,
        /// For the answer; room for one.
        reply: Sender<Reply>,
    },
    /// The copy of this blob is not what it should be, or is gone.
    Corrupt(BlobId),
    /// Uploaded blobs are on disk.
    Stored {
        /// The blobs.
        blobs: Vec<BlobId>,
        /// Told when the core has noted them; room for one.
        noted: Sender<()>,
    },
}
