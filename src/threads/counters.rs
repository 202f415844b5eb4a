//! What a process counts for `stats`: read-mostly numbers, no state of any protocol.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counters of the threads.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: AtomicU64,)*
        }

        impl Counters {
            /// All counters by name.
            pub fn snapshot(&self) -> BTreeMap<String, u64> {
                BTreeMap::from([
                    $((stringify!($name).to_string(), self.$name.load(Ordering::Relaxed)),)*
                ])
            }
        }
    };
}

counters! {
    /// Connections accepted.
    connections_accepted,
    /// Connections closed at once because too many were open.
    connections_refused,
    /// Connections open now.
    connections_open,
    /// Connections closed because of a frame or Hello that is not of this protocol.
    frames_bad,
    /// Messages in whole frames that were no message; dropped.
    messages_bad,
    /// Peer connections of another cluster, or meant for another node.
    peers_refused,
    /// Datagrams sent.
    datagrams_sent,
    /// Bytes of datagrams sent.
    datagram_bytes_sent,
    /// Datagrams received.
    datagrams_received,
    /// Bytes of datagrams received.
    datagram_bytes_received,
    /// Datagrams that were no datagram of this protocol; dropped.
    datagrams_bad,
    /// Datagrams that the operating system did not take.
    datagrams_unsent,
    /// Messages to peers that were lost because the connection was down or its queue full.
    messages_lost,
    /// Messages sent to peers.
    messages_sent,
    /// Commands that were refused because the node had too many.
    requests_refused,
    /// Writes to the log, one sync each.
    log_writes,
    /// Entries in them.
    log_entries,
    /// Those of them that put a snapshot in the place of the log.
    log_snapshots,
    /// Bytes of files received and stored.
    blob_bytes_stored,
    /// Bytes of files sent.
    blob_bytes_read,
    /// Uploads refused because of this disk.
    uploads_refused,
    /// Copies that failed their check, or that the disk could not read.
    blobs_corrupt,
    /// Copies that were read to see whether they are whole, and were.
    copies_checked,
    /// Their bytes.
    copy_bytes_checked,
    /// Batches that went through networks of 8-bit integers.
    batches_int8,
    /// Batches that went through fused operators, on weights packed for their size.
    batches_fused,
    /// Batches that went through folded networks: sizes seen for the first time, GPUs.
    batches_folded,
    /// Batches that went through networks operator by operator.
    batches_plain,
    /// Batches that went through TorchScript networks.
    batches_script,
    /// Orders from the core that a full queue did not take; refused to the core.
    orders_refused,
}

/// Adds one.
pub fn count(counter: &AtomicU64) {
    add(counter, 1);
}

/// Adds `amount`.
pub fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}
