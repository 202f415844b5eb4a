//! Which published models this node has loaded, and which one it loads next.
//!
//! Decides: order and retries. Leaves to others: fetching and loading (the driver).

use std::collections::BTreeMap;
use std::time::Duration;

use super::state::State;
use crate::types::{Digest, Time};
use crate::wire::schedule::Model;

/// After this, a model that could not be fetched or loaded is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// The node's models.
#[derive(Clone, Debug, Default)]
pub struct Loader {
    /// Newest result for each name.
    results: BTreeMap<String, (Digest, Result<(), String>)>,
    loading: Option<(String, Digest)>,
    retry_at: BTreeMap<String, Time>,
}

impl Loader {
    /// The publication to load now, if any; at most one at a time.
    pub fn next(&mut self, now: Time, state: &State) -> Option<Model> {
        if self.loading.is_some() {
            return None;
        }
        let wanted = state.jobs.models().find(|model| match self.results.get(&model.name) {
            Some((digest, Ok(()))) => *digest != model.digest,
            Some((digest, Err(_))) => {
                *digest != model.digest || self.retry_at.get(&model.name).is_none_or(|at| *at <= now)
            }
            None => true,
        })?;
        self.loading = Some((wanted.name.clone(), wanted.digest));
        Some(wanted.clone())
    }

    /// The driver is done with a model, for better or worse.
    pub fn handle_loaded(&mut self, now: Time, name: &str, digest: Digest, result: Result<(), String>) {
        if self.loading.as_ref().is_some_and(|(loading, _)| loading == name) {
            self.loading = None;
        }
        if result.is_err() {
            self.retry_at.insert(name.into(), now + RETRY);
        }
        self.results.insert(name.into(), (digest, result));
    }

    /// When a failed model is to be tried again.
    pub fn poll_timeout(&self) -> Option<Time> {
        if self.loading.is_some() {
            return None;
        }
        let failed = self.results.iter().filter(|(_, (_, result))| result.is_err());
        failed.filter_map(|(name, _)| self.retry_at.get(name).copied()).min()
    }
}
