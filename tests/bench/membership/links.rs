//! Six real nodes, each in a network namespace of its own, with links that are cut and lossy;
//! and the same in virtual time beside it.
//!
//! A cut takes the hub's end of a node's link down, so that the node's own end loses its
//! carrier. Loss is nftables' random drop of what arrives at a node or at the introducer,
//! TCP and UDP alike, but for what this program asks.

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use dlc::membership::ring::position;
use dlc::types::{NodeId, Rng};

use crate::harness::{self, Cluster, millis, secs};
use crate::real::{Process, executable, start};
use crate::sighting::{Observer, agree, known_to_all, total};
use crate::{percentiles, verdict, wish};

/// The argument with which this program starts itself again inside the hub.
pub const INSIDE: &str = "links-inside-the-hub";

const NODES: usize = 6;
const HUB: &str = "dlc-bench-hub";
const HUB_ADDR: &str = "10.77.0.254";
const LIMIT: Duration = Duration::from_secs(20);
const REJOIN: Duration = Duration::from_secs(60);
/// Percent of packets, each way.
const LOSSES: [u64; 3] = [0, 10, 30];

pub fn run() {
    let root = rustix::process::geteuid().is_root();
    let tools = ["ip", "nft"].iter().all(|tool| {
        let version = Command::new(tool).arg("-V").stdout(Stdio::null()).status();
        version.is_ok_and(|status| status.success())
    });
    if !root || !tools {
        println!("Links between network namespaces: SKIPPED, it needs root, `ip` and `nft`");
        return;
    }
    let bed = match Bed::new() {
        Ok(bed) => bed,
        Err(why) => {
            println!("Links between network namespaces: SKIPPED, they cannot be made here: {why}");
            return;
        }
    };
    let own = std::env::current_exe().expect("own path");
    let status = Command::new("ip")
        .args(["netns", "exec", HUB])
        .arg(own)
        .arg(INSIDE)
        .status();
    drop(bed);
    assert!(
        status.expect("ip runs").success(),
        "the part inside the hub failed"
    );
}

/// The namespaces; deleted with it.
struct Bed;

impl Bed {
    fn new() -> Result<Bed, String> {
        let bed = Bed;
        bed.delete();
        ip(&format!("netns add {HUB}"))?;
        ip(&format!("-n {HUB} link add br0 type bridge"))?;
        ip(&format!("-n {HUB} addr add {HUB_ADDR}/24 dev br0"))?;
        ip(&format!("-n {HUB} link set br0 up"))?;
        ip(&format!("-n {HUB} link set lo up"))?;
        for index in 0..=NODES {
            let own = namespace(index);
            ip(&format!("netns add {own}"))?;
            ip(&format!(
                "link add p{index} netns {HUB} type veth peer name eth0 netns {own}"
            ))?;
            ip(&format!("-n {HUB} link set p{index} master br0 up"))?;
            ip(&format!(
                "-n {own} addr add {}/24 dev eth0",
                addr(index).ip()
            ))?;
            ip(&format!("-n {own} link set eth0 up"))?;
            ip(&format!("-n {own} link set lo up"))?;
            filter(index, "")?;
        }
        Ok(bed)
    }

    fn delete(&self) {
        for index in 0..=NODES {
            let _ = ip(&format!("netns del {}", namespace(index)));
        }
        let _ = ip(&format!("netns del {HUB}"));
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.delete();
    }
}

/// The namespace of node `index`; 0 is the introducer's.
fn namespace(index: usize) -> String {
    format!("dlc-bench-{index}")
}

fn addr(index: usize) -> SocketAddr {
    SocketAddr::from(([10, 77, 0, index as u8 + 1], 7000))
}

fn ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    let output = output.map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!(
            "ip {arguments}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
    }
}

