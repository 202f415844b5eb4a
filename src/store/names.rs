//! Pure rules about SDFS names: natural order, and which names a data set pattern means.
//!
//! Decides: that `lenet2` comes before `lenet10`, and what `lenet.png` matches as a data
//! set. Leaves to others: which files exist, and which of them jobs may read.

use std::cmp::Ordering;

/// Natural order: runs of ASCII digits compare as numbers of any length, everything else
/// byte by byte. A total order: names that differ only in leading zeros compare as bytes.
pub fn compare_natural(left: &str, right: &str) -> Ordering {
    let (mut a, mut b) = (left.as_bytes(), right.as_bytes());
    while let (Some(&x), Some(&y)) = (a.first(), b.first()) {
        let order = if x.is_ascii_digit() && y.is_ascii_digit() {
            let (first, rest_a) = split_number(a);
            let (second, rest_b) = split_number(b);
            (a, b) = (rest_a, rest_b);
            // Without leading zeros the longer number is the larger one; no value is
            // ever computed, so none can overflow.
            (first.len().cmp(&second.len())).then_with(|| first.cmp(second))
        } else {
            (a, b) = (&a[1..], &b[1..]);
            x.cmp(&y)
        };
        if order.is_ne() {
            return order;
        }
    }
    (a.len().cmp(&b.len())).then_with(|| left.cmp(right))
}

/// The digits at the start of `text` without leading zeros, and what follows them.
fn split_number(text: &[u8]) -> (&[u8], &[u8]) {
    let digit = |byte: &&u8| byte.is_ascii_digit();
    let end = text.iter().take_while(digit).count();
    let zeros = text[..end].iter().take_while(|byte| **byte == b'0').count();
    (&text[zeros..end], &text[end..])
}

/// Which names a data set means: `DIR/STEM.EXT` every name `DIR/STEM*.EXT`, and without
/// an extension every name that starts so. `*` may also be empty or hold a `/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern<'a> {
    stem: &'a str,
    extension: &'a str,
}

impl<'a> Pattern<'a> {
    /// The pattern of the data set `dataset`. The extension is what follows the last dot
    /// of the last path component, dot included.
    pub fn new(dataset: &'a str) -> Pattern<'a> {
        let component = dataset.rfind('/').map_or(0, |slash| slash + 1);
        let dot = dataset[component..].rfind('.').map(|dot| component + dot);
        let (stem, extension) = dataset.split_at(dot.unwrap_or(dataset.len()));
        Pattern { stem, extension }
    }

    /// What every match starts with.
    pub fn stem(&self) -> &'a str {
        self.stem
    }

    /// What every match ends with, dot included; empty where the data set has no extension.
    pub fn extension(&self) -> &'a str {
        self.extension
    }

    /// The number that tells the match `name` from the others, where it is nothing else: those
    /// numbers are in natural order as the names are.
    pub fn number(&self, name: &str) -> Option<u64> {
        let rest = name.strip_prefix(self.stem)?;
        let digits = rest.strip_suffix(self.extension)?;
        let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
        let zeros = digits.len() > 1 && digits.starts_with('0');
        // 19 digits always fit; a sign does not pass.
        (plain && !zeros && digits.len() <= 19).then(|| digits.parse().ok())?
    }

    /// Whether `name` is one of the data set's names.
    pub fn matches(&self, name: &str) -> bool {
        name.strip_prefix(self.stem)
            .is_some_and(|rest| rest.ends_with(self.extension))
    }
}
