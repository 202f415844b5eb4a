//! Views become equal again whatever happened, and rest costs little.

use crate::churn::churn;
use crate::harness::*;

/// Seeds of churn in a test run; `make bench-membership` runs 5,000.
const CHURN_SEEDS: u64 = 500;

#[test]
fn a_cut_cluster_grows_together_again() {
    for seed in 0..10 {
        let mut cluster = Cluster::formed(600 + seed, 10);
        let all = cluster.running();
        let (left, right) = all.split_at(seed as usize % 5 + 1);
        cluster.part(left, right);
        cluster.run(secs(30));
        let sizes: Vec<usize> = [left[0], right[0]]
            .map(|addr| cluster.core(addr).view().members.len())
            .to_vec();
        assert_eq!(sizes, [left.len(), right.len()]);
        let come = cluster.seen.iter().filter(|seen| !seen.gone);
        assert_eq!(
            come.count(),
            0,
            "nobody flaps, though both parts reach the introducer"
        );
        cluster.cut.clear();
        // Without the introducer's help too.
        cluster
            .introducers
            .get_mut(&Cluster::meeting(0))
            .unwrap()
            .up = seed % 2 == 0;
        let healed = cluster.until(secs(20), |cluster| cluster.agreed(10));
        assert!(healed, "seed {seed}");
    }
}

/// `SEED=n` runs that one seed only, and prints what happens.
#[test]
fn views_converge_after_churn() {
    let replayed = std::env::var("SEED").ok();
    let seeds = match &replayed {
        Some(seed) => {
            let seed = seed.parse().expect("SEED is a number");
            seed..seed + 1
        }
        None => 0..CHURN_SEEDS,
    };
    for seed in seeds {
        if let Err(what) = churn(seed, replayed.is_some()) {
            panic!("seed {seed}: {what}; replay it with SEED={seed}");
        }
    }
}

#[test]
fn runs_with_equal_seeds_are_equal_bit_for_bit() {
    let trace = |seed| {
        let mut cluster = Cluster::new(seed);
        cluster.trace = Trace::Digest(Default::default());
        cluster.form(6);
        cluster.loss = 15;
        cluster.duplicates = 10;
        cluster.silence(Cluster::addr(1));
        cluster.run(secs(10));
        cluster.restart(Cluster::addr(1), false);
        cluster.crash(Cluster::addr(2));
        cluster.run(secs(20));
        let Trace::Digest(digest) = cluster.trace else {
            panic!("as it was set");
        };
        digest.finalize()
    };
    assert_eq!(trace(1100), trace(1100));
    assert_ne!(trace(1100), trace(1101));
}

#[test]
fn steady_traffic_is_small_with_room_for_authentication() {
    let mut cluster = Cluster::formed(1200, 6);
    cluster.run(secs(60));
    let before = cluster.traffic;
    cluster.run(secs(100));
    let datagrams = cluster.traffic.datagrams - before.datagrams;
    let per_node = (cluster.traffic.bytes - before.bytes + 16 * datagrams) / 600;
    println!(
        "{per_node} bytes and {} datagrams a second and node",
        datagrams / 600
    );
    assert!(per_node <= 300, "{per_node} bytes a second");
}
