//! Our logits against those of PyTorch's own networks, on the same weights and inputs.
//!
//! Runs where `REFERENCE_PYTHON` names a Python that has torch, torchvision and
//! safetensors, and says that it was skipped elsewhere: they are gigabytes, and the
//! project needs none of them.

use std::path::Path;
use std::process::Command;

use super::*;

/// Largest difference of a logit, for each unit of the image's largest logit.
const TOLERANCE: f32 = 1e-4;

fn numbers(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).expect("the reference wrote it");
    let (numbers, rest) = bytes.as_chunks::<4>();
    assert!(rest.is_empty());
    numbers
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect()
}

/// Largest relative difference of the logits over all images, each on the way that a
/// batch of `count` takes the third time, when it is packed for.
fn difference(engine: &mut Engine, images: &[f32], logits: &[f32], count: usize) -> f32 {
    let (each, classes) = (engine.input.len(), engine.labels);
    let mut largest = 0f32;
    for _ in 0..3 {
        let batches = images.chunks_exact(count * each);
        for (batch, expected) in batches.zip(logits.chunks_exact(count * classes)) {
            let found = tch::no_grad(|| engine.logits(batch, count)).expect("logits");
            let rows = found.chunks(classes).zip(expected.chunks(classes));
            for (found, expected) in rows {
                let scale = expected
                    .iter()
                    .fold(0f32, |scale, logit| scale.max(logit.abs()));
                let pairs = found.iter().zip(expected);
                let furthest = pairs.fold(0f32, |furthest, (f, e)| furthest.max((f - e).abs()));
                largest = largest.max(furthest / scale);
            }
        }
    }
    largest
}

#[test]
fn logits_are_those_of_pytorchs_own_networks() {
    let Some(python) = std::env::var_os("REFERENCE_PYTHON") else {
        println!("skipped: REFERENCE_PYTHON names no Python with torch, torchvision, safetensors");
        return;
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = tempfile::tempdir().expect("temporary directory");
    let status = Command::new(&python)
        .arg(root.join("tests/reference/logits.py"))
        .args([dir.path(), &root.join("models")])
        .status();
    assert!(status.expect("Python starts").success(), "{python:?}");
    for name in [
        "lenet-random",
        "lenet-trained",
        "resnet50-random",
        "resnet50-trained",
    ] {
        let file = |extension: &str| dir.path().join(format!("{name}.{extension}"));
        if !file("safetensors").exists() {
            println!("{name}: skipped, it has no weights");
            continue;
        }
        let logits = numbers(&file("logits"));
        let model = name.split('-').next().expect("a model");
        let path = root.join(format!("models/{model}.toml"));
        let (mut manifest, _) = Manifest::read(&path).expect("the committed manifest");
        manifest.digest = None;
        let side = if model == "lenet" { 28 } else { 224 };
        (manifest.input.height, manifest.input.width) = (side, side);
        manifest.input.resize = None;
        manifest.labels = (0..logits.len() / 100)
            .map(|label| label.to_string())
            .collect();
        let bytes = std::fs::read(file("safetensors")).expect("written");
        let mut engine = load(&manifest, &bytes).expect("the weights work unchanged");
        let images = numbers(&file("images"));
        for count in [1, 4, 20] {
            let found = difference(&mut engine, &images, &logits, count);
            println!("{name}, batches of {count}: largest relative difference {found:.1e}");
            assert_eq!(engine.route(), Route::Fused);
            assert!(found < TOLERANCE, "{name}: {found:.1e}");
        }
    }
}
