//! `models/NAME.toml`: what a network expects and what its outputs mean.
//!
//! Decides: which manifests are valid, which names are aliases, and which models of a
//! directory can be served. Leaves to others: the weights' contents (`weights`,
//! `engine`) and the pixels (`prepare`). A manifest may come from another node, so
//! that nothing in it is trusted: the weights' name is one plain file name.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::types::Digest;

/// Largest manifest that is read, in bytes.
pub const MANIFEST_BYTES_MAX: u64 = 1 << 20;
/// Longest side of a network's input, in pixels.
const INPUT_SIDE_MAX: u32 = 4096;
/// Most labels a network may have.
const LABELS_MAX: usize = 100_000;
/// Longest label, in bytes.
const LABEL_LENGTH_MAX: usize = 200;

/// Other names that commands accept for a model.
const ALIASES: [(&str, &str); 1] = [("resnet", "resnet50")];

/// The model that `name` stands for: `resnet` is `resnet50`, every other name itself.
pub fn canonical(name: &str) -> &str {
    ALIASES
        .iter()
        .find(|(alias, _)| *alias == name)
        .map_or(name, |(_, model)| model)
}

/// How a model's weights are turned into a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// LeNet-5, safetensors.
    Lenet,
    /// ResNet-50 under torchvision's names, safetensors.
    Resnet50,
    /// A TorchScript archive that brings its own code.
    Torchscript,
}

impl Architecture {
    /// The extension of its weights file.
    fn extension(self) -> &'static str {
        match self {
            Architecture::Lenet | Architecture::Resnet50 => ".safetensors",
            Architecture::Torchscript => ".pt",
        }
    }
}

/// Kind of numbers that a network computes with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats (16-bit ones on a GPU).
    #[default]
    F32,
    /// 8-bit integers, on processors with instructions for them; elsewhere as `F32`.
    Int8,
}

/// Maps of ResNet-50 that need a range in 8-bit integers.
pub const INT8_RANGES: usize = 54;

/// Shape of one input, and how an image is brought to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// 1 (grey) or 3 (red, green, blue).
    pub channels: u32,
    /// Rows, in pixels.
    pub height: u32,
    /// Columns, in pixels.
    pub width: u32,
    /// The image's shorter side is scaled to this many pixels before the centre is cut
    /// out. The larger of height and width where it is not given.
    pub resize: Option<u32>,
}

impl Input {
    /// Numbers in one input: channels x height x width.
    pub fn len(&self) -> usize {
        self.channels as usize * self.height as usize * self.width as usize
    }

    /// Never true for a validated manifest.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Pixels that the shorter side of an image is scaled to.
    pub fn shorter_side(&self) -> u32 {
        self.resize.unwrap_or(self.height.max(self.width))
    }
}

/// A validated manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The model's name, which is also the name of its manifest: `NAME.toml`.
    pub name: String,
    /// How the weights become a network.
    pub architecture: Architecture,
    /// Name of the weights file, beside the manifest.
    pub weights: String,
    /// BLAKE3 digest of the weights file, 64 hexadecimal digits, where it is fixed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Shape of one input.
    pub input: Input,
    /// Subtracted from each channel, whose values are in 0 to 1.
    pub mean: Vec<f32>,
    /// Divides each channel after that.
    pub std: Vec<f32>,
    /// What the outputs mean, in order.
    pub labels: Vec<String>,
    /// Kind of numbers.
    #[serde(default, skip_serializing_if = "is_default")]
    pub precision: Precision,
    /// For `int8`: the lowest and the highest number in each map of the network, as
    /// `train int8` measures them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<[f32; 2]>,
}

fn is_default(precision: &Precision) -> bool {
    *precision == Precision::default()
}

/// A manifest that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The file could not be read.
    #[error("{path}: {cause}: check that the file is there and readable")]
    Read {
        /// The manifest.
        path: String,
        /// What the operating system said.
        cause: io::Error,
    },
    /// Not TOML, or a field missing, unknown or of the wrong type.
    #[error("{path}: {cause}")]
    Syntax {
        /// The manifest.
        path: String,
        /// Line, field and reason, in one line.
        cause: String,
    },
    /// A field with a value that cannot be.
    #[error("{path}: field `{field}`: {problem}")]
    Field {
        /// The manifest.
        path: String,
        /// The field as it is written in the file.
        field: &'static str,
        /// What is wrong, and what to write instead.
        problem: String,
    },
}

