//! The command language: one line, or the arguments of `dlc`, becomes a [`Command`].
//!
//! Decides: names, arity and ranges, and the words of every complaint about them.
//! Leaves to others: everything that needs a node or a file.

use crate::types::{FileName, JobId};
use crate::wire::schedule::JobControl;

/// One command, checked as far as that goes without a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `join`
    Join,
    /// `list_mem`
    ListMembers,
    /// `list_self`
    ListSelf,
    /// `leave`
    Leave,
    /// `put LOCAL SDFS`
    Put {
        /// Path on the client's machine.
        local: String,
        /// SDFS name.
        name: FileName,
    },
    /// `get [--stale] SDFS LOCAL`
    Get {
        /// SDFS name.
        name: FileName,
        /// Path on the client's machine.
        local: String,
        /// Read what the node asked knows, without asking the coordinator.
        stale: bool,
    },
    /// `get-versions SDFS N LOCAL`
    GetVersions {
        /// SDFS name.
        name: FileName,
        /// How many of the newest versions.
        newest: u64,
        /// Path on the client's machine; `_vK` goes before its extension.
        local: String,
    },
    /// `delete SDFS`
    Delete(FileName),
    /// `ls SDFS`
    List(FileName),
    /// `store`
    Store,
    /// `keep-versions [N|all]`
    KeepVersions(Option<Keep>),
    /// `under`
    Under,
    /// `fsck`
    Fsck,
    /// `train [MODEL]`
    Train(Option<String>),
    /// `infer MODEL DATASET BATCH [--weight W]`
    Infer {
        /// Model name.
        model: String,
        /// Data set pattern.
        dataset: String,
        /// Inputs in one task.
        batch: u32,
        /// Share relative to other jobs.
        weight: u32,
    },
    /// `job_info`
    JobInfo,
    /// `job_stats`
    JobStats,
    /// `upload_data [DIR/]DATASET COUNT`
    UploadData {
        /// Pattern with an optional folder.
        dataset: String,
        /// How many files to store.
        count: u64,
    },
    /// `download_data DATASET DIR`
    DownloadData {
        /// Data set pattern.
        dataset: String,
        /// Folder on the client's machine.
        folder: String,
    },
    /// `tail JOB N`
    Tail {
        /// The job.
        job: JobId,
        /// How many rows.
        rows: u32,
    },
    /// `explain JOB`
    Explain(JobId),
    /// `cancel JOB`, `pause JOB`, `resume JOB`, `weight JOB W`
    Control {
        /// The job.
        job: JobId,
        /// What is to be done.
        control: JobControl,
    },
    /// `rebuild [--yes]`
    Rebuild {
        /// Do not ask.
        confirmed: bool,
    },
    /// `why NAME`
    Why(String),
    /// `stats`
    Stats,
    /// `help [COMMAND]`
    Help(Option<String>),
}

/// How many versions of each file are to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Every one.
    All,
    /// So many of the newest.
    Newest(u64),
}

