//! Namespaces for real nodes: a hub with a bridge, and one namespace for the introducer and each
//! node, whose links can be cut and whose arriving packets can be filtered.
//!
//! The program starts itself again inside the hub, which reaches all of them whatever is cut
//! between them.

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::real::{Process, executable, start};

const HUB: &str = "dlc-bench-hub";
const HUB_ADDR: &str = "10.77.0.254";

/// Makes the namespaces of `nodes` nodes and runs this program in the hub with `argument`; says
/// why `what` is skipped where they cannot be made.
pub fn run_in_hub(what: &str, argument: &str, nodes: usize) {
    let root = rustix::process::geteuid().is_root();
    let tools = ["ip", "nft"].iter().all(|tool| {
        let version = Command::new(tool).arg("-V").stdout(Stdio::null()).status();
        version.is_ok_and(|status| status.success())
    });
    if !root || !tools {
        println!("{what}: SKIPPED, it needs root, `ip` and `nft`");
        return;
    }
    let bed = match Bed::new(nodes) {
        Ok(bed) => bed,
        Err(why) => {
            println!("{what}: SKIPPED, namespaces cannot be made here: {why}");
            return;
        }
    };
    let own = std::env::current_exe().expect("own path");
    let status = Command::new("ip")
        .args(["netns", "exec", HUB])
        .arg(own)
        .arg(argument)
        .status();
    drop(bed);
    assert!(
        status.expect("ip runs").success(),
        "the part inside the hub failed"
    );
}

/// The namespaces; deleted with it.
struct Bed {
    nodes: usize,
}

impl Bed {
    fn new(nodes: usize) -> Result<Bed, String> {
        let bed = Bed { nodes };
        bed.delete();
        ip(&format!("netns add {HUB}"))?;
        ip(&format!("-n {HUB} link add br0 type bridge"))?;
        ip(&format!("-n {HUB} addr add {HUB_ADDR}/24 dev br0"))?;
        ip(&format!("-n {HUB} link set br0 up"))?;
        ip(&format!("-n {HUB} link set lo up"))?;
        for index in 0..=nodes {
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
        for index in 0..=self.nodes {
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

/// Where node `index` listens.
pub fn addr(index: usize) -> SocketAddr {
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
pub fn filter(index: usize, rule: &str) -> Result<(), String> {
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

/// Cuts or mends the link of node `index`.
pub fn set_link(index: usize, up: bool) {
    let state = if up { "up" } else { "down" };
    ip(&format!("-n {HUB} link set p{index} {state}")).expect("the link is there");
}

/// Starts the introducer and `nodes` nodes that join, each in its namespace, with the model
/// directory `models`.
pub fn start_all(dir: &Path, nodes: usize, models: &Path) -> Vec<Process> {
    let mut processes = Vec::new();
    for index in 0..=nodes {
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
                .arg(models);
        }
        let process = start(command, &dir.join(format!("{name}.log")));
        processes.push(process.unwrap_or_else(|why| panic!("{name}: {why}")));
    }
    processes
}
