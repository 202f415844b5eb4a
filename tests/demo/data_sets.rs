//! What the demo classifies, with the labels that it is checked against.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use dlc::models::mnist::{self, Split};
use dlc::models::photographs::Photographs;
use dlc::models::stand_ins;

/// Drawings that stand in for photographs.
const STAND_INS: usize = 400;

/// A folder of images on this machine, and what is known of them.
pub struct DataSet {
    /// The model that classifies it.
    pub model: &'static str,
    /// Its name in SDFS, and the local files' name.
    pub name: String,
    /// The label of each file, in the order of the files' numbers.
    pub labels: Vec<String>,
    /// Smallest accepted accuracy, in percent; none where the images mean nothing.
    pub accuracy: Option<f64>,
    stem: &'static str,
    extension: &'static str,
}

impl DataSet {
    /// Checks the text of a job's result file: each input has exactly one row, without an
    /// error, and enough labels are right. Prints what it found.
    pub fn check(&self, text: &str) -> Result<()> {
        let mut lines = text.lines();
        ensure!(
            lines.next() == Some("file,label,confidence,error"),
            "the header of the result file"
        );
        let mut rows: BTreeMap<usize, &str> = BTreeMap::new();
        for line in lines {
            let fields: Vec<&str> = line.split(',').collect();
            let number = fields[0]
                .strip_prefix(self.stem)
                .and_then(|rest| rest.strip_suffix(self.extension)?.strip_suffix('.'));
            let number: usize = number
                .and_then(|digits| digits.parse().ok())
                .with_context(|| line.to_string())?;
            let known = number < self.labels.len();
            ensure!(
                known && fields.len() == 4 && fields[3].is_empty(),
                "row {line:?}"
            );
            let first = rows.insert(number, fields[1]).is_none();
            ensure!(first, "{} has two rows", fields[0]);
        }
        let (found, wanted) = (rows.len(), self.labels.len());
        ensure!(found == wanted, "{found} rows for {wanted} inputs");
        let right = rows.iter();
        let right = right.filter(|(number, label)| self.labels[**number] == **label);
        let accuracy = right.count() as f64 * 100.0 / wanted as f64;
        let Some(least) = self.accuracy else {
            println!(
                "{}: {found} rows, each input exactly once; drawn stand-ins, no accuracy is claimed",
                self.name
            );
            return Ok(());
        };
        println!(
            "{}: {found} rows, each input exactly once; accuracy {accuracy:.2} %",
            self.name
        );
        ensure!(accuracy >= least, "accuracy is below {least} %");
        Ok(())
    }
}

/// MNIST's test digits, as PNG files in `dir`.
pub fn digits(root: &Path, dir: &Path) -> Result<DataSet> {
    let digits = mnist::read(&root.join("data/mnist"), Split::Test);
    let digits = digits.context("run `make data` first")?;
    mnist::write_digits(&digits, dir)?;
    Ok(DataSet {
        model: "lenet",
        name: "digit.png".into(),
        labels: digits.labels.iter().map(u8::to_string).collect(),
        accuracy: Some(98.9),
        stem: "digit",
        extension: "png",
    })
}

/// The test part of the flowers, or drawings where there are none, as JPEG files in `dir`.
pub fn flowers(root: &Path, dir: &Path) -> Result<DataSet> {
    std::fs::create_dir_all(dir)?;
    let source = root.join("data/flowers");
    let mut labels = Vec::new();
    let mut add = |label: &str, bytes: &[u8]| {
        let path = dir.join(format!("flower{}.jpg", labels.len()));
        labels.push(label.to_string());
        std::fs::write(&path, bytes).with_context(|| path.display().to_string())
    };
    let real = source.is_dir();
    if real {
        let set = Photographs::read(&source, Split::Test)?;
        for index in 0..set.len() {
            add(&set.classes[set.label(index)], &set.bytes(index)?)?;
        }
    } else {
        println!(
            "no photographs in data/flowers (`make data-flowers`, or FLOWERS=DIR): drawn stand-ins\ntake their place, and nothing is said of how well they are told apart\n"
        );
        for number in 0..STAND_INS {
            let (label, bytes) = stand_ins::drawing(number);
            add(label, &bytes)?;
        }
    }
    Ok(DataSet {
        model: "resnet50",
        name: "flower.jpg".into(),
        labels,
        accuracy: real.then_some(75.0),
        stem: "flower",
        extension: "jpg",
    })
}
