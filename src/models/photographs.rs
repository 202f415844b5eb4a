//! A data set of photographs: a folder for each class.
//!
//! Decides: which files belong to it, their order, and which of them are kept for
//! testing. That is told by a file's contents alone: it is a test image when the first 8
//! bytes of its BLAKE3 digest, as a big-endian number, modulo 100 are below
//! [`TEST_PERCENT`]. So neither names nor further photographs move an image from one part
//! to the other, and nobody has to keep a list. Leaves to others: fetching (`make data`),
//! decoding (`prepare`) and what is done with the images.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use image::RgbImage;

use super::mnist::Split;
use super::prepare::{self, ImageError};
use crate::types::Digest;

/// Share of the photographs that are test images, in percent.
pub const TEST_PERCENT: u64 = 15;
/// Extensions of the files that are photographs, in lower case.
const EXTENSIONS: [&str; 3] = ["jpg", "jpeg", "png"];
/// Broken files that an error names before it only counts the rest.
const NAMED_MAX: usize = 5;

/// Photographs of one part of a data set, by class and then by name.
#[derive(Clone, Debug)]
pub struct Photographs {
    /// The classes: names of the folders, sorted.
    pub classes: Vec<String>,
    /// File and class number.
    files: Vec<(PathBuf, usize)>,
    digest: Digest,
}

/// A data set that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PhotographError {
    /// A file or folder cannot be read.
    #[error("{}: {cause}: name a folder that has a folder of photographs for each class", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        cause: io::Error,
    },
    /// Fewer than two classes with photographs.
    #[error("{}: {found} folders with JPEG or PNG files: it must have one for each class, at least two", path.display())]
    Classes {
        /// The folder.
        path: PathBuf,
        /// Classes found.
        found: usize,
    },
    /// A class has no photograph in this part.
    #[error("{}: class {class:?} has no {part} images: it needs more photographs", path.display())]
    Empty {
        /// The folder.
        path: PathBuf,
        /// The class.
        class: String,
        /// `training` or `test`.
        part: &'static str,
    },
    /// Files that are no images.
    #[error("{count} files are no usable images: remove or convert them: {named}")]
    Broken {
        /// How many.
        count: usize,
        /// The first of them, each with the reason.
        named: String,
    },
}

impl Photographs {
    /// The photographs of `part` in the folder `dir`. Every file is read, once.
    ///
    /// *Errors*: [`PhotographError`] but `Broken`.
    pub fn read(dir: &Path, part: Split) -> Result<Photographs, PhotographError> {
        let mut classes = Vec::new();
        let mut files = Vec::new();
        let mut contents = Vec::new();
        for folder in sorted(dir, |path| path.is_dir() && !is_hidden(path))? {
            let images = sorted(&folder, is_photograph)?;
            if images.is_empty() {
                continue;
            }
            let class = folder.file_name().unwrap_or_default().to_string_lossy();
            let before = files.len();
            for image in images {
                let digest = Digest::of(&read(&image)?);
                if part_of(digest) == part {
                    files.push((image, classes.len()));
                    contents.extend(digest.0);
                }
            }
            if files.len() == before {
                return Err(PhotographError::Empty {
                    path: dir.into(),
                    class: class.into(),
                    part: match part {
                        Split::Training => "training",
                        Split::Test => "test",
                    },
                });
            }
            contents.extend(class.as_bytes());
            classes.push(class.to_string());
        }
        if classes.len() < 2 {
            return Err(PhotographError::Classes {
                path: dir.into(),
                found: classes.len(),
            });
        }
        Ok(Photographs {
            classes,
            files,
            digest: Digest::of(&contents),
        })
    }

    /// Digest of the photographs' bytes and classes.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Number of photographs.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Never true for a data set that was read.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Class number of photograph `index`.
    pub fn label(&self, index: usize) -> usize {
        self.files[index].1
    }

    /// File of photograph `index`.
    pub fn path(&self, index: usize) -> &Path {
        &self.files[index].0
    }

    /// Bytes of the file of photograph `index`. *Errors*: it cannot be read.
    pub fn bytes(&self, index: usize) -> Result<Vec<u8>, PhotographError> {
        read(self.path(index))
    }

    /// Pixels of photograph `index`. *Errors*: it cannot be read or decoded.
    pub fn decode(&self, index: usize) -> Result<RgbImage, PhotographError> {
        match prepare::decode(&self.bytes(index)?) {
            Ok(image) => Ok(image.into_rgb8()),
            Err(error) => Err(broken(&[(self.path(index), error)])),
        }
    }

    /// Decodes every photograph, so that a run of hours does not end at a broken one.
    ///
    /// *Errors*: [`PhotographError::Broken`] with all that are.
    pub fn check(&self) -> Result<(), PhotographError> {
        let mut found = Vec::new();
        for index in 0..self.len() {
            if let Err(error) = prepare::decode(&self.bytes(index)?) {
                found.push((self.path(index), error));
            }
        }
        match found.is_empty() {
            true => Ok(()),
            false => Err(broken(&found)),
        }
    }
}

