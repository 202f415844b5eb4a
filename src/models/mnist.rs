//! MNIST's files: reading the images and labels, and writing digits as PNG files.
//!
//! Decides: what a well-formed IDX file is, and the layout of a folder of digits
//! (`digit0.png`, `digit1.png`, … and `labels.csv`). Leaves to others: fetching the
//! files (`make data`) and everything about networks.
//!
//! *Source*: LeCun, Cortes, Burges, "The MNIST database of handwritten digits":
//! big-endian header (magic, counts, sides), then one byte a pixel or label.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder as _};

use crate::types::Digest;

/// Rows and columns of a digit, in pixels.
pub const SIDE: usize = 28;
/// Bytes of one image.
pub const IMAGE_BYTES: usize = SIDE * SIDE;

const MAGIC_IMAGES: u32 = 0x0803;
const MAGIC_LABELS: u32 = 0x0801;

/// Which part of the data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// 60,000 images.
    Training,
    /// 10,000 images.
    Test,
}

impl Split {
    fn stem(self) -> &'static str {
        match self {
            Split::Training => "train",
            Split::Test => "t10k",
        }
    }
}

/// Images with their labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digits {
    /// Grey values, [`IMAGE_BYTES`] for each image: 0 is background.
    pub images: Vec<u8>,
    /// 0 to 9, one for each image.
    pub labels: Vec<u8>,
}

impl Digits {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Digest of the pixels and labels.
    pub fn digest(&self) -> Digest {
        Digest::of(&[Digest::of(&self.images).0, Digest::of(&self.labels).0].concat())
    }

    /// The pixels of image `index`.
    pub fn image(&self, index: usize) -> &[u8] {
        &self.images[index * IMAGE_BYTES..][..IMAGE_BYTES]
    }
}

/// A file of the data set that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MnistError {
    /// Reading failed.
    #[error("{}: {cause}: run `make data`, or give the folder that holds MNIST's uncompressed files", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        cause: io::Error,
    },
    /// Not the IDX file that its name promises.
    #[error("{}: {problem}: delete the file and run `make data`", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Writing failed.
    #[error("{}: cannot write: {cause}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        cause: io::Error,
    },
}

/// Reads one part of the data set from the folder `dir`.
///
/// *Errors*: a file is missing, is no IDX file, has another length than its header
/// says, a label above 9, or the two files differ in their count.
pub fn read(dir: &Path, split: Split) -> Result<Digits, MnistError> {
    let images_path = dir.join(format!("{}-images-idx3-ubyte", split.stem()));
    let labels_path = dir.join(format!("{}-labels-idx1-ubyte", split.stem()));
    let images = read_idx(&images_path, MAGIC_IMAGES, &[SIDE, SIDE])?;
    let labels = read_idx(&labels_path, MAGIC_LABELS, &[])?;
    let problem = if let Some(label) = labels.iter().find(|label| **label > 9) {
        format!("label {label} is no digit")
    } else if images.len() / IMAGE_BYTES != labels.len() {
        let count = images.len() / IMAGE_BYTES;
        format!("{} labels for {count} images", labels.len())
    } else if labels.is_empty() {
        "no images in it".into()
    } else {
        return Ok(Digits { images, labels });
    };
    Err(MnistError::Format {
        path: labels_path,
        problem,
    })
}

/// The bytes after the header of the IDX file `path`, whose items have the given `sides`.
fn read_idx(path: &Path, magic: u32, sides: &[usize]) -> Result<Vec<u8>, MnistError> {
    let mut bytes = fs::read(path).map_err(|cause| MnistError::Read {
        path: path.into(),
        cause,
    })?;
    let wrong = |problem: String| MnistError::Format {
        path: path.into(),
        problem,
    };
    if bytes.starts_with(&[0x1f, 0x8b]) {
        return Err(wrong("still compressed by gzip".into()));
    }
    let header = 8 + 4 * sides.len();
    if bytes.len() < header {
        return Err(wrong(format!("{} bytes are no IDX file", bytes.len())));
    }
    let word = |index: usize| {
        let field = bytes[4 * index..4 * index + 4].try_into().expect("4 bytes");
        u32::from_be_bytes(field)
    };
    if word(0) != magic {
        return Err(wrong(format!(
            "magic {:#010x} instead of {magic:#010x}",
            word(0)
        )));
    }
    for (index, side) in sides.iter().enumerate() {
        if word(2 + index) as usize != *side {
            return Err(wrong(format!(
                "images of side {} instead of {side}",
                word(2 + index)
            )));
        }
    }
    let expected = header as u64 + u64::from(word(1)) * sides.iter().product::<usize>() as u64;
    if bytes.len() as u64 != expected {
        return Err(wrong(format!(
            "{} bytes instead of {expected}",
            bytes.len()
        )));
    }
    bytes.drain(..header);
    Ok(bytes)
}

/// A digit as the bytes of a grey PNG file of 28 x 28 pixels.
///
/// *Panics* where `pixels` are not [`IMAGE_BYTES`] long.
pub fn png(pixels: &[u8]) -> Vec<u8> {
    assert_eq!(pixels.len(), IMAGE_BYTES, "one digit");
    let mut bytes = Vec::new();
    PngEncoder::new(&mut bytes)
        .write_image(pixels, SIDE as u32, SIDE as u32, ExtendedColorType::L8)
        .expect("a digit is a valid image and memory takes it");
    bytes
}

