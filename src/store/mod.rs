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

mod ask;
pub mod catalog;
pub mod download;
pub mod names;
mod pace;
pub mod placement;
pub mod repair;
pub mod replica;
pub mod upload;
pub mod uploads;

pub use catalog::{Applied, Catalog, Replicas, VersionRecord};
pub use download::{BlobRead, Download, DownloadOutput, Downloaded, ReadId, ReadOutput};
pub use placement::{Ring, targets};
pub use repair::{Repair, RepairOutput};
pub use replica::{FetchReport, PullAnswer, Replica};
pub use upload::{TransferId, Upload, UploadFile, UploadOutput};
pub use uploads::{Abandoned, Uploads};

#[cfg(test)]
mod tests;
