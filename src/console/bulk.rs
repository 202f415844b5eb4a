//! `download_data`: all files of a data set into a folder.
//!
//! Decides: which local names they get, and that files of one holder come in one exchange; who has
//! several gives a part of them. Leaves to others: what does not come so (`transfer` reads each
//! of those from one holder after another), and which files there are (the coordinator).

use std::collections::BTreeSet;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crossbeam_channel::{Sender, bounded};
use indicatif::ProgressBar;

use super::client::{Client, ClientError};
use super::place::Place;
use super::{progress, transfer};
use crate::types::FileName;
use crate::wire::client::{Reply, Request};
use crate::wire::pull::{BLOBS_IN_REQUEST, PullError, Source, Want, by_source};
use crate::wire::store::Located;

/// Ends of files that may wait for the loop; a reader that finds them full waits.
const ENDS: usize = 1024;

/// A file is there, or why its holder did not give it.
type End = (usize, Result<(), ClientError>);

/// Downloads the newest version of each file of `dataset` to `folder`, which is made where it is
/// missing; gives how many there are. Each appears whole and checked, or not at all.
pub fn download(client: &mut Client, dataset: &str, folder: &str) -> Result<u64, ClientError> {
    let folder = Path::new(folder);
    let bar = progress::files(0, "download");
    let mut after = None;
    let mut done = 0;
    loop {
        let files = locate(client, dataset, after.as_ref()).inspect_err(|_| bar.abandon())?;
        let Some(last) = files.last() else {
            bar.finish_and_clear();
            return Ok(done);
        };
        after = Some(last.name.clone());
        bar.inc_length(files.len() as u64);
        done += files.len() as u64;
        page(client, dataset, folder, &files, &bar).map_err(|error| {
            bar.abandon();
            let (there, folder) = (bar.position(), folder.display());
            ClientError::Other(format!("{error} ({there} files are in {folder})"))
        })?;
    }
}

fn locate(
    client: &mut Client,
    dataset: &str,
    after: Option<&FileName>,
) -> Result<Vec<Located>, ClientError> {
    let request = Request::LocateData {
        dataset: dataset.into(),
        after: after.cloned(),
    };
    match client.request(&request)? {
        Reply::Located(files) => Ok(files),
        _ => Err(client.unexpected()),
    }
}

/// Downloads `files`: from all their holders at once, and then one by one what did not come so.
fn page(
    client: &mut Client,
    dataset: &str,
    folder: &Path,
    files: &[Located],
    bar: &ProgressBar,
) -> Result<(), ClientError> {
    let local = |located: &Located| local_path(dataset, folder, &located.name);
    let paths: Vec<PathBuf> = files.iter().map(local).collect::<Result<_, _>>()?;
    if !folder.is_dir() {
        std::fs::create_dir(folder).map_err(|error| ClientError::Local {
            path: folder.display().to_string(),
            why: format!("cannot make the folder: {error}"),
        })?;
    }
    let wants: Vec<Want> = files.iter().map(Want::from).collect();
    let mut left: BTreeSet<usize> = (0..files.len()).collect();
    let (sender, ends) = bounded::<End>(ENDS);
    std::thread::scope(|scope| {
        for (addr, group) in by_source(&wants, 0..files.len(), 0, None) {
            let (sender, wants, paths) = (sender.clone(), &wants, &paths);
            scope.spawn(move || {
                if let Err(error) = read(addr, &group, wants, paths, &sender) {
                    log::info!("reading files from {addr}: {error}");
                }
            });
        }
        drop(sender);
        let mut result = Ok(());
        for (number, end) in ends {
            bar.inc(u64::from(end.is_ok()));
            match end {
                Ok(()) => drop(left.remove(&number)),
                Err(error) => result = Err(error),
            }
        }
        result
    })?;
    for number in left {
        let path = paths[number].display().to_string();
        transfer::get(client, &files[number].name, 1, false, |_| path.clone())?;
        bar.inc(1);
    }
    Ok(())
}

/// Where a file of the data set goes: the data set's own folder is left out.
fn local_path(dataset: &str, folder: &Path, name: &FileName) -> Result<PathBuf, ClientError> {
    let own = &dataset[..dataset.rfind('/').map_or(0, |slash| slash + 1)];
    let short = name.as_str().strip_prefix(own).unwrap_or(name.as_str());
    if short.contains('/') || matches!(short, "" | "." | "..") {
        return Err(ClientError::Other(format!(
            "{name:?} is no file name for {}: name a data set without such files, or get them one \
             by one with `get`",
            folder.display()
        )));
    }
    Ok(folder.join(short))
}

/// Reads the files of `group` from the node at `addr`; what it does not give is left out.
fn read(
    addr: SocketAddr,
    group: &[usize],
    wants: &[Want],
    paths: &[PathBuf],
    ends: &Sender<End>,
) -> Result<(), PullError> {
    let mut source = Source::open(addr)?;
    for part in group.chunks(BLOBS_IN_REQUEST) {
        let blobs: Vec<_> = part.iter().map(|number| wants[*number].blob).collect();
        source.request(&blobs)?;
        for number in part {
            let place = Place::new(&paths[*number].display().to_string());
            let opened = place.and_then(|place| place.create().map(|file| (place, file)));
            // A local error ends the whole command, so nothing more is read.
            let (place, mut file) = match opened {
                Ok(opened) => opened,
                Err(error) => {
                    tell(ends, *number, Err(error));
                    return Ok(());
                }
            };
            let mut full = None;
            let received = source.receive(&wants[*number], |chunk| {
                let written = file.write_all(chunk);
                written.map_err(|error| full.insert(error).to_string())
            });
            match received {
                Ok(()) => tell(ends, *number, place.keep(file)),
                Err(error) if error.goes_on() => {}
                Err(error) => {
                    if let Some(error) = full {
                        tell(ends, *number, Err(place.error(error)));
                    }
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

fn tell(ends: &Sender<End>, number: usize, end: Result<(), ClientError>) {
    // Whoever listens outlives the readers.
    let _ = ends.send((number, end));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_go_into_the_folder_and_nowhere_else() {
        let path = |dataset: &str, name: &str| {
            local_path(dataset, Path::new("out"), &FileName::new(name).unwrap())
        };
        for (dataset, name, there) in [
            ("lenet.png", "lenet3.png", "out/lenet3.png"),
            ("a/b/lenet.png", "a/b/lenet3.png", "out/lenet3.png"),
            ("/lenet.png", "/lenet3.png", "out/lenet3.png"),
            ("", "x", "out/x"),
        ] {
            assert_eq!(path(dataset, name).unwrap(), Path::new(there));
        }
        for (dataset, name) in [
            ("lenet.png", "lenet/../../x.png"),
            ("lenet.png", "lenet/3.png"),
            ("", ".."),
            ("", "/x"),
            ("a/", "a/"),
        ] {
            let error = path(dataset, name).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
