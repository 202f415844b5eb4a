//! Tests of training LeNet.

use std::fs;
use std::path::Path;

use tch::Device;

use super::*;
use crate::models::training::evaluate::evaluate;
use crate::types::Digest;

/// Ten easily told patterns: label k is a bar at column 4 + 2k, its length varied.
fn patterns(count: usize, seed: u64) -> Digits {
    let mut rng = Rng::new(seed);
    let mut digits = Digits {
        images: vec![0; count * mnist::IMAGE_BYTES],
        labels: (0..count).map(|index| (index % 10) as u8).collect(),
    };
    for (index, image) in digits.images.chunks_mut(mnist::IMAGE_BYTES).enumerate() {
        let column = 4 + 2 * (index % 10);
        let first = 4 + rng.below(4) as usize;
        for row in first..first + 16 {
            image[row * mnist::SIDE + column] = 255;
            image[row * mnist::SIDE + column + 1] = 255;
        }
    }
    digits
}

fn write_idx(dir: &Path, stem: &str, digits: &Digits) {
    let mut images = vec![0, 0, 8, 3];
    for word in [digits.len(), mnist::SIDE, mnist::SIDE] {
        images.extend((word as u32).to_be_bytes());
    }
    images.extend(&digits.images);
    let mut labels = vec![0, 0, 8, 1];
    labels.extend((digits.len() as u32).to_be_bytes());
    labels.extend(&digits.labels);
    fs::write(dir.join(format!("{stem}-images-idx3-ubyte")), images).expect("written");
    fs::write(dir.join(format!("{stem}-labels-idx1-ubyte")), labels).expect("written");
}

fn committed_models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models")
}

fn manifest() -> Manifest {
    let path = committed_models().join("lenet.toml");
    Manifest::read(&path).expect("the committed manifest").0
}

/// A folder with a small data set and the committed manifest, and a recipe for it.
fn workplace(epochs: u32) -> (tempfile::TempDir, Recipe) {
    let dir = tempfile::tempdir().expect("temporary directory");
    write_idx(dir.path(), "train", &patterns(300, 1));
    write_idx(dir.path(), "t10k", &patterns(50, 2));
    fs::copy(
        committed_models().join("lenet.toml"),
        dir.path().join("lenet.toml"),
    )
    .expect("copied");
    let recipe = Recipe {
        data: dir.path().into(),
        models: dir.path().into(),
        epochs,
        seed: 3,
        threads: 1,
    };
    (dir, recipe)
}

fn trained(recipe: &Recipe, resume_after: Option<u32>) -> Vec<u8> {
    let digits = patterns(300, 1);
    let checkpoint = recipe.checkpoint(digits.len(), "data");
    let start = || Run::resume_or_start(recipe.seed, &checkpoint);
    let mut run = start().expect("no checkpoint yet");
    while run.epoch < recipe.epochs {
        run.train_epoch(recipe, &digits, &manifest())
            .expect("trained");
        if resume_after == Some(run.epoch) {
            checkpoint.save(run.epoch, &run.state()).expect("saved");
            run = start().expect("resumed");
            assert_eq!(Some(run.epoch), resume_after);
        }
    }
    to_safetensors(&run.named(""), Kind::Float, None)
}

#[test]
fn a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one() {
    use_threads(1);
    let (_dir, recipe) = workplace(3);
    let whole = trained(&recipe, None);
    assert_eq!(
        trained(&recipe, None),
        whole,
        "the same seed, the same weights"
    );
    assert!(trained(&recipe, Some(2)) == whole, "resumed after epoch 2");
    fs::remove_file(recipe.checkpoint(300, "data").path).expect("a checkpoint was there");
    let other = Recipe { seed: 4, ..recipe };
    assert!(
        trained(&other, None) != whole,
        "another seed, other weights"
    );
}

#[test]
fn a_checkpoint_of_another_run_is_refused() {
    let (_dir, recipe) = workplace(2);
    let saved = recipe.checkpoint(300, "data");
    saved.save(1, &Run::start(3).state()).expect("saved");
    for (other, images, data) in [
        (
            Recipe {
                seed: 5,
                ..recipe.clone()
            },
            300,
            "data",
        ),
        (
            Recipe {
                epochs: 20,
                ..recipe.clone()
            },
            300,
            "data",
        ),
        (recipe.clone(), 299, "data"),
        (recipe.clone(), 300, "other data"),
    ] {
        let checkpoint = other.checkpoint(images, data);
        let Err(error) = Run::resume_or_start(other.seed, &checkpoint) else {
            panic!("the checkpoint is of another run")
        };
        assert!(error.to_string().contains("lenet.checkpoint"), "{error}");
    }
    fs::write(&saved.path, b"garbage").expect("written");
    let Err(error) = Run::resume_or_start(recipe.seed, &saved) else {
        panic!("no checkpoint")
    };
    assert!(error.to_string().contains("damaged"), "{error}");
}

