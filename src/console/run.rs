//! Runs a [`Command`] against a node, for the console and for `dlc` alike, and says
//! what came of it: as text and as JSON.
//!
//! Decides: the words and fields of every answer. Leaves to others: how bytes travel
//! (`transfer`), how tables look (`tables`), what happens in the cluster (the node).

use indicatif::HumanBytes;
use serde_json::json;

use super::client::{Client, ClientError};
use super::command::{self, Command, Keep};
use super::{Answer, Ask};
use super::{answer, bulk, dataset, fsck, jobs, progress, rebuild, tables, training, transfer};
use crate::store::download::Downloaded;
use crate::types::{FileName, MemberState};
use crate::wire::client::{MemberInfo, Receipt, Refusal, Reply, Request, Role};
use crate::wire::store::Located;

/// Runs `command` on the node of `client`; paths are meant on this side.
pub fn run(client: &mut Client, command: &Command, ask: Ask) -> Result<Answer, ClientError> {
    match command {
        Command::Join => match client.request(&Request::Join)? {
            Reply::Identity(id) => answer(format!("Joined as {id}"), json!({ "id": id })),
            _ => Err(client.unexpected()),
        },
        Command::Leave => leave(client),
        Command::ListSelf => match client.request(&Request::Identity)? {
            Reply::Identity(id) => answer(id.clone(), json!({ "id": id })),
            _ => Err(client.unexpected()),
        },
        Command::ListMembers => match client.request(&Request::Members)? {
            Reply::Members(members) => list_members(&members),
            _ => Err(client.unexpected()),
        },
        Command::Put { local, name } => put(client, local, name),
        Command::Get { name, local, stale } => get(client, name, local, *stale),
        Command::GetVersions {
            name,
            newest,
            local,
        } => get_versions(client, name, *newest, local),
        Command::Delete(name) => delete(client, name),
        Command::List(name) => match client.request(&Request::Replicas(name.clone()))? {
            Reply::Replicas(version, ids) => answer(
                tables::process_ids(&ids),
                json!({ "file": name.as_str(), "version": version.0, "replicas": ids }),
            ),
            _ => Err(client.unexpected()),
        },
        Command::Store => store(client),
        Command::KeepVersions(keep) => keep_versions(client, *keep),
        Command::Under => under(client),
        Command::Fsck => fsck::fsck(client),
        Command::Train(model) => training::train(client, model.as_deref()),
        Command::Infer {
            model,
            dataset,
            batch,
            weight,
        } => jobs::infer(client, model, dataset, *batch, *weight),
        Command::JobInfo => jobs::job_info(client),
        Command::JobStats => jobs::job_stats(client),
        Command::UploadData { dataset, count } => {
            let labels = dataset::upload(client, dataset, *count)?;
            let mut text = format!("dataset uploaded successfully\n{count} files");
            let labels = match labels {
                dataset::Labels::None => 0,
                dataset::Labels::Stored(labels) => {
                    text += &format!(", labels of {labels} of them");
                    labels
                }
                dataset::Labels::Unusable(why) => {
                    text += &format!("; labels.csv beside them is not used: {why}");
                    0
                }
            };
            let older = FileName::of_labels(dataset::pattern(dataset).1)?;
            if labels == 0 && transfer::locate(client, &older).is_ok() {
                text += &format!(
                    "\njobs over it go by the labels of an earlier upload: `delete {older}` if they \
                     are not those of these files"
                );
            }
            let dataset = dataset::pattern(dataset).1;
            answer(
                text,
                json!({ "dataset": dataset, "uploaded": count, "labels": labels }),
            )
        }
        Command::DownloadData { dataset, folder } => {
            let downloaded = bulk::download(client, dataset, folder)?;
            answer(
                format!("dataset downloaded successfully\n{downloaded} files in {folder}"),
                json!({ "dataset": dataset, "downloaded": downloaded, "folder": folder }),
            )
        }
        Command::Tail { job, rows } => jobs::tail(client, *job, *rows),
        Command::Explain(job) => jobs::explain(client, *job),
        Command::Control { job, control } => jobs::control_job(client, *job, *control),
        Command::Rebuild { confirmed: true } => rebuild::rebuild(client, &mut |_| true),
        Command::Rebuild { confirmed: false } => rebuild::rebuild(client, ask),
        Command::Why(node) => match client.request(&Request::Why(node.clone()))? {
            Reply::Events(events) if events.is_empty() => {
                answer(no_events(client, node)?, json!({ "events": events }))
            }
            Reply::Events(events) => answer(events.join("\n"), json!({ "events": events })),
            _ => Err(client.unexpected()),
        },
        Command::Stats => match client.request(&Request::Stats)? {
            Reply::Stats(stats) => {
                let rows = stats
                    .iter()
                    .map(|(name, value)| vec![name.clone(), value.to_string()]);
                answer(tables::table(&["Counter", "Value"], rows), json!(stats))
            }
            _ => Err(client.unexpected()),
        },
        Command::Help(name) => {
            let text = command::help(name.as_deref())
                .map_err(|error| ClientError::Other(error.to_string()))?;
            answer(text.clone(), json!({ "help": text }))
        }
    }
}

