//! The record of a run: a running hash always, readable lines where one seed is replayed.
//!
//! Decides: what two runs of a seed must have in common. Leaves to others: what is worth
//! a note. Notes are hashed without formatting, so that a hunt costs little; the text is
//! built only when it is shown.

use dlc::types::Time;

/// Running hash and, on demand, lines on stdout.
pub struct Trace {
    hash: u64,
    shown: bool,
}

const MULTIPLIER: u64 = 0x517c_c1b7_2722_0a95;

impl Trace {
    /// A trace that prints its lines where `shown`.
    pub fn new(shown: bool) -> Trace {
        Trace {
            hash: MULTIPLIER,
            shown,
        }
    }

    fn mix(&mut self, word: u64) {
        self.hash = (self.hash.rotate_left(5) ^ word).wrapping_mul(MULTIPLIER);
    }

    /// Adds `bytes` to the hash.
    pub fn bytes(&mut self, bytes: &[u8]) {
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            let word: [u8; 8] = word.try_into().expect("eight bytes");
            self.mix(u64::from_le_bytes(word));
        }
        let rest = words
            .remainder()
            .iter()
            .fold(0, |word, byte| word << 8 | u64::from(*byte));
        self.mix(rest ^ (bytes.len() as u64) << 56);
    }

    /// Notes that `kind` happened at `host`; `text` is for the reader.
    pub fn note(&mut self, at: Time, host: usize, kind: &str, text: impl FnOnce() -> String) {
        self.mix(at.0);
        self.mix(host as u64);
        self.bytes(kind.as_bytes());
        if self.shown {
            let text: String = text().chars().take(400).collect();
            println!("{at} node-{host} {kind:<12} {text}");
        }
    }

    /// Notes something that is of no single host.
    pub fn story(&mut self, at: Time, kind: &str, text: impl FnOnce() -> String) {
        self.mix(at.0);
        self.bytes(kind.as_bytes());
        if self.shown {
            println!("{at} ------ {kind:<12} {}", text());
        }
    }

    /// The hash of everything noted so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }
}
