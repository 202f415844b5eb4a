//! Core 3: where the files of SDFS are, and how their bytes get there.
//!
//! Decides: which versions exist and who holds them (`catalog`, a state machine on the
//! replicated log), where new copies go (`placement`), which uploads may be named
//! (`uploads`), what is copied or removed to keep four copies (`repair`), what a node
//! keeps on its own disk (`replica`), and the client's side of a put and of a get
//! (`upload`, `download`). Leaves to others: the log (`consensus`), who is live
//! (`membership`), the bytes themselves (`disk` and the drivers), and putting the parts
//! together (`node`).
//!
//! The catalog's recorded replica set is the truth; the ring only chooses new targets.
//! `Catalog` and `Replica` live on every member; `Uploads` and `Repair` are the leader's,
//! made anew for each term and rebuilt from the catalog, the view and the nodes' reports.

pub mod catalog;
pub mod names;
pub mod placement;
pub mod replica;

pub use catalog::{Applied, Catalog, Replicas, VersionRecord};
pub use placement::{Ring, targets};
pub use replica::{FetchReport, PullAnswer, Replica};

#[cfg(test)]
mod tests;