fn leave(client: &mut Client) -> Result<Answer, ClientError> {
    let mut bar = None;
    loop {
        match client.request(&Request::Leave)? {
            Reply::Leaving { left } => {
                let bar = bar.get_or_insert_with(|| progress::files(left, "hand over"));
                bar.set_position(bar.length().unwrap_or(left).saturating_sub(left));
            }
            Reply::Left { short } => {
                let text = match short {
                    0 => "Left the cluster".to_string(),
                    _ => format!(
                        "Left the cluster; versions that have too few copies until the others \
                         make new ones: {short}"
                    ),
                };
                return answer(text, json!({ "short": short }));
            }
            _ => return Err(client.unexpected()),
        }
    }
}

/// What to say of a member of which nothing was recorded.
fn no_events(client: &mut Client, node: &str) -> Result<String, ClientError> {
    let members = match client.request(&Request::Members) {
        Ok(Reply::Members(members)) => members,
        Ok(_) => return Err(client.unexpected()),
        Err(ClientError::Refused(Refusal::NotJoined | Refusal::Joining(_))) => Vec::new(),
        Err(error) => return Err(error),
    };
    Ok(match members.iter().any(|it| it.name.as_str() == node) {
        true => format!("nothing is known against {node}"),
        false => format!("{node} is no member, and this node remembers nothing of it"),
    })
}

fn list_members(members: &[MemberInfo]) -> Result<Answer, ClientError> {
    let words = |member: &MemberInfo| {
        let role = match member.role {
            Role::Coordinator => "coordinator",
            Role::Standby => "standby",
            Role::Member => "member",
        };
        let state = match member.state {
            MemberState::Suspect => "suspect",
            _ => "alive",
        };
        (state, role)
    };
    let shown = members.iter().map(|member| {
        let (state, role) = words(member);
        json!({
            "id": member.id, "name": member.name.as_str(), "addr": member.addr, "state": state,
            "incarnation": member.incarnation.0, "role": role,
        })
    });
    let json = json!({ "members": shown.collect::<Vec<_>>() });
    let ids: Vec<String> = members.iter().map(|member| member.id.clone()).collect();
    let mut text = tables::process_ids(&ids);
    for member in members {
        let ((state, role), name, addr) = (words(member), &member.name, &member.addr);
        let life = member.incarnation.0;
        text += &format!("\n{name} at {addr}: {state}, incarnation {life}, {role}");
    }
    answer(text, json)
}

fn put(client: &mut Client, local: &str, name: &FileName) -> Result<Answer, ClientError> {
    let receipt: Receipt = transfer::put_one(client, local, name)?;
    let text = format!(
        "File uploaded successfully\nversion {}, {} bytes, blake3 {}, on {}",
        receipt.version.0,
        receipt.bytes,
        receipt.digest,
        receipt.replicas.join(", ")
    );
    let json = json!({
        "file": receipt.file.as_str(), "version": receipt.version.0, "bytes": receipt.bytes,
        "digest": receipt.digest.to_string(), "replicas": receipt.replicas,
    });
    answer(text, json)
}

fn get(
    client: &mut Client,
    name: &FileName,
    local: &str,
    stale: bool,
) -> Result<Answer, ClientError> {
    let located = match transfer::get(client, name, 1, stale, |_| local.into())? {
        Downloaded::Versions(versions) => versions
            .into_iter()
            .next()
            .ok_or_else(|| client.unexpected())?,
        Downloaded::Job { job, inputs } => {
            return match jobs::get_rows(client, name, job, inputs, local)? {
                Some(answer) => Ok(answer),
                // It has completed meanwhile.
                None => get(client, name, local, stale),
            };
        }
    };
    let json = json!({
        "file": name.as_str(), "version": located.version.0, "bytes": located.bytes,
        "digest": located.digest.to_string(),
    });
    let stale = if stale {
        " (as this node knows it; a newer version may exist)"
    } else {
        ""
    };
    answer(format!("File downloaded successfully{stale}"), json)
}