/// A line that is no command; nothing was done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    /// No command of that name.
    #[error("unknown command {0:?}: `help` lists the commands")]
    Unknown(String),
    /// Wrong number of words.
    #[error("usage: {0}")]
    Arity(&'static str),
    /// A word out of range.
    #[error("{what}: {got:?} is no {expected} (usage: {usage})")]
    Word {
        /// Which word.
        what: &'static str,
        /// What stands there.
        got: String,
        /// What should.
        expected: &'static str,
        /// The command's usage.
        usage: &'static str,
    },
    /// Not a possible SDFS name.
    #[error(transparent)]
    Name(#[from] crate::types::NameError),
    /// A quote without its end.
    #[error("a quote is not closed: put names with spaces in '…' or \"…\"")]
    Quote,
}

/// Name, usage and one line of help of each command, in the order of the manual.
pub const COMMANDS: &[(&str, &str, &str)] = &[
    ("join", "join", "join the cluster"),
    ("list_mem", "list_mem", "the members as this node sees them"),
    ("list_self", "list_self", "this node's process id"),
    ("leave", "leave", "leave the cluster and stop this node"),
    (
        "put",
        "put LOCAL SDFS",
        "upload a file as the next version of an SDFS file",
    ),
    (
        "get",
        "get [--stale] SDFS LOCAL",
        "download the newest version (--stale: without asking the coordinator)",
    ),
    (
        "get-versions",
        "get-versions SDFS N LOCAL",
        "download the newest N versions, each to its own file",
    ),
    ("delete", "delete SDFS", "delete all versions of a file"),
    (
        "ls",
        "ls SDFS",
        "the live nodes that hold the newest version",
    ),
    ("store", "store", "the versions on this node's disk"),
    (
        "keep-versions",
        "keep-versions [N|all]",
        "keep only the newest N versions of each file from now on, or say how many are kept",
    ),
    (
        "under",
        "under",
        "files with too few copies, and how fast they are repaired",
    ),
    (
        "fsck",
        "fsck",
        "read and check every copy on every node; those that are wrong are made anew",
    ),
    (
        "train",
        "train [MODEL]",
        "publish the models whose weights are there and wait until every node has them loaded",
    ),
    (
        "infer",
        "infer MODEL DATASET BATCH [--weight W]",
        "start an inference job",
    ),
    ("job_info", "job_info", "all jobs"),
    (
        "job_stats",
        "job_stats",
        "times, rates and nodes of all jobs",
    ),
    (
        "upload_data",
        "upload_data [DIR/]DATASET COUNT",
        "upload the local files that match lenet*.png for lenet.png",
    ),
    (
        "download_data",
        "download_data DATASET DIR",
        "download the newest version of every file of a data set to a folder",
    ),
    (
        "tail",
        "tail JOB N",
        "the last N result rows of a job so far",
    ),
    (
        "explain",
        "explain JOB",
        "where a job's time goes: which nodes, which part",
    ),
    (
        "pause",
        "pause JOB",
        "hand out no more tasks of a job; those that run are finished",
    ),
    ("resume", "resume JOB", "go on with a job that was paused"),
    (
        "cancel",
        "cancel JOB",
        "end a job: the rows that it has are its result",
    ),
    (
        "weight",
        "weight JOB W",
        "give a job another share relative to other jobs (1 is usual)",
    ),
    (
        "rebuild",
        "rebuild [--yes]",
        "go on when most voters are lost for good, with what is left; asks first",
    ),
    (
        "why",
        "why NAME",
        "who suspected or removed a member, and on what evidence",
    ),
    ("stats", "stats", "counters of this node"),
    ("help", "help [COMMAND]", "this list, or one command"),
];

fn usage(name: &str) -> &'static str {
    COMMANDS
        .iter()
        .find(|(command, ..)| *command == name)
        .map_or("help", |(_, usage, _)| usage)
}

/// The words of a line: separated by blanks, with `'…'`, `"…"` and `\` as in a shell.
pub fn words(line: &str) -> Result<Vec<String>, UsageError> {
    shlex::split(line).ok_or(UsageError::Quote)
}

fn number<T: std::str::FromStr + PartialOrd + From<u8>>(
    name: &'static str,
    what: &'static str,
    word: &str,
) -> Result<T, UsageError> {
    let is_large = word.bytes().all(|byte| byte.is_ascii_digit()) && word.contains(|c| c != '0');
    let bad = || UsageError::Word {
        what,
        got: word.into(),
        expected: match (is_large, size_of::<T>()) {
            (false, _) => "whole number from 1 up",
            (true, 4) => "number below 2^32",
            (true, _) => "number below 2^64",
        },
        usage: usage(name),
    };
    word.parse::<T>()
        .ok()
        .filter(|n| *n >= T::from(1))
        .ok_or_else(bad)
}

