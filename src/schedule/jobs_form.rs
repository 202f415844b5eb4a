//! Jobs as they stand in a snapshot: each list of inputs once.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Job, Jobs, Published};
use crate::types::JobId;
use crate::wire::schedule::Input;

#[derive(Serialize, Deserialize)]
struct Form<'a> {
    models: Cow<'a, BTreeMap<String, Published>>,
    lists: Vec<Arc<[Input]>>,
    jobs: Vec<JobForm<'a>>,
    history: Cow<'a, VecDeque<JobId>>,
    next: u64,
    revision: u64,
}

#[derive(Serialize, Deserialize)]
struct JobForm<'a> {
    job: Cow<'a, Job>,
    /// Place of its list; none once it has ended.
    list: Option<u32>,
}

impl Serialize for Jobs {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut lists: Vec<Arc<[Input]>> = Vec::new();
        let mut jobs = Vec::with_capacity(self.jobs.len());
        for job in self.jobs.values() {
            let list = job.completed.is_none().then(|| {
                let known = lists.iter().position(|it| Arc::ptr_eq(it, &job.inputs));
                known.unwrap_or_else(|| {
                    lists.push(Arc::clone(&job.inputs));
                    lists.len() - 1
                }) as u32
            });
            let job = Cow::Borrowed(job);
            jobs.push(JobForm { job, list });
        }
        let form = Form {
            models: Cow::Borrowed(&self.models),
            jobs,
            lists,
            history: Cow::Borrowed(&self.history),
            next: self.next,
            revision: self.revision,
        };
        form.serialize(to)
    }
}

impl<'de> Deserialize<'de> for Jobs {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Jobs, D::Error> {
        let form = Form::deserialize(from)?;
        let mut jobs = Jobs {
            models: form.models.into_owned(),
            history: form.history.into_owned(),
            next: form.next,
            revision: form.revision,
            ..Jobs::default()
        };
        for JobForm { job, list } in form.jobs {
            let mut job = job.into_owned();
            if let Some(place) = list {
                let list = form.lists.get(place as usize);
                let list = list.filter(|list| list.len() as u64 == job.total);
                let list =
                    list.ok_or_else(|| D::Error::custom("jobs that contradict themselves"))?;
                job.inputs = Arc::clone(list);
                jobs.unfinished.insert(job.id);
            }
            jobs.jobs.insert(job.id, job);
        }
        Ok(jobs)
    }
}
