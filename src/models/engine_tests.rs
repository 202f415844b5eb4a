//! Tests of `engine`.

use super::*;
use crate::models::lenet::TENSORS;
use crate::models::noise::Noise;
use crate::models::weights::to_safetensors;

fn manifest(text: &str) -> Manifest {
    Manifest::parse(text.as_bytes(), "net.toml").expect("valid")
}

fn lenet_manifest() -> Manifest {
    manifest(
        "name = \"net\"\narchitecture = \"lenet\"\nweights = \"net.safetensors\"\n\
         input = { channels = 1, height = 28, width = 28 }\nmean = [0.0]\nstd = [1.0]\n\
         labels = [\"0\", \"1\", \"2\", \"3\", \"4\", \"5\", \"6\", \"7\", \"8\", \"9\"]\n",
    )
}

/// A LeNet whose weights are all zero but for the last bias, which is 0, 1, 2, ….
fn lenet_tensors() -> Vec<(String, Tensor)> {
    let options = (Kind::Float, Device::Cpu);
    TENSORS
        .iter()
        .map(|(name, shape)| match *name {
            "fc3.bias" => (name.to_string(), Tensor::arange(10, options)),
            _ => (name.to_string(), Tensor::zeros(*shape, options)),
        })
        .collect()
}

fn load(manifest: &Manifest, bytes: &[u8]) -> Result<Engine, ModelError> {
    Engine::load(manifest, bytes, Digest::of(bytes), Device::Cpu, 1)
}

fn refusal(manifest: &Manifest, bytes: &[u8]) -> String {
    let Err(error) = load(manifest, bytes) else {
        panic!("the model must be refused")
    };
    error.to_string()
}

#[test]
fn the_largest_logit_wins_with_its_softmax() {
    let bytes = to_safetensors(&lenet_tensors(), Kind::Float, None);
    let mut engine = load(&lenet_manifest(), &bytes).expect("valid");
    assert_eq!(engine.name(), "net");
    assert_eq!(engine.digest(), Digest::of(&bytes));
    let predictions = engine.classify(&vec![0.5; 3 * 784], 3).expect("classified");
    let sum: f32 = (0..10).map(|logit| (logit as f32 - 9.0).exp()).sum();
    for prediction in predictions.iter().flatten() {
        assert_eq!(prediction.label, 9);
        assert!((prediction.confidence - 1.0 / sum).abs() < 1e-6);
    }
    assert_eq!(predictions.iter().flatten().count(), 3);
    assert_eq!(engine.classify(&[], 0), Ok(vec![]));
}

#[test]
fn an_engine_can_be_owned_by_a_thread() {
    fn sent<T: Send>(_: &T) {}
    let bytes = to_safetensors(&lenet_tensors(), Kind::Float, None);
    let mut engine = load(&lenet_manifest(), &bytes).expect("valid");
    sent(&engine);
    let answer = std::thread::spawn(move || engine.classify(&[0.0; 784], 1));
    assert_eq!(
        answer.join().expect("no panic").expect("classified").len(),
        1
    );
}

#[test]
fn a_batch_of_the_wrong_length_is_refused() {
    let bytes = to_safetensors(&lenet_tensors(), Kind::Float, None);
    let mut engine = load(&lenet_manifest(), &bytes).expect("valid");
    let error = engine
        .classify(&[0.0; 783], 1)
        .expect_err("one number short");
    assert!(
        error.to_string().contains("a batch of 783 numbers"),
        "{error}"
    );
}

#[test]
fn other_bytes_than_the_digest_says_are_refused() {
    let bytes = to_safetensors(&lenet_tensors(), Kind::Float, None);
    let published = Digest::of(b"other");
    let Err(error) = Engine::load(&lenet_manifest(), &bytes, published, Device::Cpu, 1) else {
        panic!("another digest was published")
    };
    assert!(
        error.to_string().contains(&published.to_string()),
        "{error}"
    );
    let mut manifest = lenet_manifest();
    manifest.digest = Some(published.to_string());
    assert!(refusal(&manifest, &bytes).contains(&published.to_string()));
}

