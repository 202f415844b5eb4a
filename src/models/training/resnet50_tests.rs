//! Tests of training ResNet-50, on drawings so small that a step takes a fraction of a
//! second.

use std::path::Path;

use super::*;
use crate::models::stand_ins::drawing;
use crate::models::training::evaluate::evaluate;

const MANIFEST: &str = r#"
name = "net"
architecture = "resnet50"
weights = "net.safetensors"
digest = "5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a"
input = { channels = 3, height = 32, width = 32 }
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]
labels = ["roses", "sunflowers"]
"#;

/// A folder with a manifest and two fifths of that many drawings, and a recipe for them.
fn workplace(epochs: u32, drawings: usize) -> (tempfile::TempDir, Recipe) {
    let dir = tempfile::tempdir().expect("temporary directory");
    std::fs::write(dir.path().join("net.toml"), MANIFEST).expect("written");
    for number in 0..drawings {
        let (class, bytes) = drawing(number);
        if ["roses", "sunflowers"].contains(&class) {
            let class = dir.path().join("data").join(class);
            std::fs::create_dir_all(&class).expect("made");
            std::fs::write(class.join(format!("{number}.jpg")), bytes).expect("written");
        }
    }
    let recipe = Recipe {
        data: dir.path().join("data"),
        models: dir.path().into(),
        model: "net".into(),
        from: None,
        epochs,
        side: 32,
        batch: 8,
        rate: 5e-4,
        seed: 3,
        threads: 1,
        loaders: 1,
        device: Device::Cpu,
        precision: Kind::Float,
    };
    (dir, recipe)
}

/// Runs `epochs` epochs from the checkpoint, or from the start, and leaves a checkpoint.
/// The bytes of the weights then.
fn run(recipe: &Recipe, epochs: u32) -> Vec<u8> {
    let (manifest, _) = Manifest::read(&recipe.manifest_path()).expect("valid");
    let photographs = Photographs::read(&recipe.data, Split::Training).expect("read");
    let checkpoint = recipe.checkpoint(photographs.len(), "data");
    let mut run = Run::resume_or_start(recipe, &checkpoint, &manifest).expect("started");
    for _ in 0..epochs {
        run.train_epoch(recipe, &photographs, &manifest)
            .expect("trained");
    }
    checkpoint.save(run.epoch, &run.state()).expect("saved");
    to_safetensors(&run.state(), Kind::Float, None)
}

#[test]
fn a_resumed_run_ends_with_the_state_of_an_uninterrupted_one() {
    use_threads(1);
    let (_dir, recipe) = workplace(2, 70);
    let whole = run(&recipe, 2);
    let (_other, again) = workplace(2, 70);
    run(&again, 1);
    // More threads decode, and nothing changes.
    let again = Recipe {
        loaders: 3,
        ..again
    };
    assert!(run(&again, 1) == whole);
    let other = Recipe { seed: 4, ..recipe };
    let (manifest, _) = Manifest::read(&other.manifest_path()).expect("valid");
    let refused = Run::resume_or_start(&other, &other.checkpoint(20, "data"), &manifest);
    let Err(error) = refused else {
        panic!("the checkpoint is of another run")
    };
    assert!(error.to_string().contains("net.checkpoint"), "{error}");
}

#[test]
fn a_whole_run_learns_and_leaves_a_model_that_is_served() {
    let (dir, recipe) = workplace(16, 160);
    let mut lines = Vec::new();
    let trained = train(&recipe, |line| lines.push(line)).expect("trained");
    assert_eq!(lines.len(), 17, "{lines:#?}");
    assert!(!dir.path().join("net.checkpoint").exists());
    let (manifest, _) = Manifest::read(&recipe.manifest_path()).expect("still valid");
    assert_eq!(manifest.weights_digest(), Some(trained.digest));
    let said = evaluate("net", dir.path(), &recipe.data, Device::Cpu, 1).expect("served");
    let (right, total) = (said.right(), said.total());
    assert!(right * 10 >= total * 7, "{right} of {total}: {lines:#?}");
    let last = lines.last().expect("lines");
    let learnt = |line: &str| {
        let rest = &line[line.find("accuracy ").expect("accuracy") + 9..];
        rest.split(' ')
            .next()
            .expect("a number")
            .parse::<f64>()
            .expect("a number")
    };
    assert!(
        learnt(last) > 85.0,
        "red roses, yellow sunflowers: {lines:#?}"
    );
    // Two bytes for each of 23.5 million numbers.
    let bytes = std::fs::metadata(&trained.weights).expect("written").len();
    assert!((47_000_000..47_300_000).contains(&bytes), "{bytes}");
}