#[test]
fn what_a_run_learns_from_is_part_of_what_it_is() {
    let (dir, _) = workplace(1);
    let path = dir.path().join("lenet.toml");
    let claim = Claim::new(path.clone()).expect("free");
    let digits = patterns(300, 1);
    let words = claim.data(digits.digest());
    assert_eq!(claim.data(patterns(300, 1).digest()), words);
    assert_ne!(claim.data(patterns(300, 2).digest()), words);
    let busy = Claim::new(path.clone()).err().expect("one run at a time");
    assert!(busy.to_string().contains("another run"), "{busy}");
    drop(claim);
    // The digest of the weights is written by the run itself; all else makes another run.
    let text = fs::read_to_string(&path).expect("manifest");
    let changed = |from: &str, to: &str| {
        fs::write(&path, text.replace(from, to)).expect("written");
        Claim::new(path.clone())
            .expect("valid")
            .data(digits.digest())
    };
    let digest = manifest().digest.expect("the committed model has one");
    assert_eq!(changed(&digest, &"5a".repeat(32)), words);
    assert_ne!(changed("std = [", "std = [1"), words);
}

#[test]
fn weights_that_cannot_be_used_replace_nothing() {
    let (dir, _) = workplace(1);
    let claim = Claim::new(dir.path().join("lenet.toml")).expect("free");
    let weights = dir.path().join("lenet.safetensors");
    fs::write(&weights, b"good").expect("written");
    let run = Run::start(1);
    let _ = run.parameters[4].shallow_clone().fill_(f64::NAN);
    let bytes = to_safetensors(&run.named(""), Kind::Float, None);
    let error = claim.publish(&bytes).expect_err("NaN in it");
    assert!(error.to_string().contains("fc1.weight"), "{error}");
    assert_eq!(fs::read(&weights).expect("still there"), b"good");
}

#[test]
fn other_manifests_of_replaced_weights_are_named() {
    let (dir, _) = workplace(1);
    let path = dir.path().join("lenet.toml");
    let text = fs::read_to_string(&path).expect("manifest");
    let twin = dir.path().join("twin.toml");
    fs::write(&twin, text.replace("\"lenet\"\narch", "\"twin\"\narch")).expect("written");
    Manifest::read(&twin).expect("valid");
    let publish = |seed: u64| {
        let claim = Claim::new(path.clone()).expect("free");
        let bytes = to_safetensors(&Run::start(seed).named(""), Kind::Float, None);
        claim.publish(&bytes).expect("published").stale
    };
    assert!(publish(1).is_empty(), "there were no weights");
    assert_eq!(publish(2), [twin]);
    assert!(publish(2).is_empty(), "the same weights");
}

#[test]
fn a_whole_run_learns_and_leaves_a_model_that_is_served() {
    let (dir, recipe) = workplace(25);
    let manifest_path = dir.path().join("lenet.toml");
    let sealed = format!("digest = \"{}\"\n", Digest([0x5a; 32]));
    let text: String = fs::read_to_string(&manifest_path)
        .expect("manifest")
        .lines()
        .filter(|line| !line.starts_with("digest"))
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(&manifest_path, sealed + &text).expect("written");
    let mut lines = Vec::new();
    let trained = train(&recipe, |line| lines.push(line)).expect("trained");
    assert_eq!(lines.len(), 25);
    assert!(!recipe.checkpoint(300, "data").path.exists());
    let (manifest, _) = Manifest::read(&manifest_path).expect("still valid");
    assert_eq!(manifest.weights_digest(), Some(trained.digest));
    let said = evaluate("lenet", dir.path(), dir.path(), Device::Cpu, 1).expect("served");
    assert_eq!(said.total(), 50);
    assert!(said.right() >= 45, "{} of 50: {lines:#?}", said.right());
}

#[test]
fn augmentation_moves_a_digit_by_a_little() {
    let image = Tensor::zeros([64, 1, 28, 28], (Kind::Float, Device::Cpu));
    let _ = image.narrow(2, 13, 2).narrow(3, 13, 2).fill_(1.0);
    let mut rng = Rng::new(1);
    let moved = augment(&image, &mut rng);
    assert_eq!(moved.size(), image.size());
    assert!(moved.min().double_value(&[]) >= 0.0 && moved.max().double_value(&[]) <= 1.001);
    // The dot at the centre stays within the largest shift and the blur of sampling.
    let near = moved
        .narrow(2, 9, 10)
        .narrow(3, 9, 10)
        .sum(Kind::Float)
        .double_value(&[]);
    let all = moved.sum(Kind::Float).double_value(&[]);
    assert!(
        (all - near).abs() < 1e-3 && all > 64.0 * 2.0,
        "{near} of {all}"
    );
    let first = moved.narrow(0, 0, 1);
    assert!(
        (moved - first).abs().sum(Kind::Float).double_value(&[]) > 1.0,
        "each by its own amounts"
    );
}

#[test]
fn the_committed_lenet_reaches_its_bar() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/mnist");
    if !data.join("t10k-images-idx3-ubyte").exists() {
        println!("skipped: {} is missing; run `make data`", data.display());
        return;
    }
    let said = evaluate("lenet", &committed_models(), &data, Device::Cpu, 1).expect("served");
    assert_eq!(said.total(), 10_000);
    assert!(said.right() >= 9_890, "{} right", said.right());
}
