//! `upload_data`: which local files a data set pattern means, and how they become SDFS files.
//!
//! Data set `DIR/lenet.png` means every file `DIR/lenet*.png`, in natural order. They are
//! stored as `lenet0.png`, `lenet1.png`, …, going round again where more are asked for
//! than there are. With a `labels.csv` beside them (columns `file` and `label`) go their labels,
//! under their new names, as the file that jobs over the data set are compared with.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::client::{Client, ClientError};
use super::progress;
use super::transfer::{self, Content};
use crate::store::names::{Pattern, compare_natural};
use crate::types::FileName;
use crate::wire::client::PUT_FILES_MAX;

/// Most bytes in one exchange: bounds what a failed target costs.
const EXCHANGE_BYTES: u64 = 64 << 20;

/// Folder and pattern of `[DIR/]DATASET`.
pub fn pattern(dataset: &str) -> (&str, &str) {
    match dataset.rsplit_once('/') {
        Some(("", pattern)) => ("/", pattern),
        Some((folder, pattern)) => (folder, pattern),
        None => (".", dataset),
    }
}

/// The files of `folder` that `pattern` means, in natural order.
fn matches(folder: &Path, pattern: &str) -> Result<Vec<PathBuf>, ClientError> {
    let local = |why: String| ClientError::Local {
        path: folder.display().to_string(),
        why,
    };
    let entries = std::fs::read_dir(folder).map_err(|error| {
        local(format!(
            "cannot list the folder: {error}; give DIR/{pattern} with an existing folder"
        ))
    })?;
    let wanted = Pattern::new(pattern);
    let mut found: Vec<String> = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| local(error.to_string()))?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        // Follows links; a folder or a pipe is no input.
        if wanted.matches(&name) && entry.path().is_file() {
            found.push(name);
        }
    }
    found.sort_by(|a, b| compare_natural(a, b));
    if found.is_empty() {
        let (stem, extension) = (wanted.stem(), wanted.extension());
        return Err(local(format!(
            "no file {stem}*{extension} is there: check the folder and the data set's name"
        )));
    }
    Ok(found.into_iter().map(|name| folder.join(name)).collect())
}

/// Stores `count` files of the data set, and their labels where the folder has a `labels.csv`.
pub fn upload(client: &mut Client, dataset: &str, count: u64) -> Result<Labels, ClientError> {
    let (folder, pattern) = pattern(dataset);
    let files = matches(Path::new(folder), pattern)?;
    let wanted = Pattern::new(pattern);
    let (stem, extension) = (wanted.stem(), wanted.extension());
    let bar = progress::files(count, "upload");
    let mut batch: Vec<(FileName, Content)> = Vec::new();
    let mut bytes = 0;
    for number in 0..count {
        let path = &files[(number % files.len() as u64) as usize];
        let content = Content::file(path)?;
        bytes += content.bytes();
        batch.push((
            FileName::new(&format!("{stem}{number}{extension}"))?,
            content,
        ));
        if batch.len() == PUT_FILES_MAX || bytes >= EXCHANGE_BYTES || number + 1 == count {
            let stored = batch.len() as u64;
            transfer::put(client, std::mem::take(&mut batch), None)
                .inspect_err(|_| bar.abandon())?;
            bar.inc(stored);
            bytes = 0;
        }
    }
    bar.finish_and_clear();
    let labels = match labels(Path::new(folder), pattern, &files, count) {
        Ok(None) => Labels::None,
        Ok(Some((labels, count))) if count > 0 => {
            let name = FileName::of_labels(pattern)?;
            transfer::put(client, vec![(name, Content::Bytes(labels.into()))], None)?;
            Labels::Stored(count)
        }
        Ok(Some(_)) => Labels::Unusable("it names none of these files".into()),
        Err(why) => Labels::Unusable(why),
    };
    Ok(labels)
}

/// What became of the `labels.csv` beside the uploaded files.
pub enum Labels {
    /// There is none.
    None,
    /// It has the labels of so many of them.
    Stored(u64),
    /// Why it is not used.
    Unusable(String),
}

