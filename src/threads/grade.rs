//! How many answers of a job are right, where the labels of its data set are known.
//!
//! Decides: that a row counts where the labels name its file, and that an error is a wrong
//! answer. Leaves to others: which file has the labels (`node`).

use std::collections::HashMap;

use crate::wire::schedule::Accuracy;

/// Compares a result file with a file of labels, both CSV with a header; of the labels the
/// columns `file` and `label` count, wherever they are.
///
/// *Errors*: what is wrong with one of them.
pub(super) fn grade(result: &[u8], labels: &[u8]) -> Result<Accuracy, String> {
    let answers = pairs(result).map_err(|why| format!("the result file: {why}"))?;
    let labels = pairs(labels).map_err(|why| format!("the labels: {why}"))?;
    let labels: HashMap<String, String> = labels.into_iter().collect();
    let known = |(file, answer): &(String, String)| Some(labels.get(file)? == answer);
    let judged: Vec<bool> = answers.iter().filter_map(known).collect();
    Ok(Accuracy {
        right: judged.iter().filter(|right| **right).count() as u64,
        labelled: judged.len() as u64,
    })
}

/// File and label of each row.
fn pairs(text: &[u8]) -> Result<Vec<(String, String)>, String> {
    let mut reader = csv::Reader::from_reader(text);
    let header = reader.headers().map_err(|error| error.to_string())?.clone();
    let column = |name: &str| {
        let place = header.iter().position(|title| title.trim() == name);
        place.ok_or_else(|| format!("no column {name:?} in its header"))
    };
    let (file, label) = (column("file")?, column("label")?);
    let row = |record: csv::Result<csv::StringRecord>| {
        let record = record.map_err(|error| error.to_string())?;
        let cell = |place: usize| record.get(place).unwrap_or_default().to_string();
        Ok((cell(file), cell(label)))
    };
    reader.records().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_compared_with_the_labels_of_their_files() {
        let result =
            b"file,label,confidence,error\na1,x,0.5,\n\"a,2\",y,0.5,\na3,,,broken\na4,x,1,\n";
        let labels = b"number,label,file\n1,x,a1\n2,z,\"a,2\"\n3,x,a3\n9,x,elsewhere\n";
        let found = grade(result, labels).expect("both are valid");
        assert_eq!((found.right, found.labelled), (1, 3));
        let error = grade(result, b"name,label\n").expect_err("no files");
        assert!(error.contains("\"file\""), "{error}");
        let error = grade(result, b"file,label\na\n").expect_err("a cell is missing");
        assert!(error.contains("labels"), "{error}");
    }
}