/// The command in `words`; none where there is no word.
pub fn parse(words: &[String]) -> Result<Option<Command>, UsageError> {
    let Some((name, rest)) = words.split_first() else {
        return Ok(None);
    };
    let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
    let command = match (name.as_str(), rest.as_slice()) {
        ("join", []) => Command::Join,
        ("list_mem", []) => Command::ListMembers,
        ("list_self", []) => Command::ListSelf,
        ("leave", []) => Command::Leave,
        ("put", [local, sdfs]) => Command::Put {
            local: (*local).into(),
            name: FileName::new(sdfs)?,
        },
        ("get", ["--stale", sdfs, local])
        | ("get", [sdfs, "--stale", local])
        | ("get", [sdfs, local, "--stale"]) => Command::Get {
            name: FileName::new(sdfs)?,
            local: (*local).into(),
            stale: true,
        },
        ("get", [sdfs, local]) => Command::Get {
            name: FileName::new(sdfs)?,
            local: (*local).into(),
            stale: false,
        },
        ("get-versions", [sdfs, n, local]) => Command::GetVersions {
            name: FileName::new(sdfs)?,
            newest: number("get-versions", "N", n)?,
            local: (*local).into(),
        },
        ("delete", [sdfs]) => Command::Delete(FileName::new(sdfs)?),
        ("ls", [sdfs]) => Command::List(FileName::new(sdfs)?),
        ("store", []) => Command::Store,
        ("keep-versions", []) => Command::KeepVersions(None),
        ("keep-versions", ["all"]) => Command::KeepVersions(Some(Keep::All)),
        ("keep-versions", [n]) => {
            Command::KeepVersions(Some(Keep::Newest(number("keep-versions", "N", n)?)))
        }
        ("under", []) => Command::Under,
        ("fsck", []) => Command::Fsck,
        ("train", []) => Command::Train(None),
        ("train", [model]) => Command::Train(Some((*model).into())),
        ("infer", rest) => infer(rest)?,
        ("job_info", []) => Command::JobInfo,
        ("job_stats", []) => Command::JobStats,
        ("upload_data", [dataset, count]) => Command::UploadData {
            dataset: data_set("upload_data", dataset)?,
            count: number("upload_data", "COUNT", count)?,
        },
        ("download_data", [dataset, folder]) => Command::DownloadData {
            dataset: data_set("download_data", dataset)?,
            folder: (*folder).into(),
        },
        ("tail", [job, rows]) => Command::Tail {
            job: job_id("tail", job)?,
            rows: number("tail", "N", rows)?,
        },
        ("explain", [job]) => Command::Explain(job_id("explain", job)?),
        ("pause", [job]) => control("pause", job, JobControl::Pause)?,
        ("resume", [job]) => control("resume", job, JobControl::Resume)?,
        ("cancel", [job]) => control("cancel", job, JobControl::Cancel)?,
        ("weight", [job, weight]) => {
            let weight = number("weight", "W", weight)?;
            control("weight", job, JobControl::Weight(weight))?
        }
        ("rebuild", []) => Command::Rebuild { confirmed: false },
        ("rebuild", ["--yes"]) => Command::Rebuild { confirmed: true },
        ("why", [node]) => Command::Why((*node).into()),
        ("stats", []) => Command::Stats,
        ("help", []) => Command::Help(None),
        ("help", [command]) => {
            help(Some(command))?;
            Command::Help(Some((*command).into()))
        }
        (known, _) if COMMANDS.iter().any(|(command, ..)| *command == known) => {
            return Err(UsageError::Arity(usage(known)));
        }
        (unknown, _) => return Err(UsageError::Unknown(unknown.into())),
    };
    Ok(Some(command))
}

/// A data set: `lenet.png`, with or without a folder before it.
fn data_set(command: &'static str, word: &str) -> Result<String, UsageError> {
    match word.is_empty() || word.ends_with('/') {
        false => Ok(word.into()),
        true => Err(UsageError::Word {
            what: "DATASET",
            got: word.into(),
            expected: "data set, such as lenet.png",
            usage: usage(command),
        }),
    }
}

fn control(name: &'static str, job: &str, control: JobControl) -> Result<Command, UsageError> {
    let job = job_id(name, job)?;
    Ok(Command::Control { job, control })
}

fn job_id(name: &'static str, word: &str) -> Result<JobId, UsageError> {
    let bad = |_| UsageError::Word {
        what: "JOB",
        got: word.into(),
        expected: "job number",
        usage: usage(name),
    };
    word.parse().map(JobId).map_err(bad)
}

