//! Inputs that are read and decoded before a task asks for them.
//!
//! Decides: how much is kept (bounded in bytes and in number), and what goes first. Leaves to
//! others: which inputs those are (the scheduler's hints), reading and decoding (`prepare`).

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::types::{BlobId, Digest, Time};
use crate::wire::schedule::{AssignedInput, Assignment};
use crate::wire::store::Target;

/// Decoded inputs are kept up to this many bytes.
const BYTES_MAX: usize = 64 << 20;
/// Inputs that wait to be read; further ones are forgotten.
const PENDING_MAX: usize = 8_192;
/// A larger input is not read ahead.
const INPUT_BYTES_MAX: u64 = 4 << 20;
/// Where there is no room, what was decoded so long ago goes: its job has ended, or another
/// node has done it.
const STALE: Duration = Duration::from_secs(30);

/// Name and digest of a network.
pub(super) type Model = (String, Digest);

/// An input that is to be read.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) model: Model,
    pub(super) input: AssignedInput,
    /// Who has it.
    pub(super) sources: Vec<Target>,
}

/// An input that has been read, and how long that took.
pub(super) struct Fetched {
    pub(super) model: Model,
    pub(super) blob: BlobId,
    pub(super) content: Vec<u8>,
    pub(super) nanos: u64,
}

/// A decoded input.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) numbers: Vec<f32>,
    /// Nanoseconds of reading and of decoding.
    pub(super) fetch: u64,
    pub(super) decode: u64,
    at: Time,
}

/// What is prepared, and what is to be.
#[derive(Default)]
pub(super) struct Ahead {
    ready: HashMap<(Digest, BlobId), Ready>,
    bytes: usize,
    fetched: VecDeque<Fetched>,
    pending: VecDeque<Wanted>,
}

impl Ahead {
    /// Whether there is nothing to prepare.
    pub(super) fn is_idle(&self) -> bool {
        self.fetched.is_empty() && self.pending.is_empty()
    }

    /// Takes the hints of a task.
    pub(super) fn add(&mut self, assignment: &mut Assignment) {
        let holders = std::mem::take(&mut assignment.holders);
        for hint in std::mem::take(&mut assignment.hints) {
            let model = (hint.model, hint.digest);
            let small = |input: &AssignedInput| input.bytes <= INPUT_BYTES_MAX;
            for input in hint.inputs.into_iter().filter(small) {
                if self.pending.len() >= PENDING_MAX {
                    return;
                }
                let source = |place: &u16| holders.get(usize::from(*place)).cloned();
                self.pending.push_back(Wanted {
                    model: model.clone(),
                    sources: input.sources.iter().filter_map(source).collect(),
                    input,
                });
            }
        }
    }

    /// The decoded input, where it is there. It is not prepared any more otherwise: the task
    /// that asks is to prepare it.
    pub(super) fn take(&mut self, model: &Model, blob: BlobId) -> Option<Ready> {
        if let Some(ready) = self.ready.remove(&(model.1, blob)) {
            self.bytes -= size_of_val(&ready.numbers[..]);
            return Some(ready);
        }
        self.fetched.retain(|fetched| fetched.blob != blob);
        self.pending.retain(|wanted| wanted.input.blob != blob);
        None
    }

    /// The next input to decode.
    pub(super) fn next_fetched(&mut self) -> Option<Fetched> {
        self.fetched.pop_front()
    }

    /// The next inputs to read, at most `count`; none where there is no room for more.
    pub(super) fn next_wanted(&mut self, now: Time, count: usize) -> Vec<Wanted> {
        if self.bytes >= BYTES_MAX {
            let stale = |ready: &Ready| ready.at + STALE <= now;
            let gone = self.ready.extract_if(|_, ready| stale(ready));
            let freed: usize = gone.map(|(_, it)| size_of_val(&it.numbers[..])).sum();
            self.bytes -= freed;
        }
        if self.bytes >= BYTES_MAX {
            self.pending.clear();
        }
        let count = count.min(self.pending.len());
        self.pending.drain(..count).collect()
    }

    /// Inputs have been read.
    pub(super) fn add_fetched(&mut self, fetched: impl Iterator<Item = Fetched>) {
        self.fetched.extend(fetched);
    }

    /// An input has been decoded at `at`, in `decode` nanoseconds.
    pub(super) fn add_ready(&mut self, from: Fetched, numbers: Vec<f32>, decode: u64, at: Time) {
        self.bytes += size_of_val(&numbers[..]);
        let ready = Ready {
            numbers,
            fetch: from.nanos,
            decode,
            at,
        };
        if let Some(former) = self.ready.insert((from.model.1, from.blob), ready) {
            self.bytes -= size_of_val(&former.numbers[..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{JobId, Term};
    use crate::wire::schedule::{AssignmentId, Hint};

    fn assignment(inputs: u64) -> Assignment {
        let input = |counter| AssignedInput {
            index: counter as u32,
            blob: blob(counter),
            bytes: 10,
            digest: Digest([0; 32]),
            sources: Vec::new(),
        };
        let id = AssignmentId {
            term: Term(1),
            counter: 1,
        };
        let digest = Digest([1; 32]);
        Assignment {
            id,
            token: 0,
            job: JobId(0),
            model: "lenet".into(),
            digest,
            inputs: Vec::new(),
            hints: vec![Hint {
                model: "lenet".into(),
                digest,
                inputs: (0..inputs).map(input).collect(),
            }],
            holders: Vec::new(),
        }
    }

    fn blob(counter: u64) -> BlobId {
        BlobId {
            term: Term(1),
            counter,
        }
    }

    fn second(n: u64) -> Time {
        Time(0) + Duration::from_secs(n)
    }

    fn decode(ahead: &mut Ahead, now: Time, numbers: usize) {
        let wanted = ahead.next_wanted(now, 1).remove(0);
        let fetched = Fetched {
            model: wanted.model,
            blob: wanted.input.blob,
            content: Vec::new(),
            nanos: 3,
        };
        ahead.add_ready(fetched, vec![0.5; numbers], 4, now);
    }

    #[test]
    fn what_was_prepared_is_taken_once_and_what_was_not_is_left_to_the_task() {
        let mut ahead = Ahead::default();
        ahead.add(&mut assignment(2));
        decode(&mut ahead, second(0), 10);
        let model = ("lenet".to_string(), Digest([1; 32]));
        let other = ("lenet".to_string(), Digest([2; 32]));
        assert!(ahead.take(&other, blob(0)).is_none());
        let ready = ahead.take(&model, blob(0)).expect("prepared");
        assert_eq!((ready.numbers.len(), ready.fetch, ready.decode), (10, 3, 4));
        assert!(ahead.take(&model, blob(0)).is_none() && ahead.bytes == 0);
        assert!(ahead.take(&model, blob(1)).is_none() && ahead.is_idle());
    }

    #[test]
    fn memory_is_bounded_and_what_nobody_asked_for_goes() {
        let mut ahead = Ahead::default();
        ahead.add(&mut assignment(PENDING_MAX as u64 + 9));
        assert_eq!(ahead.pending.len(), PENDING_MAX);
        decode(&mut ahead, second(0), BYTES_MAX / 4);
        assert!(ahead.next_wanted(second(29), 1).is_empty() && ahead.is_idle());
        ahead.add(&mut assignment(3));
        assert_eq!(ahead.next_wanted(second(30), 2).len(), 2);
        assert_eq!(ahead.bytes, 0);
    }
}
