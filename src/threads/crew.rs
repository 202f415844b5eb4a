//! The threads of a process: how they start, how their end is noticed, and who is late.
//!
//! Decides: that every thread has a name, and that one which dies takes the process down
//! with a named error: the cluster is the recovery mechanism. Leaves to others: what the
//! threads do, and the order in which they are told to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use super::clock::Clock;
use super::priority::Priority;

/// Why the process ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It was told to stop, or has left the cluster.
    Asked,
    /// A thread failed: its name and what happened.
    Failed(String),
}

/// Starts threads and watches over them.
#[derive(Clone, Debug)]
pub struct Crew {
    clock: Clock,
    handles: Arc<Mutex<Vec<JoinHandle<()>>>>,
    ending: Sender<Ending>,
    stopping: Arc<AtomicBool>,
}

/// Reports how a thread ended, panics included.
struct Report {
    crew: Crew,
    name: String,
    /// Its end is an error unless the process stops.
    vital: bool,
    result: Result<(), String>,
}

impl Drop for Report {
    fn drop(&mut self) {
        let stopping = self.crew.is_stopping();
        let what = match &self.result {
            _ if thread::panicking() => "panicked; see the message above".to_string(),
            Err(error) => error.clone(),
            Ok(()) if self.vital && !stopping => "ended unasked".to_string(),
            Ok(()) => return,
        };
        // Only the first one matters.
        let failed = Ending::Failed(format!("thread {}: {what}", self.name));
        let _ = self.crew.ending.try_send(failed);
    }
}

impl Crew {
    /// No thread yet, and where the first reason to end will come.
    pub fn new(clock: Clock) -> (Crew, Receiver<Ending>) {
        let (ending, endings) = bounded(1);
        let crew = Crew {
            clock,
            handles: Arc::default(),
            ending,
            stopping: Arc::default(),
        };
        (crew, endings)
    }

    /// Starts a thread that lives as long as the process.
    pub fn spawn(
        &self,
        name: &str,
        body: impl FnOnce() -> Result<(), String> + Send + 'static,
    ) -> Result<(), String> {
        self.start(name, true, body)
    }

    /// Starts a thread that ends when its work is done.
    pub fn spawn_passing(
        &self,
        name: &str,
        body: impl FnOnce() -> Result<(), String> + Send + 'static,
    ) -> Result<(), String> {
        self.start(name, false, body)
    }

    fn start(
        &self,
        name: &str,
        vital: bool,
        body: impl FnOnce() -> Result<(), String> + Send + 'static,
    ) -> Result<(), String> {
        let report = Report {
            crew: self.clone(),
            name: name.into(),
            vital,
            result: Ok(()),
        };
        let handle = thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                // Moved in, so that a panic of the body drops it here.
                let mut report = report;
                Priority::Prompt.take();
                report.result = body();
            })
            .map_err(|error| format!("cannot start thread {name}: {error}"))?;
        let mut handles = self.handles.lock();
        handles.retain(|handle| !handle.is_finished());
        handles.push(handle);
        Ok(())
    }

    /// Ends the process in order.
    pub fn end(&self, ending: Ending) {
        let _ = self.ending.try_send(ending);
    }

    /// From now on threads may end.
    pub fn set_stopping(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    /// Whether threads are to end.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Waits until all threads, or all whose names start with `prefix`, have ended. The
    /// names of those that have not after `longest`.
    pub fn join(&self, prefix: &str, longest: Duration) -> Vec<String> {
        let deadline = self.clock.now() + longest;
        loop {
            let mut handles = self.handles.lock();
            handles.retain(|handle| !handle.is_finished());
            let late: Vec<String> = handles
                .iter()
                .filter_map(|handle| handle.thread().name())
                .filter(|name| name.starts_with(prefix))
                .map(String::from)
                .collect();
            drop(handles);
            if late.is_empty() || self.clock.now() > deadline {
                return late;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}