fn infer(words: &[&str]) -> Result<Command, UsageError> {
    let mut weight = 1;
    let mut plain = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if *word == "--weight" {
            let value = words.next().ok_or(UsageError::Arity(usage("infer")))?;
            weight = number("infer", "--weight", value)?;
        } else {
            plain.push(*word);
        }
    }
    let [model, dataset, batch] = plain[..] else {
        return Err(UsageError::Arity(usage("infer")));
    };
    let batch = number("infer", "BATCH", batch)?;
    Ok(Command::Infer {
        model: model.into(),
        dataset: data_set("infer", dataset)?,
        batch,
        weight,
    })
}

/// Text of `help`, or of `help COMMAND`.
pub fn help(command: Option<&str>) -> Result<String, UsageError> {
    let mut lines = Vec::new();
    for (name, usage, text) in COMMANDS {
        if command.is_none_or(|wanted| wanted == *name) {
            lines.push(format!("{usage:<44} {text}"));
        }
    }
    match command {
        Some(unknown) if lines.is_empty() => Err(UsageError::Unknown(unknown.into())),
        _ => Ok(lines.join("\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Result<Option<Command>, String> {
        words(text)
            .and_then(|words| parse(&words))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn every_command_of_the_manual_parses_by_its_own_usage() {
        for (name, usage, _) in COMMANDS {
            let example = usage
                .replace("[--stale] ", "")
                .replace("[DIR/]", "")
                .replace("[MODEL]", "m");
            let example = example
                .replace("[--weight W]", "--weight 2")
                .replace("[--yes]", "--yes")
                .replace("[N|all]", "5")
                .replace("[COMMAND]", "put");
            let example = example
                .replace("COUNT", "3")
                .replace("BATCH", "3")
                .replace("JOB", "0");
            let example = example.replace(" N", " 3").replace(" W", " 3");
            assert!(
                matches!(line(&example), Ok(Some(_))),
                "{name}: {example}: {:?}",
                line(&example)
            );
            assert!(
                line(&format!("{name} a b c d e f"))
                    .unwrap_err()
                    .contains("usage: "),
                "{name}"
            );
        }
    }

    #[test]
    fn bad_lines_say_what_is_wrong() {
        for (bad, says) in [
            ("lst", "unknown command \"lst\""),
            ("grep x", "unknown command"),
            ("cancel", "usage: cancel JOB"),
            ("pause x", "job number"),
            ("weight 0 0", "whole number from 1 up"),
            ("put a", "usage: put LOCAL SDFS"),
            ("infer lenet lenet.png 0", "whole number from 1 up"),
            ("infer lenet lenet.png 4294967296", "below 2^32"),
            ("infer lenet lenet.png 00", "whole number from 1 up"),
            ("upload_data a.png 18446744073709551616", "below 2^64"),
            ("infer lenet '' 5", "no data set"),
            ("infer lenet lenet.png five", "\"five\""),
            ("infer lenet lenet.png 5 --weight 0", "--weight"),
            ("infer lenet lenet.png", "usage: infer"),
            ("get-versions a 0 b", "whole number"),
            ("keep-versions 0", "whole number"),
            ("keep-versions some", "\"some\""),
            ("tail x 3", "job number"),
            ("put 'a b", "quote"),
            ("upload_data dir/ 3", "no data set"),
            ("download_data '' out", "no data set"),
        ] {
            assert!(
                line(bad).unwrap_err().contains(says),
                "{bad}: {:?}",
                line(bad)
            );
        }
        assert!(
            line(&format!("put a {}", "x".repeat(1025)))
                .unwrap_err()
                .contains("1024")
        );
        assert_eq!(line("   "), Ok(None));
    }

    #[test]
    fn quotes_keep_blanks() {
        let put = Command::Put {
            local: "a b.txt".into(),
            name: FileName::new("c d").unwrap(),
        };
        assert_eq!(line("put 'a b.txt' \"c d\""), Ok(Some(put)));
    }
}
