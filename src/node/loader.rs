//! Which published models this node has loaded, and which one it loads next.
//!
//! Decides: order and retries. Leaves to others: fetching and loading (the driver).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::state::State;
use crate::types::{Digest, Time};
use crate::wire::schedule::Model;

/// After this, a model that could not be fetched or loaded is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// A network and its weights.
type Key = (String, Digest);

/// The node's models.
#[derive(Clone, Debug, Default)]
pub struct Loader {
    loaded: BTreeSet<Key>,
    loading: Option<Key>,
    retry_at: BTreeMap<Key, Time>,
}

impl Loader {
    /// The model to load now, if any; at most one at a time.
    pub fn next(&mut self, now: Time, state: &State) -> Option<Model> {
        if self.loading.is_some() {
            return None;
        }
        let due = |key: &Key| self.retry_at.get(key).is_none_or(|at| *at <= now);
        let wanted = state.jobs.wanted_models();
        let next = wanted.into_iter().find(|model| {
            let key = key(model);
            !self.loaded.contains(&key) && due(&key)
        })?;
        self.loading = Some(key(&next));
        Some(next)
    }

    /// The driver is done with a model, for better or worse.
    pub fn handle_loaded(&mut self, now: Time, name: &str, digest: Digest, done: bool) {
        let key = (name.to_string(), digest);
        self.loading.take_if(|loading| *loading == key);
        if done {
            self.retry_at.remove(&key);
            self.loaded.insert(key);
        } else {
            self.retry_at.insert(key, now + RETRY);
        }
    }

    /// When a failed model is to be tried again.
    pub fn poll_timeout(&self) -> Option<Time> {
        if self.loading.is_some() {
            None
        } else {
            self.retry_at.values().copied().min()
        }
    }
}

fn key(model: &Model) -> Key {
    (model.name.clone(), model.digest)
}