impl Manifest {
    /// Reads and validates `bytes`; `path` only names them in errors.
    ///
    /// *Errors*: [`ManifestError`] that names file, field and remedy.
    pub fn parse(bytes: &[u8], path: &str) -> Result<Manifest, ManifestError> {
        let syntax = |cause: String| ManifestError::Syntax {
            path: path.into(),
            cause,
        };
        let text = std::str::from_utf8(bytes)
            .map_err(|error| syntax(format!("not UTF-8 text ({error})")))?;
        let manifest: Manifest = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| {
                text[..span.start.min(text.len())].lines().count().max(1)
            });
            syntax(format!(
                "line {line}: {}",
                error.message().replace('\n', " ")
            ))
        })?;
        manifest.validate(path)?;
        Ok(manifest)
    }

    /// Reads and validates the manifest file `path`, whose stem must be the model's name.
    /// Returns it with its bytes, which is what a cluster publishes.
    pub fn read(path: &Path) -> Result<(Manifest, Vec<u8>), ManifestError> {
        let shown = path.display().to_string();
        let read = |cause| ManifestError::Read {
            path: shown.clone(),
            cause,
        };
        let length = std::fs::metadata(path).map_err(read)?.len();
        if length > MANIFEST_BYTES_MAX {
            return Err(ManifestError::Syntax {
                path: shown,
                cause: format!("{length} bytes: a manifest has at most {MANIFEST_BYTES_MAX}"),
            });
        }
        let bytes = std::fs::read(path).map_err(read)?;
        let manifest = Manifest::parse(&bytes, &shown)?;
        let stem = path.file_stem().unwrap_or_default();
        if stem != manifest.name.as_str() {
            let problem = format!(
                "{:?} differs from the file's name: rename the file to {}.toml or change the field",
                manifest.name, manifest.name
            );
            return Err(ManifestError::Field {
                path: shown,
                field: "name",
                problem,
            });
        }
        Ok((manifest, bytes))
    }

    fn validate(&self, path: &str) -> Result<(), ManifestError> {
        let checks = [
            ("name", self.check_name()),
            ("weights", self.check_weights()),
            ("digest", self.check_digest()),
            ("input", self.check_input()),
            ("mean", self.check_channels("mean", &self.mean)),
            ("std", self.check_channels("std", &self.std)),
            ("std", self.check_std()),
            ("labels", self.check_labels()),
            ("precision", self.check_precision()),
            ("ranges", self.check_ranges()),
        ];
        match checks
            .into_iter()
            .find_map(|(field, check)| Some((field, check.err()?)))
        {
            None => Ok(()),
            Some((field, problem)) => Err(ManifestError::Field {
                path: path.into(),
                field,
                problem,
            }),
        }
    }

    pub(super) fn check_name(&self) -> Result<(), String> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if self.name.is_empty()
            || self.name.len() > 63
            || self.name.starts_with('.')
            || !self.name.chars().all(allowed)
        {
            return Err(format!(
                "{:?}: use 1 to 63 of the characters A-Z a-z 0-9 . _ -, not starting with a dot",
                self.name
            ));
        }
        match canonical(&self.name) {
            model if model == self.name => Ok(()),
            model => Err(format!(
                "{:?} is an alias of {model}: choose another name",
                self.name
            )),
        }
    }

    fn check_weights(&self) -> Result<(), String> {
        let plain = !self.weights.is_empty()
            && self.weights.len() <= 200
            && !self.weights.starts_with('.')
            && !self.weights.contains(['/', '\\'])
            && !self.weights.chars().any(char::is_control);
        if !plain {
            return Err(format!(
                "{:?}: give the plain name of a file beside the manifest, for example {}{}",
                self.weights,
                self.name,
                self.architecture.extension()
            ));
        }
        if !self.weights.ends_with(self.architecture.extension()) {
            return Err(format!(
                "{:?}: weights of this architecture are a {} file",
                self.weights,
                self.architecture.extension()
            ));
        }
        Ok(())
    }

    fn check_digest(&self) -> Result<(), String> {
        match &self.digest {
            Some(hex) if parse_digest(hex).is_none() => Err(format!(
                "{hex:?}: a BLAKE3 digest has 64 hexadecimal digits; correct it or leave the field out"
            )),
            _ => Ok(()),
        }
    }

    fn check_input(&self) -> Result<(), String> {
        let Input {
            channels,
            height,
            width,
            ..
        } = self.input;
        if channels != 1 && channels != 3 {
            return Err(format!("channels = {channels}: use 1 (grey) or 3 (colour)"));
        }
        for (side, pixels) in [("height", height), ("width", width)] {
            if !(1..=INPUT_SIDE_MAX).contains(&pixels) {
                return Err(format!(
                    "{side} = {pixels}: use 1 to {INPUT_SIDE_MAX} pixels"
                ));
            }
        }
        let resize = self.input.shorter_side();
        if resize < height.max(width) || resize > INPUT_SIDE_MAX {
            return Err(format!(
                "resize = {resize}: use {} to {INPUT_SIDE_MAX}, so that the crop fits into the scaled image",
                height.max(width)
            ));
        }
        match self.architecture {
            Architecture::Lenet if (channels, height, width) != (1, 28, 28) => Err(format!(
                "{channels} x {height} x {width}: lenet takes channels = 1, height = 28, width = 28"
            )),
            Architecture::Resnet50 if channels != 3 || height < 32 || width < 32 => Err(format!(
                "{channels} x {height} x {width}: resnet50 takes channels = 3 and at least 32 pixels a side"
            )),
            _ => Ok(()),
        }
    }

    fn check_channels(&self, field: &str, values: &[f32]) -> Result<(), String> {
        if values.len() != self.input.channels as usize {
            return Err(format!(
                "{} numbers: give one {field} for each of the {} channels",
                values.len(),
                self.input.channels
            ));
        }
        match values.iter().find(|value| !value.is_finite()) {
            Some(value) => Err(format!("{value}: use finite numbers")),
            None => Ok(()),
        }
    }

    fn check_std(&self) -> Result<(), String> {
        match self.std.iter().find(|value| **value <= 0.0) {
            Some(value) => Err(format!("{value}: it divides, so use numbers above 0")),
            None => Ok(()),
        }
    }

    fn check_labels(&self) -> Result<(), String> {
        if self.labels.is_empty() || self.labels.len() > LABELS_MAX {
            return Err(format!(
                "{} labels: name each output of the network, 1 to {LABELS_MAX}",
                self.labels.len()
            ));
        }
        let bad = |label: &&String| {
            label.is_empty()
                || label.len() > LABEL_LENGTH_MAX
                || label.chars().any(char::is_control)
        };
        match self.labels.iter().find(bad) {
            Some(label) => Err(format!(
                "{label:?}: a label has 1 to {LABEL_LENGTH_MAX} bytes and no control characters"
            )),
            None => Ok(()),
        }
    }

    fn check_precision(&self) -> Result<(), String> {
        match (self.precision, self.architecture) {
            (Precision::F32, _) | (Precision::Int8, Architecture::Resnet50) => Ok(()),
            (Precision::Int8, _) => Err("int8 is there for resnet50 only: use f32".into()),
        }
    }

    fn check_ranges(&self) -> Result<(), String> {
        let wanted = match self.precision {
            Precision::F32 => 0,
            Precision::Int8 => INT8_RANGES,
        };
        if self.ranges.len() != wanted {
            return Err(format!(
                "{} pairs instead of {wanted}: `train int8` makes a manifest with all of them",
                self.ranges.len()
            ));
        }
        let bad = |[low, high]: &&[f32; 2]| !low.is_finite() || !high.is_finite() || low > high;
        match self.ranges.iter().find(bad) {
            Some(pair) => Err(format!(
                "{pair:?}: give the lowest number, then the highest"
            )),
            None => Ok(()),
        }
    }

    /// The digest that the weights must have, where the manifest fixes it.
    pub fn weights_digest(&self) -> Option<Digest> {
        parse_digest(self.digest.as_deref()?)
    }
}

