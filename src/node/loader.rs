//! Which published models this node has loaded, and which one it loads next.
//!
//! Decides: order and retries. Leaves to others: fetching and loading (the driver).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::io::LoadFailure;
use super::state::State;
use crate::types::{Digest, Time};
use crate::wire::schedule::Model;

/// After this, a model that could not be read or loaded is tried again; where it was
/// refused, twice as long each time, since an attempt may keep the inference thread for a
/// minute.
const RETRY: Duration = Duration::from_secs(5);
/// Longest wait between two attempts.
const RETRY_MAX: Duration = Duration::from_secs(3600);

/// A network and its weights.
type Key = (String, Digest);

/// The node's models.
#[derive(Clone, Debug, Default)]
pub struct Loader {
    /// What is wanted, and since when.
    wanted: Vec<Model>,
    since: Option<(u64, usize, u64)>,
    loaded: BTreeSet<Key>,
    /// What is being loaded, and the number of its publication.
    loading: Option<(Key, u64)>,
    failed: BTreeMap<Key, Failure>,
}

/// A model that could not be loaded.
#[derive(Clone, Debug)]
struct Failure {
    /// When it is tried again, if it is not published again before.
    retry_at: Time,
    wait: Duration,
    publication: u64,
}

impl Loader {
    /// The model to load now, if any; at most one at a time.
    pub fn next(&mut self, now: Time, state: &State) -> Option<Model> {
        if self.loading.is_some() {
            return None;
        }
        let publication = |model: &Model| {
            let newest = state.jobs.model(&model.name);
            newest.map_or(0, |published| published.version)
        };
        let since = Some(state.jobs.wanted_since());
        if self.since != since {
            self.since = since;
            self.wanted = state.jobs.wanted_models();
        }
        let next = self.wanted.iter().find(|model| {
            let key = key(model);
            let due = |failure: &Failure| {
                failure.retry_at <= now || failure.publication != publication(model)
            };
            !self.loaded.contains(&key) && self.failed.get(&key).is_none_or(due)
        })?;
        self.loading = Some((key(next), publication(next)));
        Some(next.clone())
    }

    /// The state is another one, of which the wanted models are still to be looked up.
    pub fn handle_restored(&mut self) {
        self.since = None;
    }

    /// Forgets the models that nobody wants any more, loaded or failed; they are given back.
    pub fn drop_unwanted(&mut self, state: &State) -> Vec<(String, Digest)> {
        let wanted: BTreeSet<Key> = state.jobs.wanted_models().iter().map(key).collect();
        let unwanted = |key: &Key| !wanted.contains(key);
        let loaded = self.loaded.extract_if(.., |key| unwanted(key));
        let failed = self.failed.extract_if(.., |key, _| unwanted(key));
        loaded.chain(failed.map(|(key, _)| key)).collect()
    }

    /// The models that are loaded.
    pub fn loaded(&self) -> &BTreeSet<(String, Digest)> {
        &self.loaded
    }

    /// The driver is done with a model, for better or worse. Gives the newest publication under
    /// its name when it began.
    pub fn handle_loaded(
        &mut self,
        now: Time,
        name: &str,
        digest: Digest,
        result: &Result<(), LoadFailure>,
    ) -> u64 {
        let key = (name.to_string(), digest);
        let loading = self.loading.take_if(|(loading, _)| *loading == key);
        let before = self.failed.remove(&key);
        let publication = loading.map_or(0, |(_, publication)| publication);
        let before = before.filter(|failure| failure.publication == publication);
        let wait = match (result, before) {
            (Ok(()), _) => {
                self.loaded.insert(key);
                return publication;
            }
            (Err(LoadFailure::Refused(_)), Some(before)) => RETRY_MAX.min(2 * before.wait),
            (Err(_), _) => RETRY,
        };
        let failure = Failure {
            retry_at: now + wait,
            wait,
            publication,
        };
        self.failed.insert(key, failure);
        publication
    }

    /// When a failed model is to be tried again.
    pub fn poll_timeout(&self) -> Option<Time> {
        if self.loading.is_some() {
            None
        } else {
            let due = self.failed.values().map(|failure| failure.retry_at);
            due.min()
        }
    }
}

fn key(model: &Model) -> Key {
    (model.name.clone(), model.digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{BlobId, FileName, Term};

    fn model(name: &str, content: &str) -> Model {
        let file = FileName::new("models/m").expect("a valid name");
        let (term, counter) = (Term(1), 0);
        let blob = BlobId { term, counter };
        Model {
            name: name.into(),
            manifest: (file.clone(), blob),
            weights: (file, blob),
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
            let result = match next.name == "m8" {
                true => Err(LoadFailure::Refused("NaN".into())),
                false => Ok(()),
            };
            loader.handle_loaded(now, &next.name, next.digest, &result);
            count += 1;
        }
        assert_eq!((count, loader.loaded().len()), (40, 39));
        assert!(loader.poll_timeout().is_some(), "m8 is tried again");
        state.jobs.publish(model("m7", "third"));
        state.jobs.publish(model("m8", "third"));
        let dropped = loader.drop_unwanted(&state);
        let second = |name: &str| (name.to_string(), Digest::of(b"second"));
        assert_eq!(dropped, [second("m7"), second("m8")]);
        assert_eq!(loader.loaded().len(), 38);
        assert_eq!(loader.poll_timeout(), None, "nobody wants that m8 any more");
    }

    #[test]
    fn a_state_of_another_history_is_looked_at_anew() {
        let (mut state, mut other) = (State::default(), State::default());
        state.jobs.publish(model("m", "ours"));
        other.jobs.publish(model("m", "theirs"));
        let mut loader = Loader::default();
        let next = loader.next(Time(0), &state).expect("wanted");
        loader.handle_loaded(Time(0), &next.name, next.digest, &Ok(()));
        assert_eq!(loader.next(Time(0), &state), None);
        loader.handle_restored();
        let next = loader.next(Time(0), &other).expect("wanted");
        assert_eq!(next.digest, Digest::of(b"theirs"));
    }

    #[test]
    fn a_model_that_fails_is_tried_less_and_less_often_until_it_is_published_again() {
        let (mut state, mut loader) = (State::default(), Loader::default());
        state.jobs.publish(model("m", "first"));
        let refused = LoadFailure::Refused("it never answers".into());
        let unread = LoadFailure::Unread("no holder is up".into());
        let fail = |loader: &mut Loader, state: &State, now: Time, failure: &LoadFailure| {
            let next = loader.next(now, state).expect("due");
            loader.handle_loaded(now, &next.name, next.digest, &Err(failure.clone()));
            let at = loader.poll_timeout().expect("to be tried again");
            assert!(loader.next(now, state).is_none(), "not at once");
            at.since(now)
        };
        let mut now = Time(0);
        let mut waits = Vec::new();
        for _ in 0..12 {
            let wait = fail(&mut loader, &state, now, &refused);
            waits.push(wait.as_secs());
            now = now + wait;
        }
        assert_eq!(waits[..4], [5, 10, 20, 40]);
        assert_eq!(waits[10..], [3600, 3600]);
        state.jobs.publish(model("m", "first"));
        assert_eq!(fail(&mut loader, &state, Time(1), &refused), RETRY);
        // What cannot be read now may be in a moment.
        for turn in 1..9 {
            let now = Time(1) + RETRY * turn;
            assert_eq!(fail(&mut loader, &state, now, &unread), RETRY);
        }
    }
}