fn broken(files: &[(&Path, ImageError)]) -> PhotographError {
    let named: Vec<String> = files
        .iter()
        .take(NAMED_MAX)
        .map(|(path, error)| format!("{}: {error}", path.display()))
        .collect();
    PhotographError::Broken {
        count: files.len(),
        named: named.join("; "),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, PhotographError> {
    fs::read(path).map_err(|cause| PhotographError::Read {
        path: path.into(),
        cause,
    })
}

/// The part that a file of this digest belongs to.
fn part_of(digest: Digest) -> Split {
    let first = digest.0[..8].try_into().expect("a digest has 32 bytes");
    match u64::from_be_bytes(first) % 100 < TEST_PERCENT {
        true => Split::Test,
        false => Split::Training,
    }
}

fn is_photograph(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    path.is_file() && !is_hidden(path) && EXTENSIONS.contains(&extension.to_lowercase().as_str())
}

/// Whether its name starts with a dot: what other programs keep beside photographs.
fn is_hidden(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    name.as_encoded_bytes().starts_with(b".")
}

/// What is in the folder `dir`, as far as it is `wanted`, sorted by name.
fn sorted(dir: &Path, wanted: fn(&Path) -> bool) -> Result<Vec<PathBuf>, PhotographError> {
    let failed = |cause| PhotographError::Read {
        path: dir.into(),
        cause,
    };
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if wanted(&path) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::stand_ins::drawing;

    /// A folder with so many drawings, each in the folder of its kind.
    fn folder(count: usize) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("temporary directory");
        for number in 0..count {
            let (class, bytes) = drawing(number);
            let class = dir.path().join(class);
            fs::create_dir_all(&class).expect("made");
            fs::write(class.join(format!("{number}.JPG")), bytes).expect("written");
        }
        dir
    }

    fn names(set: &Photographs) -> Vec<String> {
        let name = |index| set.path(index).file_name().expect("a file");
        (0..set.len())
            .map(|index| name(index).to_string_lossy().into())
            .collect()
    }

    #[test]
    fn the_parts_are_disjoint_and_told_by_contents_alone() {
        let dir = folder(300);
        fs::write(dir.path().join("daisy/notes.txt"), "no photograph").expect("written");
        fs::create_dir(dir.path().join("nothing")).expect("made");
        let read = |part| Photographs::read(dir.path(), part).expect("a data set");
        let (training, test) = (read(Split::Training), read(Split::Test));
        let classes = ["daisy", "dandelion", "roses", "sunflowers", "tulips"];
        assert_eq!(training.classes, classes);
        assert_eq!(training.len() + test.len(), 300);
        assert!((25..70).contains(&test.len()), "{} of 300", test.len());
        assert!(
            names(&test)
                .iter()
                .all(|name| !names(&training).contains(name))
        );
        for index in 0..test.len() {
            let folder = test.path(index).parent().expect("its class");
            assert_eq!(
                folder.file_name().expect("a name"),
                classes[test.label(index)]
            );
        }
        // Another name and class, the same part.
        let moved = test.path(0).to_path_buf();
        fs::rename(&moved, dir.path().join("tulips/moved.jpeg")).expect("moved");
        let after = names(&read(Split::Test));
        assert!(after.contains(&"moved.jpeg".to_string()) && after.len() == test.len());
        assert_eq!(test.decode(1).expect("an image").dimensions(), (320, 240));
        training.check().expect("all are images");
    }

    #[test]
    fn what_is_no_data_set_is_refused_by_name() {
        let read = |dir: &Path| Photographs::read(dir, Split::Training);
        let missing = read(Path::new("no/such/folder")).expect_err("missing");
        assert!(missing.to_string().contains("no/such/folder"), "{missing}");
        let dir = tempfile::tempdir().expect("temporary directory");
        let error = read(dir.path()).expect_err("no classes").to_string();
        assert!(error.contains("0 folders"), "{error}");
        let dir = folder(100);
        let broken = dir.path().join("roses/broken.png");
        // Contents that fall into the training part.
        let text = (0..).map(|n| format!("no image {n}"));
        let text = text
            .into_iter()
            .find(|t| part_of(Digest::of(t.as_bytes())) == Split::Training);
        fs::write(&broken, text.expect("most do")).expect("written");
        let error = read(dir.path()).expect("a data set").check();
        let error = error.expect_err("a broken file").to_string();
        assert!(
            error.contains("1 files") && error.contains("broken.png"),
            "{error}"
        );
        fs::remove_dir_all(dir.path().join("tulips")).expect("removed");
        fs::create_dir(dir.path().join("tulips")).expect("made");
        let (_, bytes) = drawing(4);
        fs::write(dir.path().join("tulips/one.jpg"), &bytes).expect("written");
        let other = match part_of(Digest::of(&bytes)) {
            Split::Training => Split::Test,
            Split::Test => Split::Training,
        };
        let error = Photographs::read(dir.path(), other).expect_err("one image");
        assert!(error.to_string().contains("\"tulips\""), "{error}");
    }
}