/// 64 hexadecimal digits as a digest.
fn parse_digest(hex: &str) -> Option<Digest> {
    if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(hex.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(Digest(digest))
}

/// A model of a directory whose manifest is valid and whose weights are there.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    /// The manifest.
    pub manifest: Manifest,
    /// Its bytes as they are on disk.
    pub manifest_bytes: Vec<u8>,
    /// The weights file.
    pub weights: PathBuf,
    /// Its length in bytes.
    pub weights_bytes: u64,
}

impl ModelFiles {
    /// BLAKE3 digest of the weights file, read in a stream.
    ///
    /// *Errors*: those of reading the file, which the caller names.
    pub fn digest(&self) -> io::Result<Digest> {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(File::open(&self.weights)?)?;
        Ok(Digest(*hasher.finalize().as_bytes()))
    }
}

/// A model that cannot be served, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The model's name (its manifest's file name without `.toml`).
    pub name: String,
    /// One line that names the file and the remedy.
    pub reason: String,
}

/// The models of the directory `dir`, sorted by name: each `*.toml` in it, either with
/// its weights or skipped with the reason.
///
/// *Errors*: the directory cannot be read. Anything wrong with one model only skips it.
pub fn available(dir: &Path) -> Result<Vec<Result<ModelFiles, Skipped>>, ManifestError> {
    let read = |cause| ManifestError::Read {
        path: dir.display().to_string(),
        cause,
    };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(read)? {
        let path = entry.map_err(read)?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            paths.push(path);
        }
    }
    paths.sort_by(|left, right| left.file_stem().cmp(&right.file_stem()));
    Ok(paths.iter().map(|path| files_of(path)).collect())
}

/// The model of the manifest file `path`.
fn files_of(path: &Path) -> Result<ModelFiles, Skipped> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let skipped = |reason: String| Skipped {
        name: name.to_string(),
        reason,
    };
    let (manifest, manifest_bytes) =
        Manifest::read(path).map_err(|error| skipped(error.to_string()))?;
    let weights = path.with_file_name(&manifest.weights);
    match std::fs::metadata(&weights) {
        Ok(metadata) if metadata.is_file() && metadata.len() > 0 => Ok(ModelFiles {
            manifest,
            manifest_bytes,
            weights,
            weights_bytes: metadata.len(),
        }),
        Ok(_) => Err(skipped(format!(
            "{}: empty or not a file: train the model or put its weights there",
            weights.display()
        ))),
        Err(error) => Err(skipped(format!(
            "{}: {error}: train the model or put its weights there",
            weights.display()
        ))),
    }
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
