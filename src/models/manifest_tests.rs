//! Tests of `manifest`.

use super::*;

const VALID: &str = r#"
name = "net"
architecture = "resnet50"
weights = "net.safetensors"
input = { channels = 3, height = 224, width = 200, resize = 256 }
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
labels = ["a", "b"]
"#;

fn refusal(text: &str) -> String {
    Manifest::parse(text.as_bytes(), "models/net.toml")
        .expect_err("the manifest must be refused")
        .to_string()
}

#[test]
fn a_valid_manifest_is_read_as_it_stands() {
    let manifest = Manifest::parse(VALID.as_bytes(), "net.toml").expect("valid");
    assert_eq!(manifest.architecture, Architecture::Resnet50);
    assert_eq!(manifest.input.len(), 3 * 224 * 200);
    assert_eq!(manifest.input.shorter_side(), 256);
    assert_eq!(manifest.labels, ["a", "b"]);
    assert_eq!(manifest.weights_digest(), None);
}

#[test]
fn resize_defaults_to_the_larger_side() {
    let text = VALID.replace(", resize = 256", "");
    let manifest = Manifest::parse(text.as_bytes(), "net.toml").expect("valid");
    assert_eq!(manifest.input.shorter_side(), 224);
}

#[test]
fn each_bad_field_is_named_with_its_file() {
    let cases = [
        ("name = \"net\"", "name = \"../net\"", "`name`"),
        ("name = \"net\"", "name = \"resnet\"", "alias of resnet50"),
        ("net.safetensors", "../net.safetensors", "`weights`"),
        ("net.safetensors", "net.pt", ".safetensors file"),
        ("channels = 3", "channels = 2", "`input`"),
        ("channels = 3", "channels = 1", "at least 32 pixels"),
        ("height = 224", "height = 0", "height = 0"),
        ("height = 224", "height = 100000", "height = 100000"),
        ("resize = 256", "resize = 200", "resize = 200"),
        ("mean = [0.485, ", "mean = [", "`mean`"),
        ("0.485", "nan", "finite"),
        ("0.229", "0.0", "`std`"),
        ("[\"a\", \"b\"]", "[]", "`labels`"),
        ("\"b\"", "\"a\\nb\"", "`labels`"),
        ("labels =", "lables =", "lables"),
        ("labels = [\"a\", \"b\"]", "", "labels"),
        ("\"resnet50\"", "\"vgg\"", "line 3"),
        (
            "name = \"net\"",
            "name = \"net\"\ndigest = \"12\"",
            "`digest`",
        ),
    ];
    for (from, to, expected) in cases {
        let text = VALID.replacen(from, to, 1);
        assert_ne!(text, VALID, "{from:?} is not in the valid manifest");
        let refusal = refusal(&text);
        assert!(refusal.starts_with("models/net.toml: "), "{refusal}");
        assert!(refusal.contains(expected), "{to:?} gave: {refusal}");
        assert!(!refusal.contains('\n'), "{refusal:?}");
    }
}

#[test]
fn lenet_takes_only_its_own_shape() {
    let text = VALID
        .replace("\"resnet50\"", "\"lenet\"")
        .replace("channels = 3", "channels = 1")
        .replace("[0.485, 0.456, 0.406]", "[0.5]")
        .replace("[0.229, 0.224, 0.225]", "[0.5]");
    assert!(refusal(&text).contains("height = 28"));
}

#[test]
fn a_digest_is_parsed() {
    let digest = Digest::of(b"weights");
    let text = format!("digest = \"{digest}\"\n{VALID}");
    let manifest = Manifest::parse(text.as_bytes(), "net.toml").expect("valid");
    assert_eq!(manifest.weights_digest(), Some(digest));
}

#[test]
fn aliases_name_their_model() {
    assert_eq!(canonical("resnet"), "resnet50");
    assert_eq!(canonical("resnet50"), "resnet50");
    assert_eq!(canonical("lenet"), "lenet");
}

#[test]
fn a_directory_lists_models_by_name_and_skips_those_without_weights() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let write = |name: &str, text: &str| {
        std::fs::write(dir.path().join(name), text).expect("written");
    };
    write("net.toml", VALID);
    write("net.safetensors", "weights");
    write("bare.toml", &VALID.replace("\"net", "\"bare"));
    write("empty.toml", &VALID.replace("\"net", "\"empty"));
    write("empty.safetensors", "");
    write("broken.toml", "name = ");
    write("other.toml", VALID);
    write("readme.md", "not a model");
    let found = available(dir.path()).expect("directory");
    let names: Vec<_> = found
        .iter()
        .map(|model| match model {
            Ok(files) => files.manifest.name.clone(),
            Err(skipped) => format!("-{}", skipped.name),
        })
        .collect();
    assert_eq!(names, ["-bare", "-broken", "-empty", "net", "-other"]);
    let files = found[3].as_ref().expect("net has both files");
    assert_eq!(files.weights_bytes, 7);
    assert_eq!(files.manifest_bytes, VALID.as_bytes());
    assert_eq!(files.digest().expect("readable"), Digest::of(b"weights"));
    let reason = &found[0].as_ref().expect_err("no weights").reason;
    assert!(reason.contains("bare.safetensors"), "{reason}");
    let reason = &found[4].as_ref().expect_err("wrong name").reason;
    assert!(reason.contains("net.toml"), "{reason}");
}

#[test]
fn a_missing_directory_is_an_error_that_names_it() {
    let error = available(Path::new("no/such/models")).expect_err("missing");
    assert!(error.to_string().starts_with("no/such/models: "), "{error}");
}

#[test]
fn the_committed_manifests_are_valid() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    for model in ["lenet", "resnet50"] {
        let (manifest, _) = Manifest::read(&dir.join(format!("{model}.toml"))).expect(model);
        assert_eq!(manifest.name, model);
    }
}

#[test]
fn integers_need_a_range_for_each_map() {
    let int8 = |ranges: &str| format!("{VALID}precision = \"int8\"\nranges = [{ranges}]\n");
    let all = vec!["[-1.0, 2.5]"; INT8_RANGES].join(", ");
    let manifest = Manifest::parse(int8(&all).as_bytes(), "net.toml").expect("valid");
    assert_eq!(manifest.precision, Precision::Int8);
    assert_eq!(manifest.ranges[53], [-1.0, 2.5]);
    // What `train int8` writes is what is read.
    let text = toml::to_string(&manifest).expect("written");
    let again = Manifest::parse(text.as_bytes(), "net.toml").expect("valid");
    assert_eq!(again, manifest);
    assert!(refusal(&int8("[0.0, 1.0]")).contains("1 pairs instead of 54"));
    assert!(refusal(&int8(&all.replacen("2.5", "-2.5", 1))).contains("`ranges`"));
    assert!(refusal(&format!("{VALID}ranges = [[0.0, 1.0]]\n")).contains("instead of 0"));
    let script = VALID.replace("\"resnet50\"", "\"torchscript\"");
    let script = script.replace(".safetensors", ".pt") + "precision = \"int8\"\n";
    assert!(refusal(&script).contains("`precision`"));
    assert!(refusal(&format!("{VALID}precision = \"int4\"\n")).contains("int4"));
}
