//! Inputs that are read and decoded before a task asks for them.
//!
//! Decides: how much is kept (bounded in bytes and in number), and what goes first. Inputs of
//! one hint are decoded into one run of numbers, which a task that asks for just them takes as it
//! is; others are copied out. Leaves to others: which inputs those are (the scheduler's hints),
//! reading and decoding (`prepare`).

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
/// Where there is no room, what was begun so long ago goes: its job has ended, or other nodes
/// have done it.
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
    /// The run that it belongs to.
    run: u64,
}

/// An input that has been read, and how long that took.
pub(super) struct Fetched {
    pub(super) wanted: Wanted,
    pub(super) content: Vec<u8>,
    pub(super) nanos: u64,
}

/// Decoded inputs, one after the other.
#[derive(Debug)]
struct Run {
    model: Digest,
    blobs: Vec<BlobId>,
    numbers: Vec<f32>,
    /// Nanoseconds of reading and of decoding, all inputs together.
    fetch: u64,
    decode: u64,
    begun: Time,
    /// Inputs that were copied out.
    taken: usize,
}

/// What was prepared of a task's inputs.
#[derive(Debug, Default)]
pub(super) struct Ready {
    /// The numbers, in the order of the inputs; those that were not prepared are left out.
    pub(super) numbers: Vec<f32>,
    /// Which of the inputs were prepared.
    pub(super) which: Vec<bool>,
    /// Nanoseconds of reading and of decoding.
    pub(super) fetch: u64,
    pub(super) decode: u64,
}

