//! Progress bars: on a terminal with rate and time left, silent on a pipe.

use indicatif::{ProgressBar, ProgressStyle};

fn styled(length: u64, what: &'static str, template: &str) -> ProgressBar {
    // indicatif draws to stderr and hides itself where that is no terminal.
    let bar = ProgressBar::new(length).with_message(what);
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Counts files.
pub fn files(count: u64, what: &'static str) -> ProgressBar {
    styled(
        count,
        what,
        "{msg} {wide_bar} {pos}/{len} files {per_sec} ETA {eta}",
    )
}

/// Counts steps of no particular size.
pub fn steps(count: u64, what: &'static str) -> ProgressBar {
    styled(count, what, "{msg} {wide_bar} {percent} % ETA {eta}")
}

/// Counts bytes.
pub fn bytes(length: u64, what: &'static str) -> ProgressBar {
    styled(
        length,
        what,
        "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}",
    )
}
