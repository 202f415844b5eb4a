//! Real processes for tests and the demo: an introducer and nodes on loopback, in a
//! directory of their own, killed when the test ends however it ends.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long a process may take to bind its sockets: loading libtorch takes half a second
/// on an idle machine, and tests run beside each other.
const START: Duration = Duration::from_secs(30);

/// Where the executables are: `target/release` of this build, or `DLC_BIN`.
pub fn executable(name: &str) -> PathBuf {
    let folder = std::env::var_os("DLC_BIN")
        .map(PathBuf::from)
        .unwrap_or_else(|| {
            let mut folder = std::env::current_exe().expect("own path");
            // target/PROFILE/deps/test or target/PROFILE/examples/demo
            folder.pop();
            folder.pop();
            folder.with_file_name("release")
        });
    let path = folder.join(name);
    assert!(
        path.exists(),
        "{} is missing: run `make build` first",
        path.display()
    );
    path
}

/// A running process and what it prints.
pub struct Process {
    /// The process itself.
    pub child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    /// Where it listens.
    pub addr: SocketAddr,
}

impl Process {
    /// Starts `command` and waits for its first line, `listening HOST:PORT`.
    fn start(mut command: Command, log: &Path) -> Result<Process, String> {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .map_err(|e| e.to_string())?;
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log);
        // A test that is killed takes its processes along.
        // SAFETY: the closure makes one system call and allocates nothing.
        unsafe {
            command.pre_exec(|| {
                let signal = Some(rustix::process::Signal::KILL);
                rustix::process::set_parent_process_death_signal(signal).map_err(Into::into)
            });
        }
        let mut child = command
            .spawn()
            .map_err(|error| format!("{command:?}: {error}"))?;
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            stdout
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        let unset = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut process = Process {
            child,
            stdin,
            lines,
            addr: unset,
        };
        let first = process.line(START).ok_or_else(|| {
            let status = process.child.try_wait().ok().flatten();
            format!("no first line; exit status {status:?}")
        })?;
        let addr = first
            .strip_prefix("listening ")
            .ok_or_else(|| format!("first line is {first:?}"))?;
        process.addr = addr
            .parse()
            .map_err(|_| format!("first line is {first:?}"))?;
        Ok(process)
    }

    /// The next line on stdout.
    pub fn line(&self, patience: Duration) -> Option<String> {
        self.lines.recv_timeout(patience).ok()
    }

    /// Types a line into the console.
    pub fn type_line(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("stdin is open");
        writeln!(stdin, "{line}")
            .and_then(|()| stdin.flush())
            .expect("the console reads");
    }

    /// Ends the console's input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Sends a signal by number or name, as `kill` does.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, signal);
    }

    /// kill -9, and waits for the end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for the end by itself.
    pub fn wait(&mut self, patience: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + patience;
        while Instant::now() < end {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What `dlc` said.
#[derive(Debug)]
pub struct Said {
    /// Its exit status.
    pub status: i32,
    /// Its stdout.
    pub stdout: String,
    /// Its stderr.
    pub stderr: String,
}

/// An introducer and nodes.
pub struct Cluster {
    /// The directory of everything.
    pub dir: PathBuf,
    /// The introducer.
    pub introducer: Process,
    /// The nodes that were started and not stopped, by name.
    pub nodes: BTreeMap<String, Process>,
    /// The model directory of nodes that are started: the project's, unless it is changed.
    pub models: PathBuf,
}

impl Cluster {
    /// An introducer in `dir`, without nodes.
    pub fn new(dir: &Path) -> Cluster {
        std::fs::create_dir_all(dir).expect("directory for the cluster");
        let introducer = Process::start(
            introducer_command(dir, "127.0.0.1:0"),
            &dir.join("introducer.log"),
        );
        Cluster {
            dir: dir.into(),
            introducer: introducer.expect("introducer starts"),
            nodes: BTreeMap::new(),
            models: Path::new(env!("CARGO_MANIFEST_DIR")).join("models"),
        }
    }

    /// A cluster of `count` joined nodes `n1`, `n2`, ….
    pub fn with_nodes(dir: &Path, count: usize) -> Cluster {
        let mut cluster = Cluster::new(dir);
        for number in 1..=count {
            cluster.start(&format!("n{number}"));
        }
        cluster.wait_for_members(count);
        cluster
    }

    /// The command line of a node on its data directory.
    pub fn node_command(&self, name: &str, arguments: &[&str]) -> Command {
        self.node_command_in(name, &self.dir.join(name), arguments)
    }

    /// The command line of a node on the data directory `data`.
    pub fn node_command_in(&self, name: &str, data: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(executable("node"));
        command.args([
            "--name",
            name,
            "--introducer",
            &self.introducer.addr.to_string(),
        ]);
        command.arg("--data-dir").arg(data);
        command
            .arg("--models")
            .arg(&self.models)
            .arg("--cluster-key")
            .arg(self.dir.join("cluster.key"));
        command.args(["--threads", "1"]).args(arguments);
        command
    }

    /// Starts a node that joins.
    pub fn start(&mut self, name: &str) {
        self.start_with(name, &["--join"])
            .unwrap_or_else(|why| panic!("node {name}: {why}"));
    }

    /// Starts a node with these further arguments.
    pub fn start_with(&mut self, name: &str, arguments: &[&str]) -> Result<(), String> {
        let command = self.node_command(name, arguments);
        let process = Process::start(command, &self.dir.join(format!("{name}.log")))?;
        self.nodes.insert(name.into(), process);
        Ok(())
    }

    /// kill -9 of a node.
    pub fn kill(&mut self, name: &str) {
        self.nodes
            .remove(name)
            .unwrap_or_else(|| panic!("{name} runs"))
            .kill();
    }

    /// Runs `dlc` on the node `node`.
    pub fn dlc(&self, node: &str, words: &[&str]) -> Said {
        dlc(self.nodes[node].addr, &self.dir, words)
    }

    /// Runs `dlc` on `node`, which must succeed; its stdout.
    pub fn ok(&self, node: &str, words: &[&str]) -> String {
        let said = self.dlc(node, words);
        assert_eq!(said.status, 0, "{words:?}: {said:?}");
        said.stdout
    }

    /// Runs `dlc --json` on `node`, which must succeed; what it printed.
    pub fn json(&self, node: &str, words: &[&str]) -> Value {
        let words = [&["--json"], words].concat();
        let text = self.ok(node, &words);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{words:?}: {error}: {text}"))
    }

    /// Runs `dlc` on `node`, which must fail with status 1; its stderr.
    pub fn refused(&self, node: &str, words: &[&str]) -> String {
        let said = self.dlc(node, words);
        assert_eq!(said.status, 1, "{words:?}: {said:?}");
        said.stderr
    }

    /// The name of the coordinator as `node` sees it.
    pub fn coordinator(&self, node: &str) -> Option<String> {
        let members = self.json(node, &["list_mem"]);
        let members = members["members"].as_array()?.clone();
        let leader = members
            .into_iter()
            .find(|member| member["role"] == "coordinator")?;
        Some(leader["name"].as_str()?.into())
    }

    /// Waits until every node sees `count` members and a coordinator among them.
    pub fn wait_for_members(&self, count: usize) {
        for node in self.nodes.keys() {
            wait_until(
                &format!("{node} sees {count} members"),
                Duration::from_secs(30),
                || {
                    let said = self.dlc(node, &["--json", "list_mem"]);
                    let Ok(shown) = serde_json::from_str::<Value>(&said.stdout) else {
                        return false;
                    };
                    let members = shown["members"].as_array().cloned().unwrap_or_default();
                    members.len() == count
                        && members.iter().any(|member| member["role"] == "coordinator")
                },
            );
        }
    }
}

/// The command line of an introducer in `dir`.
pub fn introducer_command(dir: &Path, listen: &str) -> Command {
    let mut command = Command::new(executable("introducer"));
    command
        .args(["--listen", listen])
        .arg("--data-dir")
        .arg(dir.join("introducer"));
    command.arg("--cluster-key").arg(dir.join("cluster.key"));
    command
}

/// Starts a process whose first line is `listening HOST:PORT`.
pub fn start(command: Command, log: &Path) -> Result<Process, String> {
    Process::start(command, log)
}

/// Runs `dlc` in `dir` on the node at `addr`.
pub fn dlc(addr: SocketAddr, dir: &Path, words: &[&str]) -> Said {
    let mut command = Command::new(executable("dlc"));
    command
        .current_dir(dir)
        .args(["--node", &addr.to_string()])
        .args(words);
    let output = command.stdin(Stdio::null()).output().expect("dlc runs");
    Said {
        status: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).trim_end().into(),
        stderr: String::from_utf8_lossy(&output.stderr).trim_end().into(),
    }
}

/// Polls until `done`, and fails with `what` after `patience`.
pub fn wait_until(what: &str, patience: Duration, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + patience;
    while !done() {
        assert!(Instant::now() < end, "not within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
