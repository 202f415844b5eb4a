//! The plain processes.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use super::Task;

struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("its output");
        line.trim().into()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Our own engine.
pub fn engine(task: &Task) -> Vec<OsString> {
    let program = std::env::current_exe().expect("own path");
    let program = program.with_file_name("bench-plain");
    vec![program.into(), task.model.into()]
}

/// ONNX Runtime, which `python` has.
pub fn onnx(python: OsString, task: &Task) -> Vec<OsString> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let weights = root.join(format!("models/{}.safetensors", task.model));
    let script = root.join("tests/bench/jobs/plain_onnx.py");
    vec![python, script.into(), weights.into()]
}

/// As many plain processes as the cluster has nodes.
pub struct Plain {
    processes: Vec<Process>,
}

impl Plain {
    /// Starts `parts` processes of `command`, and waits until each has its network.
    pub fn start(
        command: &[OsString],
        task: &Task,
        files: &Path,
        batch: usize,
        parts: usize,
        home: &Path,
    ) -> Plain {
        let start = |part: usize| {
            let numbers = [task.count, batch, part, parts].map(|number| number.to_string());
            let mut child = Command::new(&command[0])
                .args(&command[1..])
                .arg(files)
                .args([task.stem, task.extension])
                .args(numbers)
                .arg(home.join(format!("plain{part}.csv")))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap_or_else(|error| panic!("{:?}: {error}", command[0]));
            let input = child.stdin.take().expect("piped");
            let output = BufReader::new(child.stdout.take().expect("piped"));
            let mut process = Process {
                child,
                input,
                output,
            };
            assert_eq!(process.line(), "ready");
            process
        };
        let processes = (0..parts).map(start).collect();
        Plain { processes }
    }

    /// Lets all of them go through the files: queries a second, until the last one is done.
    pub fn run(&mut self, task: &Task) -> f64 {
        let from = Instant::now();
        for process in &mut self.processes {
            for _ in 0..task.jobs {
                writeln!(process.input, "go").expect("it reads");
            }
        }
        let mut done = 0;
        for process in &mut self.processes {
            for _ in 0..task.jobs {
                done += process.line().parse::<usize>().expect("a number");
            }
        }
        assert_eq!(done, task.count * task.jobs);
        done as f64 / from.elapsed().as_secs_f64()
    }
}