/// Writes the digits as `digit0.png`, `digit1.png`, … and then `labels.csv` (header
/// `file,label`) into the folder `dir`, which is made if missing.
///
/// `labels.csv` appears last and whole, so that a folder that has it is complete; such a
/// folder with the same labels is left as it is. Returns the number of images written.
pub fn write_digits(digits: &Digits, dir: &Path) -> Result<usize, MnistError> {
    let write = |path: &Path| {
        let path = path.to_path_buf();
        move |cause| MnistError::Write { path, cause }
    };
    let mut table = String::from("file,label\n");
    for (index, label) in digits.labels.iter().enumerate() {
        table.push_str(&format!("digit{index}.png,{label}\n"));
    }
    let table_path = dir.join("labels.csv");
    if fs::read(&table_path).is_ok_and(|present| present == table.as_bytes()) {
        return Ok(0);
    }
    fs::create_dir_all(dir).map_err(write(dir))?;
    for index in 0..digits.len() {
        let path = dir.join(format!("digit{index}.png"));
        fs::write(&path, png(digits.image(index))).map_err(write(&path))?;
    }
    let temporary = dir.join("labels.csv.part");
    fs::File::create(&temporary)
        .and_then(|mut file| {
            file.write_all(table.as_bytes())
                .and_then(|()| file.sync_all())
        })
        .map_err(write(&temporary))?;
    fs::rename(&temporary, &table_path).map_err(write(&table_path))?;
    Ok(digits.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idx(magic: u32, words: &[u32], body: &[u8]) -> Vec<u8> {
        let mut bytes = magic.to_be_bytes().to_vec();
        words
            .iter()
            .for_each(|word| bytes.extend(word.to_be_bytes()));
        bytes.extend(body);
        bytes
    }

    fn two_digits() -> Digits {
        let mut images = vec![0; 2 * IMAGE_BYTES];
        images[30] = 255;
        images[IMAGE_BYTES + 31] = 128;
        Digits {
            images,
            labels: vec![3, 9],
        }
    }

    fn folder(images: &[u8], labels: &[u8]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("temporary directory");
        fs::write(dir.path().join("t10k-images-idx3-ubyte"), images).expect("written");
        fs::write(dir.path().join("t10k-labels-idx1-ubyte"), labels).expect("written");
        dir
    }

    #[test]
    fn what_is_well_formed_is_read() {
        let digits = two_digits();
        let dir = folder(
            &idx(MAGIC_IMAGES, &[2, 28, 28], &digits.images),
            &idx(MAGIC_LABELS, &[2], &digits.labels),
        );
        assert_eq!(read(dir.path(), Split::Test).expect("well formed"), digits);
        let missing = read(dir.path(), Split::Training).expect_err("not there");
        assert!(missing.to_string().contains("train-images-idx3-ubyte"));
    }

    #[test]
    fn what_is_malformed_is_refused_by_name() {
        let digits = two_digits();
        let images = idx(MAGIC_IMAGES, &[2, 28, 28], &digits.images);
        let labels = idx(MAGIC_LABELS, &[2], &digits.labels);
        let cases = [
            (
                idx(MAGIC_LABELS, &[2, 28, 28], &digits.images),
                labels.clone(),
                "magic",
            ),
            (
                idx(MAGIC_IMAGES, &[2, 28, 32], &digits.images),
                labels.clone(),
                "side 32",
            ),
            (
                idx(MAGIC_IMAGES, &[u32::MAX, 28, 28], &digits.images),
                labels.clone(),
                "bytes instead",
            ),
            (images[..1000].to_vec(), labels.clone(), "bytes instead"),
            (vec![0x1f, 0x8b, 8], labels.clone(), "gzip"),
            (vec![], labels.clone(), "0 bytes"),
            (
                images.clone(),
                idx(MAGIC_LABELS, &[2], &[3, 10]),
                "label 10",
            ),
            (
                images.clone(),
                idx(MAGIC_LABELS, &[1], &[3]),
                "1 labels for 2",
            ),
        ];
        for (images, labels, expected) in cases {
            let dir = folder(&images, &labels);
            let error = read(dir.path(), Split::Test)
                .expect_err(expected)
                .to_string();
            assert!(error.contains(expected), "{error}");
            assert!(error.contains("t10k-"), "{error}");
        }
    }

    #[test]
    fn digits_are_written_as_grey_png_files_with_their_labels_last() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let folder = dir.path().join("digits");
        let digits = two_digits();
        assert_eq!(write_digits(&digits, &folder).expect("written"), 2);
        let table = fs::read_to_string(folder.join("labels.csv")).expect("labels");
        assert_eq!(table, "file,label\ndigit0.png,3\ndigit1.png,9\n");
        let image = image::open(folder.join("digit1.png")).expect("a PNG file");
        assert_eq!(image.color(), image::ColorType::L8);
        assert_eq!(image.as_bytes(), digits.image(1));
        assert_eq!(write_digits(&digits, &folder).expect("complete already"), 0);
        assert_eq!(fs::read_dir(&folder).expect("folder").count(), 3);
    }
}