#[test]
fn weights_to_start_from_are_taken_and_another_last_layer_starts_anew() {
    let (dir, recipe) = workplace(1, 70);
    let path = dir.path().join("from.safetensors");
    let tensors = resnet50::tests::random_tensors(7);
    let bytes = to_safetensors(&tensors, Kind::Float, None);
    std::fs::write(&path, bytes).expect("written");
    let recipe = Recipe {
        from: Some(path.clone()),
        ..recipe
    };
    let start = initial(&recipe, &resnet50::tensor_shapes(2)).expect("taken");
    for ((name, found), (_, given)) in start.iter().zip(&tensors) {
        match name.starts_with("fc.") {
            true => assert_eq!(found.size()[0], 2, "{name}"),
            false => assert!(found.equal(given), "{name}"),
        }
    }
    let start = initial(&recipe, &resnet50::tensor_shapes(7)).expect("taken");
    assert!(start.iter().zip(&tensors).all(|(f, g)| f.1.equal(&g.1)));
    std::fs::write(&path, b"garbage").expect("written");
    let refused = initial(&recipe, &resnet50::tensor_shapes(2));
    assert!(
        refused
            .expect_err("no weights")
            .to_string()
            .contains("from.safetensors")
    );
}

#[test]
fn a_data_set_of_other_classes_and_another_architecture_are_refused() {
    let (dir, recipe) = workplace(1, 70);
    let path = dir.path().join("net.toml");
    let refusal = |manifest: String| {
        std::fs::write(&path, manifest).expect("written");
        let refused = train(&recipe, |_| ());
        refused.expect_err("refused").to_string()
    };
    let error = refusal(MANIFEST.replace("roses", "daisies"));
    assert!(
        error.contains("daisies") && error.contains("roses"),
        "{error}"
    );
    let script = MANIFEST.replace("resnet50", "torchscript");
    let error = refusal(script.replace("safetensors", "pt"));
    assert!(error.contains("not resnet50"), "{error}");
    std::fs::write(&path, MANIFEST).expect("written");
    // A test image that is none: found before the first epoch.
    let test = Photographs::read(&recipe.data, Split::Test).expect("read");
    let class = test.path(0).parent().expect("a folder");
    let broken = (0..200u32).map(|number| format!("no image {number}").into_bytes());
    for (number, bytes) in broken.enumerate() {
        std::fs::write(class.join(format!("broken{number}.jpg")), bytes).expect("written");
    }
    let training = Photographs::read(&recipe.data, Split::Training).expect("read");
    for index in 0..training.len() {
        let name = training.path(index).to_string_lossy();
        if name.contains("broken") {
            std::fs::remove_file(training.path(index)).expect("removed");
        }
    }
    let error = train(&recipe, |line| panic!("begun: {line}")).expect_err("broken");
    assert!(error.to_string().contains("broken"), "{error}");
    assert!(!Path::new(&dir.path().join("net.safetensors")).exists());
}

#[test]
fn small_images_come_first_and_the_full_size_last() {
    let (_dir, recipe) = workplace(100, 0);
    let recipe = Recipe {
        side: 128,
        ..recipe
    };
    let sides: Vec<u32> = (0..100).map(|epoch| recipe.side_in(epoch)).collect();
    assert_eq!((sides[0], sides[50], sides[99]), (64, 96, 128));
    assert!(sides.is_sorted());
}

#[test]
fn the_committed_resnet_reaches_its_bar() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let data = [
        root.join("data/flowers"),
        root.join("../shared/data/flowers"),
    ];
    let Some(data) = data.iter().find(|data| data.is_dir()) else {
        println!("skipped: there are no photographs in data/flowers; run `make data-flowers`");
        return;
    };
    let models = root.join("models");
    let said = evaluate("resnet50", &models, data, Device::Cpu, 2).expect("served");
    let (right, total) = (said.right(), said.total());
    assert!(right * 100 >= total * 85, "{right} of {total}");
}
