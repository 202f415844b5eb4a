//! Clients that hold, resume and end jobs and change their weights, and what must be seen then.
//!
//! Decides: that what was answered is what `job_info` and `job_stats` show until the next such
//! command is begun; a cancelled job stays so, with the rows that it had. Leaves to others: that
//! jobs end (`convergence`), and their rows (`watchers`, `convergence`).

use std::collections::BTreeMap;
use std::time::Duration;

use dlc::types::{JobId, Rng};
use dlc::wire::client::{JobInfo, JobStats, JobStatus, Refusal, Reply, Request};
use dlc::wire::schedule::JobControl;

use crate::cluster::Sim;
use crate::network::HostId;

/// What is known of the commands for one job.
#[derive(Clone, Copy, Default)]
struct Known {
    /// Commands begun.
    begun: u64,
    /// Those of them that may still be carried out: without an answer, for ever.
    open: u64,
    /// Whether no other was open when the last one began.
    alone: bool,
    /// The last one, where it was answered, and no other was open or begun meanwhile.
    settled: Option<JobControl>,
    /// Its rows once it was cancelled.
    rows: Option<u64>,
}

/// The commands for all jobs.
#[derive(Clone, Default)]
pub struct Controls(BTreeMap<JobId, Known>);

impl Controls {
    fn begin(&mut self, job: JobId) -> u64 {
        let known = self.0.entry(job).or_default();
        known.begun += 1;
        known.alone = known.open == 0;
        known.open += 1;
        if known.settled != Some(JobControl::Cancel) {
            known.settled = None;
        }
        known.begun
    }

    fn end(&mut self, job: JobId, number: u64, control: JobControl) {
        let known = self.0.entry(job).or_default();
        known.open -= 1;
        let alone = known.begun == number && known.alone;
        if alone && known.settled != Some(JobControl::Cancel) || control == JobControl::Cancel {
            known.settled = Some(control);
        }
    }

    /// A command was refused for good.
    fn refused(&mut self, job: JobId) {
        self.0.entry(job).or_default().open -= 1;
    }

    /// What was settled when a question was asked and still is: about it the answer must be right.
    fn settled(&self, asked: &Controls, job: JobId) -> Option<JobControl> {
        let (then, now) = (asked.0.get(&job)?, self.0.get(&job)?);
        let same = then.begun == now.begun || then.settled == Some(JobControl::Cancel);
        then.settled.filter(|_| same)
    }

    /// What is wrong in an answer to a `job_info` that was asked when `asked` was known.
    pub fn wrong_info(&self, asked: &Controls, info: &JobInfo) -> Option<String> {
        let settled = self.settled(asked, info.job)?;
        let right = match settled {
            JobControl::Cancel => info.status == JobStatus::Cancelled,
            // What ran may have been the last of it.
            JobControl::Pause => {
                matches!(info.status, JobStatus::Paused | JobStatus::Completed)
            }
            JobControl::Resume => !matches!(info.status, JobStatus::Paused | JobStatus::Cancelled),
            JobControl::Weight(_) => info.status != JobStatus::Cancelled,
        };
        let (job, status) = (info.job, info.status);
        (!right).then(|| format!("job {job} is {status:?} after {settled:?}"))
    }

    /// The same of `job_stats`.
    pub fn wrong_stats(&mut self, asked: &Controls, stats: &JobStats) -> Option<String> {
        if self.settled(asked, stats.job)? != JobControl::Cancel {
            return None;
        }
        let rows = &mut self.0.get_mut(&stats.job)?.rows;
        let first = *rows.get_or_insert(stats.count);
        let (job, count) = (stats.job, stats.count);
        (first != count).then(|| format!("cancelled job {job} counts {count} after {first}"))
    }
}

/// Draws what a client does with a job.
pub fn draw(random: &mut Rng) -> JobControl {
    match random.below(10) {
        0 => JobControl::Cancel,
        1..4 => JobControl::Pause,
        4..7 => JobControl::Resume,
        _ => JobControl::Weight(1 + random.below(9) as u32),
    }
}

impl Sim {
    /// Does `control` with one of the jobs that clients know.
    pub fn control(&mut self, host: HostId, pick: u64, control: JobControl) {
        let jobs = &self.clients.jobs;
        if let Some((job, _)) = jobs.get((pick % jobs.len().max(1) as u64) as usize) {
            self.control_job(host, *job, control, |_| {});
        }
    }

    /// Resumes every job that clients know, whatever was done with them.
    pub fn resume_all(&mut self) {
        let jobs: Vec<JobId> = self.clients.jobs.iter().map(|(job, _)| *job).collect();
        jobs.into_iter().for_each(|job| self.go_on(job));
    }

    fn go_on(&mut self, job: JobId) {
        let again = move |sim: &mut Sim| {
            sim.after(Duration::from_millis(500), move |sim| sim.go_on(job));
        };
        match self.some_member() {
            Some(host) => self.control_job(host, job, JobControl::Resume, again),
            None => again(self),
        }
    }

    fn control_job(
        &mut self,
        host: HostId,
        job: JobId,
        control: JobControl,
        unanswered: impl Fn(&mut Sim) + 'static,
    ) {
        let what = match control {
            JobControl::Pause => "pause",
            JobControl::Resume => "resume",
            JobControl::Cancel => "cancel",
            JobControl::Weight(_) => "weight",
        };
        self.begin(what);
        let number = self.clients.controls.begin(job);
        let request = Request::Control {
            request: self.request_id(),
            job,
            control,
        };
        self.ask(host, request, move |sim, reply| match reply {
            Some(Reply::Status(status)) => {
                sim.succeed(what);
                sim.clients.controls.end(job, number, control);
                let cancelled = status == JobStatus::Cancelled;
                if cancelled != (control == JobControl::Cancel) {
                    sim.violate("P7", format!("job {job} is {status:?} after {control:?}"));
                }
            }
            Some(Reply::Refused(Refusal::JobEnded(_))) => {
                sim.clients.controls.refused(job);
                sim.succeed(what);
            }
            Some(Reply::Refused(Refusal::UnknownJob(_))) => {
                sim.violate("P11", format!("job {job} was answered and is unknown"));
            }
            _ => unanswered(sim),
        });
    }
}
