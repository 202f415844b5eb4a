//! The rows of one job, one place for each input: 16 bytes each once they are there, and each
//! label once. A job that waits for its turn costs nothing.
//!
//! Decides: that a place is filled once. Leaves to others: what a row means.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::planted::{self, Bug};
use crate::wire::schedule::Outcome;

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum Cell {
    Open,
    /// Place of the label, and its confidence.
    Label(u32, f32),
    Error,
}

/// Rows by the numbers of their inputs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rows {
    /// How many places there are.
    count: usize,
    /// The places up to the last one that is filled.
    cells: Vec<Cell>,
    /// Numbers of the filled places, in the order in which they were filled.
    order: Vec<u32>,
    labels: Vec<String>,
    places: BTreeMap<String, u32>,
    errors: BTreeMap<u32, String>,
}

impl Rows {
    /// Places for `count` inputs.
    pub fn new(count: usize) -> Rows {
        Rows {
            count,
            ..Rows::default()
        }
    }

    /// Fills the place of `input`; false where there is none, or it is filled.
    pub fn fill(&mut self, input: u32, outcome: &Outcome) -> bool {
        let place = input as usize;
        if place >= self.count || (self.has(input) && !planted::is(Bug::RowTwice)) {
            return false;
        }
        if place >= self.cells.len() {
            reserve(&mut self.cells, place + 1, self.count);
            self.cells.resize(place + 1, Cell::Open);
        }
        let filled = match outcome {
            Outcome::Label { label, confidence } => Cell::Label(self.place(label), *confidence),
            Outcome::Error(reason) | Outcome::Unread(reason) => {
                self.errors.insert(input, reason.clone());
                Cell::Error
            }
        };
        self.cells[place] = filled;
        let filled = self.order.len();
        reserve(&mut self.order, filled + 1, self.count);
        self.order.push(input);
        true
    }

    fn place(&mut self, label: &str) -> u32 {
        if let Some(place) = self.places.get(label) {
            return *place;
        }
        let place = self.labels.len() as u32;
        self.labels.push(label.into());
        self.places.insert(label.into(), place);
        place
    }

    /// How many places have been filled.
    pub fn filled(&self) -> u64 {
        self.order.len() as u64
    }

    /// Whether the place of `input` is there and filled.
    pub fn has(&self, input: u32) -> bool {
        let cell = self.cells.get(input as usize);
        cell.is_some_and(|cell| *cell != Cell::Open)
    }

    /// The row of `input`, if it is there.
    pub fn get(&self, input: u32) -> Option<Outcome> {
        match *self.cells.get(input as usize)? {
            Cell::Open => None,
            Cell::Label(place, confidence) => {
                let label = self.labels[place as usize].clone();
                Some(Outcome::Label { label, confidence })
            }
            Cell::Error => Some(Outcome::Error(self.errors.get(&input)?.clone())),
        }
    }

    /// The inputs whose places were filled last, `count` of them, oldest first.
    pub fn newest(&self, count: usize) -> impl Iterator<Item = u32> + '_ {
        let skipped = self.order.len().saturating_sub(count);
        self.order[skipped..].iter().copied()
    }
}

/// Makes room for `wanted` items, at least doubling it but for no more than `most` items: a
/// vector left to itself would end with twice the room that it needs.
fn reserve<T>(items: &mut Vec<T>, wanted: usize, most: usize) {
    if wanted > items.capacity() {
        let room = wanted.max(2 * items.capacity()).min(most.max(wanted));
        items.reserve_exact(room - items.len());
    }
}