#[test]
fn a_wrong_number_of_labels_is_refused() {
    let bytes = to_safetensors(&lenet_tensors(), Kind::Float, None);
    let mut manifest = lenet_manifest();
    manifest.labels.pop();
    let text = refusal(&manifest, &bytes);
    assert!(text.contains("9 labels for 10 outputs"), "{text}");
}

#[test]
fn an_answer_that_is_not_finite_is_none_and_the_others_stay() {
    let bytes = to_safetensors(&lenet_tensors(), Kind::Float, None);
    let mut engine = load(&lenet_manifest(), &bytes).expect("valid");
    let mut batch = vec![0.0; 2 * 784];
    batch[784..].fill(f32::NAN);
    let answers = engine.classify(&batch, 2).expect("classified");
    assert_eq!([answers[0].is_some(), answers[1].is_some()], [true, false]);
}

#[test]
fn predictions_are_finite_or_none() {
    let prediction = predict(&[1000.0, -1000.0]).expect("finite");
    assert_eq!((prediction.label, prediction.confidence), (0, 1.0));
    assert_eq!(predict(&[3.0, 3.0]).expect("finite").label, 0);
    assert_eq!(predict(&[0.0, f32::NAN]), None);
    assert_eq!(predict(&[0.0, f32::NEG_INFINITY]), None);
}

#[test]
fn a_random_resnet_is_served() {
    let mut manifest = manifest(include_str!("../../models/resnet50.toml"));
    manifest.digest = None;
    let input = &mut manifest.input;
    (input.height, input.width) = (64, 64);
    let tensors = crate::models::resnet50::tests::random_tensors(5);
    let bytes = to_safetensors(&tensors, Kind::Float, None);
    let mut engine = load(&manifest, &bytes).expect("valid");
    let batch = vec![0.1; 2 * 3 * 64 * 64];
    assert_eq!(engine.classify(&batch, 2).expect("classified").len(), 2);
    manifest.labels.push("more".into());
    assert!(refusal(&manifest, &bytes).contains("6 labels for 5 outputs"));
}

/// A TorchScript network of 1 x 4 x 4 images whose answer is their sums over `dimensions`.
fn torchscript(dimensions: &[i64]) -> Vec<u8> {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("net.pt");
    let example = [Tensor::zeros([2, 1, 4, 4], (Kind::Float, Device::Cpu))];
    let mut sums = |inputs: &[Tensor]| vec![inputs[0].sum_dim_intlist(dimensions, false, None)];
    CModule::create_by_tracing("net", "forward", &example, &mut sums)
        .and_then(|module| module.save(&path))
        .expect("traced and saved");
    std::fs::read(&path).expect("saved")
}

#[test]
fn a_torchscript_network_is_served() {
    let text = "name = \"net\"\narchitecture = \"torchscript\"\nweights = \"net.pt\"\n\
         input = { channels = 1, height = 4, width = 4 }\nmean = [0.0]\nstd = [1.0]\n\
         labels = [\"a\", \"b\", \"c\", \"d\"]\n";
    let bytes = torchscript(&[1, 2]);
    let mut engine = load(&manifest(text), &bytes).expect("valid");
    let mut batch = [0.0; 32];
    batch[2] = 1.0; // image 0, column 2
    batch[16 + 5] = 1.0; // image 1, column 1
    let predictions = engine.classify(&batch, 2).expect("classified");
    let labels: Vec<u32> = predictions.iter().flatten().map(|p| p.label).collect();
    assert_eq!(labels, [2, 1]);
    let fewer = text.replace(", \"d\"", "");
    assert!(refusal(&manifest(&fewer), &bytes).contains("3 labels for 4 outputs"));
    // A map for each input, and one row for all of them.
    for (dimensions, shape) in [([1].as_slice(), "[1, 4, 4]"), (&[0, 1, 2], "[4]")] {
        let refused = refusal(&manifest(text), &torchscript(dimensions));
        assert!(refused.contains(shape), "{refused}");
    }
    let text = refusal(&manifest(text), b"not a TorchScript archive");
    assert!(
        text.starts_with("model net: no TorchScript network") && !text.contains('\n'),
        "{text}"
    );
}

