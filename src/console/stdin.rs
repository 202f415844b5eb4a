//! The console of a node: commands from stdin, one a line.
//!
//! On a terminal with a prompt, history and completion; on a pipe with neither prompt
//! nor colour. A bad line prints its error and the loop goes on. The end of the input
//! ends the loop and leaves the node running.

use std::io::{self, BufRead, IsTerminal, Write};
use std::net::SocketAddr;

use rustyline::completion::{Completer, FilenameCompleter, Pair};
use rustyline::error::ReadlineError;
use rustyline::history::DefaultHistory;
use rustyline::{Context, Editor, Helper, Highlighter, Hinter, Validator};

use super::client::{Client, ClientError};
use super::command::{self, COMMANDS, Command};
use super::{Ask, run};
use crate::wire::client::Request;

/// How the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// No more lines: the node goes on.
    Input,
    /// `leave` was carried out: the node is stopping.
    Left,
    /// Ctrl-C at the prompt: the node is to stop.
    Interrupted,
}

/// Runs commands on the node at `addr` until stdin ends. Where the node is `joining`, the
/// first command waits until it has joined or has found nobody to join.
pub fn run_stdin(addr: SocketAddr, joining: bool) -> End {
    let mut client = Client::new(addr);
    if joining {
        // Whatever comes of it: the commands say so themselves.
        let _ = client.request(&Request::Join);
    }
    if io::stdin().is_terminal() && io::stdout().is_terminal() {
        terminal(&mut client)
    } else {
        pipe(&mut client, io::stdin().lock())
    }
}

fn pipe(client: &mut Client, mut lines: impl BufRead) -> End {
    let mut line = Vec::new();
    loop {
        line.clear();
        match lines.read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return End::Input,
            Ok(_) => {}
        }
        // A line that is not text is one bad line, not the end.
        let mut ask = |text: &str| {
            say(text);
            let mut answer = String::new();
            lines.read_line(&mut answer).is_ok() && is_yes(&answer)
        };
        if obey(client, &String::from_utf8_lossy(&line), &mut ask) == Some(End::Left) {
            return End::Left;
        }
    }
}

fn terminal(client: &mut Client) -> End {
    let mut editor: Editor<CommandHelper, DefaultHistory> = match Editor::new() {
        Ok(editor) => editor,
        Err(_) => return pipe(client, io::stdin().lock()),
    };
    editor.set_helper(Some(CommandHelper {
        files: FilenameCompleter::new(),
    }));
    loop {
        match editor.readline("dlc> ") {
            Ok(line) => {
                let _ = editor.add_history_entry(&line);
                let mut ask = |text: &str| {
                    say(text);
                    editor.readline("yes or no> ").is_ok_and(|it| is_yes(&it))
                };
                if let Some(end) = obey(client, &line, &mut ask) {
                    return end;
                }
            }
            Err(ReadlineError::Interrupted) => return End::Interrupted,
            Err(_) => return End::Input,
        }
    }
}

/// Runs one line and prints what came of it.
fn obey(client: &mut Client, line: &str, ask: Ask) -> Option<End> {
    let parsed = command::words(line.trim_end_matches(['\n', '\r']))
        .and_then(|words| command::parse(&words));
    let command = match parsed {
        Ok(Some(command)) => command,
        Ok(None) => return None,
        Err(error) => {
            say(&format!("error: {error}"));
            return None;
        }
    };
    match run::run(client, &command, ask) {
        Ok(answer) => say(&answer.text),
        // The process may be gone before the answer to `leave` is read.
        Err(ClientError::BrokenOff { .. }) if command == Command::Leave => return Some(End::Left),
        Err(error) => {
            say(&format!("error: {error}"));
            return None;
        }
    }
    (command == Command::Leave).then_some(End::Left)
}

/// Whether a person's answer is yes.
pub fn is_yes(answer: &str) -> bool {
    ["y", "yes"].contains(&answer.trim().to_lowercase().as_str())
}

fn say(text: &str) {
    let mut stdout = io::stdout().lock();
    // Nobody reads any more: the node goes on all the same.
    let _ = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
}

/// Completes command names in the first word and local files in the others.
#[derive(Helper, Highlighter, Hinter, Validator)]
struct CommandHelper {
    files: FilenameCompleter,
}

impl Completer for CommandHelper {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        position: usize,
        context: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let typed = &line[..position];
        if typed.contains(' ') {
            return self.files.complete(line, position, context);
        }
        let names = COMMANDS
            .iter()
            .map(|(name, ..)| *name)
            .filter(|name| name.starts_with(typed));
        let pairs = names.map(|name| Pair {
            display: name.into(),
            replacement: format!("{name} "),
        });
        Ok((0, pairs.collect()))
    }
}