/// What is prepared, and what is to be.
#[derive(Default)]
pub(super) struct Ahead {
    runs: HashMap<u64, Run>,
    /// The run and the place in it of each decoded input, by its network.
    places: HashMap<(Digest, BlobId), (u64, usize)>,
    next: u64,
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
            self.next += 1;
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
                    run: self.next,
                });
            }
        }
    }

    /// Takes what was prepared of a task's inputs. What was not is not prepared any more: the
    /// task is to do that.
    pub(super) fn take(&mut self, model: &Model, inputs: &[AssignedInput]) -> Ready {
        let place = |input: &AssignedInput| self.places.get(&(model.1, input.blob)).copied();
        let places: Vec<Option<(u64, usize)>> = inputs.iter().map(place).collect();
        if let Some(Some((run, _))) = places.first()
            && self.is_whole(*run, inputs)
        {
            return self.take_run(*run, inputs.len());
        }
        let mut ready = Ready {
            which: places.iter().map(Option::is_some).collect(),
            ..Ready::default()
        };
        for (run, place) in places.into_iter().flatten() {
            let found = self.runs.get_mut(&run).expect("places are of runs");
            let (count, length) = (found.blobs.len(), found.numbers.len() / found.blobs.len());
            let numbers = &found.numbers[place * length..(place + 1) * length];
            ready.numbers.extend_from_slice(numbers);
            ready.fetch += found.fetch / count as u64;
            ready.decode += found.decode / count as u64;
            found.taken += 1;
            self.places.remove(&(model.1, found.blobs[place]));
            if found.taken == count {
                self.forget(run);
            }
        }
        let missed = |blob: BlobId| {
            let mut missed = inputs
                .iter()
                .zip(&ready.which)
                .filter(|(_, ready)| !**ready);
            missed.any(|(input, _)| input.blob == blob)
        };
        if ready.which.contains(&false) {
            self.fetched.retain(|it| !missed(it.wanted.input.blob));
            self.pending.retain(|wanted| !missed(wanted.input.blob));
        }
        ready
    }

    /// Whether these inputs are a run, all of it.
    fn is_whole(&self, run: u64, inputs: &[AssignedInput]) -> bool {
        let Some(run) = self.runs.get(&run) else {
            return false;
        };
        run.taken == 0 && run.blobs.iter().eq(inputs.iter().map(|input| &input.blob))
    }

    fn take_run(&mut self, run: u64, count: usize) -> Ready {
        let run = self.forget(run).expect("it is whole");
        Ready {
            numbers: run.numbers,
            which: vec![true; count],
            fetch: run.fetch,
            decode: run.decode,
        }
    }

    fn forget(&mut self, number: u64) -> Option<Run> {
        let run = self.runs.remove(&number)?;
        self.bytes -= size_of_val(&run.numbers[..]);
        for blob in &run.blobs {
            // Another run may have the same input.
            if let Some((of, _)) = self.places.get(&(run.model, *blob))
                && *of == number
            {
                self.places.remove(&(run.model, *blob));
            }
        }
        Some(run)
    }

    /// The next input to decode.
    pub(super) fn next_fetched(&mut self) -> Option<Fetched> {
        self.fetched.pop_front()
    }

    /// The next inputs to read, at most `count`; none where there is no room for more.
    pub(super) fn next_wanted(&mut self, now: Time, count: usize) -> Vec<Wanted> {
        if self.bytes >= BYTES_MAX {
            let runs = self.runs.iter();
            let stale = runs.filter(|(_, run)| run.begun + STALE <= now);
            for run in stale.map(|(number, _)| *number).collect::<Vec<_>>() {
                self.forget(run);
            }
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

    /// Decodes an input by `decode`, which appends its numbers to those of its run and says how
    /// long that took, in nanoseconds. One that cannot be decoded is left to its task.
    pub(super) fn decode(
        &mut self,
        fetched: &Fetched,
        now: Time,
        decode: impl FnOnce(&mut Vec<f32>) -> Option<u64>,
    ) {
        let Wanted {
            model, input, run, ..
        } = &fetched.wanted;
        let number = *run;
        let run = self.runs.entry(number).or_insert_with(|| Run {
            model: model.1,
            blobs: Vec::new(),
            numbers: Vec::new(),
            fetch: 0,
            decode: 0,
            begun: now,
            taken: 0,
        });
        let before = run.numbers.len();
        let Some(nanos) = decode(&mut run.numbers) else {
            if run.blobs.is_empty() {
                self.runs.remove(&number);
            }
            return;
        };
        self.bytes += size_of_val(&run.numbers[before..]);
        run.fetch += fetched.nanos;
        run.decode += nanos;
        let place = (number, run.blobs.len());
        run.blobs.push(input.blob);
        self.places.insert((model.1, input.blob), place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{JobId, Term};
    use crate::wire::schedule::{AssignmentId, Hint};

    fn input(counter: u64) -> AssignedInput {
        AssignedInput {
            index: counter as u32,
            blob: BlobId {
                term: Term(1),
                counter,
            },
            bytes: 10,
            digest: Digest([0; 32]),
            sources: Vec::new(),
        }
    }

    fn assignment(inputs: std::ops::Range<u64>) -> Assignment {
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
                inputs: inputs.map(input).collect(),
            }],
            holders: Vec::new(),
        }
    }

    fn second(n: u64) -> Time {
        Time(0) + Duration::from_secs(n)
    }

    /// Decodes the next input to `count` times its number.
    fn decode(ahead: &mut Ahead, now: Time, count: usize) {
        let wanted = ahead.next_wanted(now, 1).remove(0);
        let value = wanted.input.index as f32;
        let fetched = Fetched {
            wanted,
            content: Vec::new(),
            nanos: 3,
        };
        ahead.decode(&fetched, now, |numbers| {
            numbers.extend(vec![value; count]);
            Some(4)
        });
    }

    fn model(byte: u8) -> Model {
        ("lenet".to_string(), Digest([byte; 32]))
    }

    #[test]
    fn a_run_is_taken_as_it_is_and_parts_of_runs_are_copied() {
        let mut ahead = Ahead::default();
        ahead.add(&mut assignment(0..2));
        ahead.add(&mut assignment(2..5));
        for _ in 0..5 {
            decode(&mut ahead, second(0), 2);
        }
        let inputs = |numbers: &[u64]| numbers.iter().map(|n| input(*n)).collect::<Vec<_>>();
        assert_eq!(ahead.take(&model(2), &inputs(&[0, 1])).which, [false; 2]);
        let whole = ahead.take(&model(1), &inputs(&[0, 1]));
        assert_eq!(
            (whole.which, whole.fetch, whole.decode),
            (vec![true; 2], 6, 8)
        );
        assert_eq!(whole.numbers, [0.0, 0.0, 1.0, 1.0]);
        let mixed = ahead.take(&model(1), &inputs(&[4, 0, 2]));
        assert_eq!(mixed.which, [true, false, true]);
        assert_eq!(mixed.numbers, [4.0, 4.0, 2.0, 2.0]);
        assert_eq!(ahead.take(&model(1), &inputs(&[4])).which, [false], "once");
        assert_eq!(ahead.take(&model(1), &inputs(&[3])).numbers, [3.0, 3.0]);
        assert!(ahead.bytes == 0 && ahead.runs.is_empty() && ahead.places.is_empty());
    }

    #[test]
    fn what_a_task_asks_for_too_early_is_left_to_it() {
        let mut ahead = Ahead::default();
        ahead.add(&mut assignment(0..2));
        decode(&mut ahead, second(0), 2);
        let ready = ahead.take(&model(1), &[input(0), input(1)]);
        assert_eq!((ready.which, ready.numbers.len()), (vec![true, false], 2));
        assert!(ahead.is_idle());
    }

    #[test]
    fn memory_is_bounded_and_what_nobody_asked_for_goes() {
        let mut ahead = Ahead::default();
        ahead.add(&mut assignment(0..PENDING_MAX as u64 + 9));
        assert_eq!(ahead.pending.len(), PENDING_MAX);
        decode(&mut ahead, second(0), BYTES_MAX / 4);
        assert!(ahead.next_wanted(second(29), 1).is_empty() && ahead.is_idle());
        ahead.add(&mut assignment(9_000..9_003));
        assert_eq!(ahead.next_wanted(second(30), 2).len(), 2);
        assert!(ahead.bytes == 0 && ahead.places.is_empty());
    }
}