#[test]
fn devices_are_parsed() {
    assert_eq!(device("cpu"), Ok(Device::Cpu));
    assert!(device("auto").is_ok());
    for text in ["gpu", "cuda:", "cuda:99", "cuda:-1", ""] {
        let error = device(text).expect_err(text).to_string();
        assert!(error.contains("auto, cpu"), "{error}");
    }
}

/// Logits of `count` random inputs, on the way that the engine takes now and by the plain
/// network; and that way.
fn both_ways(engine: &mut Engine, plain: impl Fn(&Tensor) -> Tensor, count: usize) -> (f64, Route) {
    let mut rng = Rng::new(count as u64);
    let mut number = || (rng.next_u64() >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
    let batch: Vec<f32> = (0..count * engine.input.len()).map(|_| number()).collect();
    tch::no_grad(|| {
        let found = engine.logits(&batch, count).expect("logits");
        let expected = plain(&Tensor::from_slice(&batch).view(shape(&engine.input, count)));
        let found = Tensor::from_slice(&found).view(expected.size().as_slice());
        let largest = expected.abs().max().double_value(&[]);
        let difference = (found - expected).abs().max().double_value(&[]);
        (difference / largest, engine.route())
    })
}

/// The ways of batches of these sizes, one after the other, each with the answers of the
/// plain network.
fn routes(engine: &mut Engine, plain: impl Fn(&Tensor) -> Tensor, counts: &[usize]) -> Vec<Route> {
    let route = |count: &usize| {
        let (difference, route) = both_ways(engine, &plain, *count);
        assert!(
            difference < 1e-4,
            "batch of {count}, {route:?}: {difference:.1e}"
        );
        route
    };
    counts.iter().map(route).collect()
}

#[test]
fn every_way_through_resnet_gives_the_plain_networks_answers() {
    let mut manifest = manifest(include_str!("../../models/resnet50.toml"));
    manifest.digest = None;
    (manifest.input.height, manifest.input.width) = (96, 64);
    let tensors = crate::models::resnet50::tests::random_tensors(5);
    let bytes = to_safetensors(&tensors, Kind::Float, None);
    let mut engine = load(&manifest, &bytes).expect("valid");
    assert_eq!(engine.route(), Route::Fused, "the warm-up");
    let weights = Weights::from_safetensors("resnet50", &bytes).expect("valid");
    let plain = ResNet50::load(weights, Device::Cpu).expect("valid");
    let found = routes(
        &mut engine,
        |batch| plain.forward(batch),
        &[1, 5, 5, 5, 4, 3, 1],
    );
    // Five: new, packed, used; four is padded to five; three is new; one is packed at start.
    let [fused, folded] = [Route::Fused, Route::Folded];
    assert_eq!(found, [fused, folded, folded, fused, fused, folded, fused]);
}

#[test]
fn every_way_through_lenet_gives_the_plain_networks_answers() {
    let mut noise = Noise::new(9);
    let tensors: Vec<(String, Tensor)> = TENSORS
        .iter()
        .map(|(name, shape)| {
            let tensor = noise.tensor(shape) * 0.2;
            (name.to_string(), tensor)
        })
        .collect();
    let bytes = to_safetensors(&tensors, Kind::Float, None);
    let mut engine = load(&lenet_manifest(), &bytes).expect("valid");
    let weights = Weights::from_safetensors("net", &bytes).expect("valid");
    let plain = LeNet::load(weights, Device::Cpu).expect("valid");
    let found = routes(
        &mut engine,
        |batch| plain.forward(batch),
        &[1, 32, 32, 31, 7],
    );
    assert_eq!(found, [Route::Fused; 5]);
}

#[path = "reference_tests.rs"]
mod reference;
