//! How far the numbers that a network gets are from torchvision's.
//!
//! Needs a Python with torchvision, which `REFERENCE_PYTHON` names, and a folder of
//! photographs (`$FLOWERS`, `data/flowers` or `../shared/data/flowers`), and says that it
//! was skipped where either is missing:
//!
//! ```text
//! REFERENCE_PYTHON=… cargo test --release --no-default-features --test preprocessing -- --nocapture
//! ```
//!
//! Each photograph is compared twice: as the JPEG file that it is, and as a PNG file of
//! the pixels that Pillow decoded. The second leaves the decoders out of it.

use std::path::{Path, PathBuf};
use std::process::Command;

use dlc::models::manifest::Manifest;
use dlc::models::prepare::prepare;

const PHOTOGRAPHS: usize = 100;
/// The script's exit status where torchvision is missing.
const MISSING: i32 = 3;

/// Differences in steps of a byte: 1/255 of the range from black to white.
#[derive(Default)]
struct Difference {
    most: f64,
    sum: f64,
    count: f64,
}

impl Difference {
    fn add(&mut self, ours: &[f32], theirs: &[f32], manifest: &Manifest) {
        assert_eq!(ours.len(), theirs.len());
        let plane = ours.len() / manifest.std.len();
        for (index, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
            let step = f64::from(manifest.std[index / plane]) * 255.0;
            let difference = f64::from(ours - theirs).abs() * step;
            self.most = self.most.max(difference);
            self.sum += difference;
            self.count += 1.0;
        }
    }

    fn mean(&self) -> f64 {
        self.sum / self.count
    }
}

fn manifest(input: &str, mean: &str, std: &str) -> Manifest {
    let text = format!(
        "name = \"net\"\narchitecture = \"torchscript\"\nweights = \"net.pt\"\n\
         input = {{ {input} }}\nmean = [{mean}]\nstd = [{std}]\nlabels = [\"a\"]\n"
    );
    Manifest::parse(text.as_bytes(), "net.toml").expect("valid")
}

/// Photographs spread over all classes, or none.
fn photographs() -> Vec<PathBuf> {
    let entries = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten();
    let named = std::env::var_os("FLOWERS").map(PathBuf::from);
    let usual = ["data/flowers", "../shared/data/flowers"].map(PathBuf::from);
    let mut paths: Vec<PathBuf> = named
        .into_iter()
        .chain(usual)
        .find(|folder| folder.is_dir())
        .into_iter()
        .flat_map(|folder| entries(&folder).collect::<Vec<_>>())
        .flat_map(|class| entries(&class.path()).map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "jpg"))
        .collect();
    paths.sort();
    let count = paths.len().min(PHOTOGRAPHS);
    (0..count)
        .map(|number| paths[number * paths.len() / count].clone())
        .collect()
}

fn numbers(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).expect("written by the script");
    let (numbers, _) = bytes.as_chunks::<4>();
    numbers
        .iter()
        .map(|bytes| f32::from_ne_bytes(*bytes))
        .collect()
}

#[test]
fn numbers_are_close_to_those_of_torchvision() {
    let photographs = photographs();
    if photographs.is_empty() {
        println!("skipped: no photographs; name their folder in FLOWERS");
        return;
    }
    let Some(python) = std::env::var_os("REFERENCE_PYTHON") else {
        println!("skipped: REFERENCE_PYTHON names no Python with torchvision");
        return;
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let status = Command::new(&python)
        .arg("tests/reference/preprocessing.py")
        .arg(folder.path())
        .args(&photographs)
        .status();
    match status.as_ref().map(|status| status.code()) {
        Ok(Some(0)) => {}
        Ok(Some(MISSING)) => {
            println!(
                "skipped: no torchvision; install it or name another Python in REFERENCE_PYTHON"
            );
            return;
        }
        _ => panic!("{python:?}: {status:?}"),
    }
    let colour = manifest(
        "channels = 3, height = 224, width = 224, resize = 256",
        "0.485, 0.456, 0.406",
        "0.229, 0.224, 0.225",
    );
    let grey = manifest("channels = 1, height = 28, width = 28", "0.1307", "0.3081");
    println!("{} photographs, differences in 1/255", photographs.len());
    for (name, manifest, most, mean) in [("colour", &colour, 1.01, 0.1), ("grey", &grey, 1.01, 0.2)]
    {
        let (mut files, mut pixels) = (Difference::default(), Difference::default());
        for (number, path) in photographs.iter().enumerate() {
            let theirs = numbers(&folder.path().join(format!("{number}.{name}")));
            let png = folder.path().join(format!("{number}.png"));
            for (path, difference) in [(path, &mut files), (&png, &mut pixels)] {
                let bytes = std::fs::read(path).expect("readable");
                let ours = prepare(&bytes, manifest).expect("a good file");
                difference.add(&ours, &theirs, manifest);
            }
        }
        for (what, difference) in [("JPEG", &files), ("the same pixels", &pixels)] {
            let (most, mean) = (difference.most, difference.mean());
            println!("{name:<8}{what:<18}at most {most:.2}, on average {mean:.4}");
        }
        assert!(pixels.most <= most && pixels.mean() <= mean, "{name}");
    }
}
