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

    /// Forgets the models that nobody wants any more; they are given back.
    pub fn drop_unwanted(&mut self, state: &State) -> Vec<(String, Digest)> {
        let wanted: BTreeSet<Key> = state.jobs.wanted_models().iter().map(key).collect();
        self.retry_at.retain(|key, _| wanted.contains(key));
        let unwanted = self.loaded.extract_if(.., |key| !wanted.contains(key));
        unwanted.collect()
    }

    /// The models that are loaded.
    pub fn loaded(&self) -> &BTreeSet<(String, Digest)> {
        &self.loaded
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{FileName, Version};

    fn model(name: &str, content: &str) -> Model {
        let file = FileName::new("models/m").expect("a valid name");
        Model {
            name: name.into(),
            manifest: (file.clone(), Version(0)),
            weights: (file, Version(0)),
            digest: Digest::of(content.as_bytes()),
        }
    }

    #[test]
    fn all_that_is_published_is_loaded_and_only_what_was_replaced_is_dropped() {
        let (mut state, mut loader) = (State::default(), Loader::default());
        let now = Time(0);
        for number in 0..40 {
            state.jobs.publish(model(&format!("m{number}"), "first"));
        }
        state.jobs.publish(model("m7", "second"));
        state.jobs.publish(model("m8", "second"));
        let mut count = 0;
        while let Some(next) = loader.next(now, &state) {
            assert!(loader.drop_unwanted(&state).is_empty());
            loader.handle_loaded(now, &next.name, next.digest, next.name != "m8");
            count += 1;
        }
        assert_eq!((count, loader.loaded().len()), (40, 39));
        assert!(loader.poll_timeout().is_some(), "m8 is tried again");
        state.jobs.publish(model("m7", "third"));
        state.jobs.publish(model("m8", "third"));
        let dropped = loader.drop_unwanted(&state);
        assert_eq!(dropped, [("m7".to_string(), Digest::of(b"second"))]);
        assert_eq!(loader.loaded().len(), 38);
        assert_eq!(loader.poll_timeout(), None, "nobody wants that m8 any more");
    }
}