/// What node `index` does with arriving packets, but for those of the hub.
fn filter(index: usize, rule: &str) -> Result<(), String> {
    let rules = format!(
        "flush ruleset\ntable inet bench {{\n chain arriving {{\n type filter hook input priority 0\n \
         iif lo accept\n ip saddr {HUB_ADDR} accept\n {rule}\n }}\n}}\n"
    );
    let mut child = Command::new("ip")
        .args(["netns", "exec", &namespace(index), "nft", "-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let mut stdin = child.stdin.take().expect("piped");
    stdin
        .write_all(rules.as_bytes())
        .map_err(|error| error.to_string())?;
    drop(stdin);
    match child.wait() {
        Ok(status) if status.success() => Ok(()),
        other => Err(format!("nft refuses {rules:?}: {other:?}")),
    }
}

fn set_loss(percent: u64) {
    for index in 0..=NODES {
        filter(index, &format!("numgen random mod 100 < {percent} drop")).expect("nft works");
    }
}

fn set_link(index: usize, up: bool) {
    let state = if up { "up" } else { "down" };
    ip(&format!("-n {HUB} link set p{index} {state}")).expect("the link is there");
}

/// Starts everything and measures; runs inside the hub's namespace.
pub fn run_inside() {
    let rounds = wish("ROUNDS", 20);
    let span = wish("SPAN", 120);
    let dir = tempfile::tempdir().expect("a folder for the cluster");
    let (_processes, nodes) = start_all(dir.path());
    let names: Vec<String> = nodes.iter().map(|node| node.name.clone()).collect();
    assert!(agree(&nodes, &names, REJOIN), "the cluster forms");
    println!("{NODES} real nodes in network namespaces, and in brackets the same in virtual time");
    println!(
        "known to every member that is left, {rounds} cuts each (seconds)   p50            p99            max"
    );
    let mut rng = Rng::new(6);
    for count in [1, 3] {
        let mut spans: Vec<Duration> = (0..rounds)
            .map(|_| cut(&nodes, &names, count, &mut rng))
            .collect();
        let [p50, p99, max] = percentiles(&mut spans);
        let [s50, s99, smax] = percentiles(&mut simulated_cuts(count, rounds));
        let verdict = verdict(p99 <= 3.0 && max <= 5.0);
        println!(
            "{count} link(s) cut {:44} {p50:4.2} ({s50:4.2})    {p99:4.2} ({s99:4.2})    {max:4.2} ({smax:4.2})   p99 3.0, max 5.0: {verdict}",
            ""
        );
    }
    println!(
        "loss each way, {span} s each:      pings repeated     unanswered        members removed"
    );
    for loss in LOSSES {
        set_loss(loss);
        lossy(&nodes, loss, span);
    }
    set_loss(0);
    one_way(&nodes, &names, span);
}

fn start_all(dir: &Path) -> (Vec<Process>, Vec<Observer>) {
    let models = dir.join("no-models");
    std::fs::create_dir_all(&models).expect("an empty folder");
    let mut processes = Vec::new();
    let mut nodes = Vec::new();
    for index in 0..=NODES {
        let (name, listen) = (format!("n{index}"), addr(index).to_string());
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &namespace(index)]);
        command
            .arg(executable(if index == 0 { "introducer" } else { "node" }))
            .args(["--listen", &listen])
            .arg("--data-dir")
            .arg(dir.join(&name))
            .arg("--cluster-key")
            .arg(dir.join("cluster.key"));
        if index > 0 {
            command
                .args(["--name", &name, "--introducer", &addr(0).to_string()])
                .args(["--join", "--threads", "1"])
                .arg("--models")
                .arg(&models);
            nodes.push(Observer {
                name: name.clone(),
                addr: addr(index),
            });
        }
        let process = start(command, &dir.join(format!("{name}.log")));
        processes.push(process.unwrap_or_else(|why| panic!("{name}: {why}")));
    }
    (processes, nodes)
}

