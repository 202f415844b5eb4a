//! A catalog of a hundred thousand files: memory for each, and how long a look takes.

use dlc::store::Catalog;
use dlc::types::{BlobId, Digest, FileName, NodeId, Server, StorageId, Term};
use dlc::wire::store::{CatalogCommand, Upload};

use super::{own_memory, timed};

const FILES: u64 = 100_000;

pub fn measure() {
    let before = own_memory("self");
    let mut catalog = Catalog::new();
    let filled = timed(|| {
        for first in (0..FILES).step_by(1_000) {
            let uploads = (first..first + 1_000).map(upload).collect();
            catalog.apply(&CatalogCommand::Put(uploads));
        }
    });
    let bytes = own_memory("self").saturating_sub(before) * 1024 / FILES;
    let server = server(0);
    let mut found = 0;
    let matched = timed(|| found = catalog.matching("digit.png").len());
    assert_eq!(found as u64, FILES);
    let listed = timed(|| found = catalog.held_by(&server).count());
    let encoded = timed(|| drop(dlc::wire::encode(&catalog)));
    println!(
        "{FILES} files in a catalog: {bytes} bytes each; filled in {:.0} ms, all matched and \
         sorted in {:.0} ms, those of a node ({found}) found in {:.0} ms, a snapshot in {:.0} ms",
        filled * 1e3,
        matched * 1e3,
        listed * 1e3,
        encoded * 1e3
    );
}

fn server(number: u64) -> Server {
    Server {
        node: NodeId::new(&format!("n{number}")).expect("a valid name"),
        storage: StorageId(u128::from(number)),
    }
}

fn upload(number: u64) -> Upload {
    Upload {
        name: FileName::new(&format!("digit{number}.png")).expect("a valid name"),
        blob: BlobId {
            term: Term(1),
            counter: number,
        },
        bytes: 300,
        digest: Digest::of(&number.to_le_bytes()),
        replicas: (0..4).map(|place| server((number + place) % 7)).collect(),
    }
}
