//! `rebuild`: a cluster that has lost most of its voters for good goes on with what is left.
//!
//! Decides: which node's log is the one to go on with, and which bytes on the nodes' disks are in
//! no catalog any more. Leaves to others: how the others come to follow that node (`consensus`),
//! and that nothing is removed meanwhile (`node`).

use std::collections::BTreeMap;

use serde_json::json;

use super::client::{Client, ClientError};
use super::{Answer, Ask};
use crate::types::{BlobId, Server};
use crate::wire::client::{
    LogState, MemberInfo, PUT_FILES_MAX, Refusal, Reply, Request, Role, SURVEY_FOLDERS,
};
use crate::wire::store::Upload;

/// A live node and its log.
struct Survivor {
    member: MemberInfo,
    client: Client,
    log: LogState,
}

/// Makes a catalog from what the live nodes have, once the person says yes.
pub fn rebuild(client: &mut Client, ask: Ask) -> Result<Answer, ClientError> {
    let mut survivors = survivors(client)?;
    let mut chosen = choose(&survivors)?;
    let newest = survivors[chosen].log.newest;
    let lost = lost_files(&mut survivors, newest)?;
    if survivors[chosen].log.has_quorum && lost.is_empty() {
        return Err(Refusal::HasQuorum.into());
    }
    if !ask(&plan(&survivors, chosen, lost.len())) {
        return Err(ClientError::Other("nothing was changed".into()));
    }
    // Logs do not grow without a coordinator, but one may have come back while we asked.
    survivors = self::survivors(client)?;
    chosen = choose(&survivors)?;
    let target = &mut survivors[chosen].client;
    match target.request(&Request::FoundAnew)? {
        Reply::Done => {}
        _ => return Err(target.unexpected()),
    }
    for files in lost.chunks(PUT_FILES_MAX) {
        let (request, files) = (target.request_id(), files.to_vec());
        match target.request(&Request::Adopt { request, files })? {
            Reply::Done => {}
            _ => return Err(target.unexpected()),
        }
    }
    let files = log_of(target)?.files;
    Ok(Answer {
        text: format!("Catalog rebuilt: {files} files"),
        json: json!({ "files": files }),
    })
}

fn log_of(client: &mut Client) -> Result<LogState, ClientError> {
    match client.request(&Request::LogState)? {
        Reply::LogState(log) => Ok(log),
        _ => Err(client.unexpected()),
    }
}

/// All live members and their logs.
fn survivors(client: &mut Client) -> Result<Vec<Survivor>, ClientError> {
    let Reply::Members(members) = client.request(&Request::Members)? else {
        return Err(client.unexpected());
    };
    let mut survivors = Vec::new();
    for member in members {
        let addr = member.addr.parse().map_err(|_| client.unexpected())?;
        let mut client = Client::new(addr);
        let log = log_of(&mut client).map_err(|error| {
            let name = &member.name;
            let why = format!("all live nodes must take part, and {name} does not: {error}");
            ClientError::Other(why)
        })?;
        survivors.push(Survivor {
            member,
            client,
            log,
        });
    }
    Ok(survivors)
}

/// Whose log the cluster is to go on with: the one that has most.
///
/// *Errors*: a coordinator is there, or will be, and its catalog is not empty.
fn choose(survivors: &[Survivor]) -> Result<usize, ClientError> {
    if survivors.iter().any(|survivor| survivor.log.has_quorum) {
        let leads = |it: &Survivor| it.member.role == Role::Coordinator && it.log.files == 0;
        let leader = survivors.iter().position(leads);
        return leader.ok_or(Refusal::HasQuorum.into());
    }
    let most = survivors.iter().enumerate();
    let most = most.max_by_key(|(_, it)| (it.log.last_term, it.log.last_index));
    let none = || ClientError::Other("this node knows no member, not even itself".into());
    most.map(|(place, _)| place).ok_or_else(none)
}

/// What lies on the disks and was uploaded after `newest`, the last that the catalog names, in
/// the order of the uploads.
fn lost_files(
    survivors: &mut [Survivor],
    newest: Option<BlobId>,
) -> Result<Vec<Upload>, ClientError> {
    let mut lost: BTreeMap<BlobId, Upload> = BTreeMap::new();
    for Survivor { client, .. } in survivors {
        for folder in 0..SURVEY_FOLDERS {
            let Reply::Survey(server, found) = client.request(&Request::Survey(folder as u8))?
            else {
                return Err(client.unexpected());
            };
            for found in found.into_iter().filter(|it| Some(it.blob) > newest) {
                let upload = lost.entry(found.blob).or_insert_with(|| Upload {
                    name: found.name.clone(),
                    blob: found.blob,
                    bytes: found.bytes,
                    digest: found.digest,
                    replicas: Vec::<Server>::new(),
                });
                // An id names the same bytes everywhere, unless a disk lies.
                if upload.digest == found.digest {
                    upload.replicas.push(server.clone());
                }
            }
        }
    }
    Ok(lost.into_values().collect())
}

fn plan(survivors: &[Survivor], chosen: usize, lost: usize) -> String {
    let Survivor { member, log, .. } = &survivors[chosen];
    let names: Vec<&str> = log.missing.iter().map(|name| name.as_str()).collect();
    let (name, count, files) = (&member.name, survivors.len(), log.files);
    let gone = match names.is_empty() {
        true => String::new(),
        false => format!(
            "\nVoters that are gone: {}. If enough of them can be started again, say no and do \
             that: what only they know will be lost, and they will have to follow this log.",
            names.join(", ")
        ),
    };
    format!(
        "Live nodes: {count}. The one with the most of the log is {name}; files in its catalog: \
         {files}.{gone}\nThis makes {name} the coordinator, names up to {lost} further uploads \
         that lie on the nodes' disks as the newest versions of their files, and goes on. Files \
         without a copy on a live node stay lost. Go on?"
    )
}
