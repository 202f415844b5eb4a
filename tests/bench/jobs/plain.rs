//! One plain process without a cluster, for `make bench-jobs`: the same engine over the same files.
//!
//! `bench-plain MODEL DIR STEM EXTENSION COUNT BATCH PART PARTS RESULT` loads the network, prints
//! `ready`, and then, for each line on standard input, classifies those batches of the files
//! `DIR/STEM<n>.EXTENSION` that fall to it (every `PARTS`th one, from `PART` on), writes the rows
//! to RESULT and prints how many they were.

use std::fmt::Write;
use std::io::BufRead;
use std::path::Path;

use anyhow::{Context, Result};
use dlc::models::engine::{self, Engine};
use dlc::models::manifest;
use dlc::models::prepare::prepare_into;

fn main() -> Result<()> {
    engine::wait_passively(1)?;
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [model, dir, stem, extension, numbers @ .., result] = &words[..] else {
        anyhow::bail!("MODEL DIR STEM EXTENSION COUNT BATCH PART PARTS RESULT");
    };
    let numbers: Result<Vec<usize>, _> = numbers.iter().map(|text| text.parse()).collect();
    let [count, batch, part, parts] = numbers?[..] else {
        anyhow::bail!("COUNT BATCH PART PARTS are four numbers");
    };
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let found = manifest::available(&models)?;
    let files = found.into_iter().flatten();
    let files = files
        .into_iter()
        .find(|files| files.manifest.name == *model);
    let files = files.with_context(|| format!("model {model} is not in {}", models.display()))?;
    let weights = std::fs::read(&files.weights)?;
    let device = engine::device("cpu")?;
    let digest = dlc::types::Digest::of(&weights);
    let mut engine = Engine::load(&files.manifest, &weights, digest, device, 1)?;
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        line?;
        let mut rows = String::from("file,label,confidence,error\n");
        let mut done = 0;
        for start in (part * batch..count).step_by(parts * batch) {
            let numbers = start..(start + batch).min(count);
            let mut input = Vec::with_capacity(batch * files.manifest.input.len());
            for number in numbers.clone() {
                let bytes = std::fs::read(format!("{dir}/{stem}{number}.{extension}"))?;
                prepare_into(&bytes, &files.manifest, &mut input)?;
            }
            let answers = engine.classify(&input, numbers.len())?;
            for (number, answer) in numbers.zip(answers) {
                let answer = answer.context("no finite answer")?;
                let label = &files.manifest.labels[answer.label as usize];
                let confidence = answer.confidence;
                writeln!(rows, "{stem}{number}.{extension},{label},{confidence:.6},")?;
                done += 1;
            }
        }
        std::fs::write(result, rows)?;
        println!("{done}");
    }
    Ok(())
}
