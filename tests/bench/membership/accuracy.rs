//! Whom the detector removes wrongly: live members that anybody took for failed.

use std::net::SocketAddr;
use std::time::Duration;

use dlc::types::Rng;

use crate::harness::{Cluster, Connects, millis, secs};
use crate::{in_parallel, verdict, wish};

const SIZES: [usize; 4] = [2, 6, 10, 100];
/// Percent of all packets, each way.
const LOSSES: [u64; 5] = [0, 3, 10, 20, 30];
/// Virtual node-hours in one piece of work.
const PIECE: u64 = 50;
/// Most wrong removals in a node-hour at 30 % loss.
const RATE_MAX: f64 = 0.001;

#[derive(Clone, Copy, PartialEq)]
enum Trouble {
    /// Loss alone; TCP loses as many packets.
    Loss,
    /// Loss, and no connection between members ever comes about.
    NoTcp,
    /// Loss, and each process stands still for up to 1 s, every 10 s on average.
    Pauses,
    /// Loss, and always one link that carries nothing in one direction.
    OneWay,
}

const TROUBLES: [Trouble; 4] = [
    Trouble::Loss,
    Trouble::NoTcp,
    Trouble::Pauses,
    Trouble::OneWay,
];

struct Cell {
    trouble: Trouble,
    size: usize,
    loss: u64,
}

#[derive(Clone, Copy, Default)]
struct Tally {
    removed: u64,
    accusations: u64,
    connects: Connects,
}

pub fn run() {
    let hours = wish("HOURS", 100);
    let pieces = hours.div_ceil(PIECE) as usize;
    println!("Live members removed, virtual time, {hours} node-hours for each figure");
    println!(
        "(in brackets: suspicions for each node-hour, all of them refuted or in the figure before)"
    );
    let mut missed = Vec::new();
    let mut connects = [Connects::default(); LOSSES.len()];
    for trouble in TROUBLES {
        let cells = cells(trouble);
        let tallies = in_parallel(cells.len() * pieces, |index| {
            let seed = trouble as u64 * 1_000_000 + index as u64;
            measure(&cells[index / pieces], seed, hours.min(PIECE))
        });
        let sums: Vec<Tally> = tallies.chunks(pieces).map(sum).collect();
        let spent = (pieces as u64 * hours.min(PIECE)) as f64;
        table(trouble, &cells, &sums, spent);
        for (index, (cell, tally)) in cells.iter().zip(&sums).enumerate() {
            judge(cell, tally, spent, &mut missed);
            if trouble == Trouble::Loss {
                connects[index % LOSSES.len()] += tally.connects;
            }
        }
    }
    println!("\nbars: none removed up to 10 %, fewer than {RATE_MAX} for each node-hour at 30 %");
    println!("{}", verdict(missed.is_empty()));
    missed.iter().for_each(|text| println!("  {text}"));
    tcp(&connects);
}

/// One for each size and loss, the losses in a row.
fn cells(trouble: Trouble) -> Vec<Cell> {
    // With a link of two members cut one way, neither can know who is at fault.
    let sizes = SIZES
        .into_iter()
        .filter(|size| trouble != Trouble::OneWay || *size > 2);
    let cells_of = |size| {
        LOSSES.map(|loss| Cell {
            trouble,
            size,
            loss,
        })
    };
    sizes.flat_map(cells_of).collect()
}

fn table(trouble: Trouble, cells: &[Cell], sums: &[Tally], spent: f64) {
    println!("\n{}", describe(trouble));
    print!("members");
    LOSSES.iter().for_each(|loss| print!("{loss:>15} %"));
    println!();
    let rows = cells.chunks(LOSSES.len()).zip(sums.chunks(LOSSES.len()));
    for (cells, sums) in rows {
        print!("{:7}", cells[0].size);
        for tally in sums {
            let suspicions = tally.accusations as f64 / spent;
            print!("{:>8} ({suspicions:6.3})", tally.removed);
        }
        println!();
    }
}

fn sum(tallies: &[Tally]) -> Tally {
    tallies.iter().fold(Tally::default(), |mut sum, tally| {
        sum.removed += tally.removed;
        sum.accusations += tally.accusations;
        sum.connects += tally.connects;
        sum
    })
}

fn judge(cell: &Cell, tally: &Tally, spent: f64, missed: &mut Vec<String>) {
    let met = match cell.loss {
        0..=10 => tally.removed == 0,
        _ => tally.removed as f64 / spent < RATE_MAX || tally.removed == 0,
    };
    if !met {
        missed.push(format!(
            "{}, {} members, {} % loss: {} removed in {spent} node-hours",
            describe(cell.trouble),
            cell.size,
            cell.loss,
            tally.removed
        ));
    }
}

fn describe(trouble: Trouble) -> &'static str {
    match trouble {
        Trouble::Loss => "loss, TCP loses packets like UDP",
        Trouble::NoTcp => "loss, TCP between members does not work at all",
        Trouble::Pauses => "loss, and each process is paused for up to 1 s every 10 s",
        Trouble::OneWay => "loss, and always some link that is dead in one direction",
    }
}

/// How the probes over TCP fared at each loss.
fn tcp(connects: &[Connects]) {
    println!("\nprobes over TCP that were answered in time, of those that were tried:");
    for (loss, Connects { tried, answered }) in LOSSES.iter().zip(connects) {
        let share = 100.0 * *answered as f64 / (*tried).max(1) as f64;
        println!("  {loss:2} % loss: {answered} of {tried} ({share:.0} %)");
    }
}

/// `hours` node-hours of one cell.
fn measure(cell: &Cell, seed: u64, hours: u64) -> Tally {
    let mut cluster = Cluster::new(90_000 + seed);
    cluster.metered = false;
    cluster.form(cell.size);
    cluster.loss = cell.loss;
    cluster.probes_connect = cell.trouble != Trouble::NoTcp;
    let mut rng = Rng::new(seed);
    let end = cluster.now + secs(hours * 3600) / cell.size as u32;
    while cluster.now < end {
        let left = end.since(cluster.now);
        let span = disturb(&mut cluster, cell, &mut rng).min(left);
        cluster.run(span);
    }
    let cores = cluster.nodes.values().map(|process| &process.core);
    Tally {
        removed: cluster.lives_removed().len() as u64,
        accusations: cores.map(|core| core.stats().accusations).sum(),
        connects: cluster.connects,
    }
}

/// The cell's next trouble; how long to run until the one after it.
fn disturb(cluster: &mut Cluster, cell: &Cell, rng: &mut Rng) -> Duration {
    let pick =
        |rng: &mut Rng| -> SocketAddr { Cluster::addr(rng.below(cell.size as u64) as usize) };
    match cell.trouble {
        Trouble::Loss | Trouble::NoTcp => secs(3600),
        Trouble::Pauses => {
            let addr = pick(rng);
            // Two in a row would be a longer one.
            if cluster.nodes[&addr].paused_until < cluster.now {
                cluster.pause(addr, rng.span(millis(0), millis(1000)));
            }
            rng.span(millis(0), millis(20_000) / cell.size as u32)
        }
        Trouble::OneWay => {
            cluster.cut.clear();
            let (from, to) = (pick(rng), pick(rng));
            cluster.cut.insert((from, to));
            rng.span(secs(5), secs(60))
        }
    }
}