/// Cuts the links of `count` neighbours on the ring, and mends them.
fn cut(nodes: &[Observer], names: &[String], count: usize, rng: &mut Rng) -> Duration {
    let mut ring: Vec<usize> = (0..nodes.len()).collect();
    ring.sort_by_key(|index| position(&NodeId::new(&names[*index]).expect("valid name")));
    let first = rng.below(ring.len() as u64) as usize;
    let cut: Vec<usize> = (0..count)
        .map(|offset| ring[(first + offset) % ring.len()])
        .collect();
    let victims: Vec<String> = cut.iter().map(|index| names[*index].clone()).collect();
    let others: Vec<Observer> = nodes
        .iter()
        .filter(|node| !victims.contains(&node.name))
        .cloned()
        .collect();
    std::thread::sleep(rng.span(millis(0), millis(1000)));
    let span = known_to_all(&others, &victims, LIMIT, || {
        cut.iter().for_each(|index| set_link(index + 1, false));
    });
    let left: Vec<String> = others.iter().map(|it| it.name.clone()).collect();
    assert!(agree(&others, &left, secs(2)), "nobody else is removed");
    cut.iter().for_each(|index| set_link(index + 1, true));
    assert!(
        agree(nodes, names, REJOIN),
        "who was cut off comes back by itself"
    );
    span.unwrap_or(LIMIT)
}

fn simulated_cuts(count: usize, rounds: u64) -> Vec<Duration> {
    let mut rng = Rng::new(7);
    let mut cluster = Cluster::formed(66, NODES);
    let order = cluster.in_ring_order();
    let mut spans = Vec::new();
    for _ in 0..rounds {
        cluster.run(rng.span(secs(2), secs(4)));
        cluster.seen.clear();
        let first = rng.below(NODES as u64) as usize;
        let victims: Vec<SocketAddr> = (0..count)
            .map(|offset| order[(first + offset) % NODES])
            .collect();
        victims.iter().for_each(|victim| cluster.silence(*victim));
        spans.push(cluster.detection(&victims, LIMIT).unwrap_or(LIMIT));
        victims
            .iter()
            .for_each(|victim| cluster.restart(*victim, false));
        cluster
            .return_of(&victims, secs(30))
            .expect("they come back");
    }
    spans
}

/// What the detector counts while packets are lost.
fn lossy(nodes: &[Observer], loss: u64, span: u64) {
    let counters = ["pings", "pings_repeated", "pings_unanswered", "removals"];
    let count = || counters.map(|name| total(nodes, name));
    let before = count();
    std::thread::sleep(secs(span));
    let after = count();
    let [pings, repeated, unanswered, removed]: [u64; 4] =
        std::array::from_fn(|index| after[index] - before[index]);
    let [s_pings, s_repeated, s_unanswered, s_removed] = simulated_loss(loss);
    let share = |part: u64, of: u64| 100.0 * part as f64 / of.max(1) as f64;
    println!(
        "{loss:2} %  {:28} {:5.1} ({:5.1}) %   {:6.3} ({:6.3}) %   {removed} ({s_removed})   0 removed: {}",
        "",
        share(repeated, pings),
        share(s_repeated, s_pings),
        share(unanswered, pings),
        share(s_unanswered, s_pings),
        verdict(removed == 0)
    );
}

fn simulated_loss(loss: u64) -> [u64; 4] {
    let mut cluster = Cluster::new(67);
    cluster.metered = false;
    cluster.form(NODES);
    cluster.loss = loss;
    cluster.run(secs(3600));
    let stats = cluster.nodes.values().map(|process| process.core.stats());
    stats.fold([0; 4], |[pings, repeated, unanswered, removed], it| {
        [
            pings + it.probes.probes,
            repeated + it.probes.retried,
            unanswered + it.probes.missed,
            removed + it.removals,
        ]
    })
}

/// One node does not hear another, which hears it.
fn one_way(nodes: &[Observer], names: &[String], span: u64) {
    let before = total(nodes, "removals");
    for index in 1..=NODES {
        let deaf_to = addr(index % NODES + 1).ip();
        filter(index, &format!("ip saddr {deaf_to} drop")).expect("nft works");
        std::thread::sleep(secs(span) / NODES as u32);
        filter(index, "").expect("nft works");
    }
    let removed = total(nodes, "removals") - before;
    let agreed = agree(nodes, names, harness::secs(10));
    println!(
        "one link dead in one direction, six in turn, {span} s: {removed} removed; 0 removed: {}",
        verdict(removed == 0 && agreed)
    );
}