fn get_versions(
    client: &mut Client,
    name: &FileName,
    newest: u64,
    local: &str,
) -> Result<Answer, ClientError> {
    let path = |located: &Located| tables::versioned(local, located.version);
    let versions = match transfer::get(client, name, newest, false, path)? {
        Downloaded::Versions(versions) => versions,
        Downloaded::Job { job, .. } => {
            let why = format!(
                "job {job} has no result file yet, so {name} has no version: `get` gives the rows so far"
            );
            return Err(ClientError::Other(why));
        }
    };
    let mut shown = Vec::new();
    let mut lines = vec!["File downloaded successfully".to_string()];
    for located in &versions {
        let path = path(located);
        lines.push(format!("version {}: {path}", located.version.0));
        shown.push(json!({
            "version": located.version.0, "bytes": located.bytes,
            "digest": located.digest.to_string(), "path": path,
        }));
    }
    answer(
        lines.join("\n"),
        json!({ "file": name.as_str(), "versions": shown }),
    )
}

fn delete(client: &mut Client, name: &FileName) -> Result<Answer, ClientError> {
    let request = client.request_id();
    match client.request(&Request::Delete {
        request,
        name: name.clone(),
    })? {
        Reply::Deleted(versions) => answer(
            "File deleted successfully",
            json!({ "file": name.as_str(), "versions": versions }),
        ),
        _ => Err(client.unexpected()),
    }
}

fn store(client: &mut Client) -> Result<Answer, ClientError> {
    let Reply::Holdings(holdings) = client.request(&Request::Holdings)? else {
        return Err(client.unexpected());
    };
    let rows = holdings
        .iter()
        .map(|held| vec![tables::versioned(held.file.as_str(), held.version)]);
    let files = holdings.iter().map(
        |held| json!({ "file": held.file.as_str(), "version": held.version.0, "bytes": held.bytes }),
    );
    let json = json!({ "files": files.collect::<Vec<_>>() });
    answer(tables::table(&["SDFS File Names"], rows), json)
}

fn keep_versions(client: &mut Client, keep: Option<Keep>) -> Result<Answer, ClientError> {
    let newest = match keep {
        Some(Keep::Newest(count)) => Some(count),
        Some(Keep::All) => None,
        None => match client.request(&Request::Kept)? {
            Reply::Kept(newest) => newest,
            _ => return Err(client.unexpected()),
        },
    };
    if keep.is_some() {
        let request = client.request_id();
        match client.request(&Request::Keep { request, newest })? {
            Reply::Done => {}
            _ => return Err(client.unexpected()),
        }
    }
    let text = match newest {
        Some(count) => format!("Versions kept of each file: the newest {count}"),
        None => "Versions kept of each file: all".into(),
    };
    answer(text, json!({ "keep": newest }))
}

fn under(client: &mut Client) -> Result<Answer, ClientError> {
    let Reply::Under(under) = client.request(&Request::Under)? else {
        return Err(client.unexpected());
    };
    let eta = match (under.total, under.rate) {
        (0, _) => Some(0),
        (_, 0) => None,
        (_, rate) => (under.bytes > 0).then(|| under.bytes.div_ceil(rate)),
    };
    let gone = under.files.iter().filter(|short| short.copies == 0).count();
    let gone = match gone {
        0 => String::new(),
        gone => format!("; {gone} have no copy on a live node and wait for one that has"),
    };
    let rows = under.files.iter().map(|short| {
        let name = tables::versioned(short.file.as_str(), short.version);
        vec![name, short.copies.to_string(), short.wanted.to_string()]
    });
    let titles = ["SDFS File Names", "Copies", "Wanted"];
    let left = match eta {
        _ if under.total == 0 => "Every version has all its copies".into(),
        Some(seconds) => format!("time left at this rate: {seconds} s"),
        None => "nothing is copied at present".into(),
    };
    let text = match under.total {
        0 => left,
        total => format!(
            "{}\n{total} versions, {} missing; repaired at {}/s, {left}{gone}",
            tables::table(&titles, rows),
            HumanBytes(under.bytes),
            HumanBytes(under.rate)
        ),
    };
    let files = under.files.iter().map(|short| {
        json!({
            "file": short.file.as_str(), "version": short.version.0, "copies": short.copies,
            "wanted": short.wanted,
        })
    });
    answer(
        text,
        json!({
            "files": files.collect::<Vec<_>>(), "eta_s": eta, "total": under.total,
            "bytes": under.bytes, "rate": under.rate,
        }),
    )
}

impl From<crate::types::NameError> for ClientError {
    fn from(error: crate::types::NameError) -> ClientError {
        ClientError::Other(error.to_string())
    }
}