/// The labels of the uploaded files under their new names, and how many they are, where the
/// folder has a `labels.csv` with the columns `file` and `label`.
fn labels(
    folder: &Path,
    pattern: &str,
    files: &[PathBuf],
    count: u64,
) -> Result<Option<(Vec<u8>, u64)>, String> {
    let mut reader = match csv::Reader::from_path(folder.join("labels.csv")) {
        Err(error) if is_missing(&error) => return Ok(None),
        other => other.map_err(text)?,
    };
    let mut labels: HashMap<String, String> = HashMap::new();
    for row in reader.deserialize() {
        let LabelRow { file, label } = row.map_err(text)?;
        if let Some(other) = labels.get(&file).filter(|other| **other != label) {
            return Err(format!("{file:?} is {other:?} there, and {label:?} too"));
        }
        labels.insert(file, label);
    }
    let wanted = Pattern::new(pattern);
    let (mut writer, mut labelled) = (csv::Writer::from_writer(Vec::new()), 0);
    for number in 0..count {
        let path = &files[(number % files.len() as u64) as usize];
        let known = path.file_name().and_then(|name| labels.get(name.to_str()?));
        if let Some(label) = known.cloned() {
            let file = format!("{}{number}{}", wanted.stem(), wanted.extension());
            writer.serialize(LabelRow { file, label }).map_err(text)?;
            labelled += 1;
        }
    }
    let table = writer.into_inner().map_err(|error| error.to_string())?;
    Ok(Some((table, labelled)))
}

fn text(error: csv::Error) -> String {
    error.to_string()
}

fn is_missing(error: &csv::Error) -> bool {
    match error.kind() {
        csv::ErrorKind::Io(error) => error.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}

/// A row of `labels.csv`.
#[derive(Serialize, Deserialize)]
struct LabelRow {
    file: String,
    label: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_set_matches_in_natural_order_and_only_files() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "lenet10.png",
            "lenet2.png",
            "lenet.png",
            "lenet1.jpg",
            "other1.png",
        ] {
            std::fs::write(folder.path().join(name), "x").unwrap();
        }
        std::fs::create_dir(folder.path().join("lenet3.png")).unwrap();
        let found = matches(folder.path(), "lenet.png").unwrap();
        let names: Vec<_> = found
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap())
            .collect();
        assert_eq!(names, ["lenet.png", "lenet2.png", "lenet10.png"]);
        assert!(
            matches(folder.path(), "rose.png")
                .unwrap_err()
                .to_string()
                .contains("rose*.png")
        );
        assert!(
            matches(&folder.path().join("none"), "a.png")
                .unwrap_err()
                .to_string()
                .contains("cannot list")
        );
    }

    #[test]
    fn labels_follow_their_files_and_none_has_two() {
        let folder = tempfile::tempdir().unwrap();
        let files = ["a0.png", "a1.png"].map(|name| folder.path().join(name));
        let table = |text: &str| {
            std::fs::write(folder.path().join("labels.csv"), text).unwrap();
            labels(folder.path(), "a.png", &files, 3)
        };
        let (text, count) = table("file,label\na1.png,one\na1.png,one\nb.png,two\n")
            .unwrap()
            .unwrap();
        assert_eq!((text, count), (b"file,label\na1.png,one\n".to_vec(), 1));
        let (text, count) = table("file,label\na1.png,one\na0.png,zero\n")
            .unwrap()
            .unwrap();
        let expected = "file,label\na0.png,zero\na1.png,one\na2.png,zero\n";
        assert_eq!((text, count), (expected.as_bytes().to_vec(), 3));
        assert_eq!(table("file,label\n").unwrap().unwrap().1, 0);
        let refused = table("file,label\na1.png,one\na1.png,two\n").unwrap_err();
        assert_eq!(refused, r#""a1.png" is "one" there, and "two" too"#);
        assert!(
            table("file,class\na1.png,one\n")
                .unwrap_err()
                .contains("label")
        );
    }

    #[test]
    fn the_folder_is_split_off() {
        assert_eq!(pattern("a/b/lenet.png"), ("a/b", "lenet.png"));
        assert_eq!(pattern("/lenet.png"), ("/", "lenet.png"));
        assert_eq!(pattern("lenet.png"), (".", "lenet.png"));
    }
}
