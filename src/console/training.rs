//! `train`: moves the model files of a node's model directory into SDFS, publishes
//! them, and waits until every live node has them loaded.
//!
//! Decides: that what was published before takes its place again where a node cannot load the
//! new network. Leaves to others: what nodes load, and when they try again (`node`).

use std::time::Duration;

use serde_json::json;

use super::Answer;
use super::client::{Client, ClientError};
use super::transfer::{self, Content};
use crate::types::{BlobId, Digest, FileName};
use crate::wire::client::{LocalModel, ModelState, Refusal, Reply, Request};
use crate::wire::schedule::Model;

/// Time between two looks at how far the nodes are.
const POLL: Duration = Duration::from_millis(100);

/// Publishes `only` (or an alias of it), or all models; names those that it skips.
pub fn train(client: &mut Client, only: Option<&str>) -> Result<Answer, ClientError> {
    let Reply::LocalModels(models) = client.request(&Request::LocalModels)? else {
        return Err(client.unexpected());
    };
    let only = only.map(crate::models::manifest::canonical);
    let wanted: Vec<LocalModel> = models
        .iter()
        .filter(|model| only.is_none_or(|name| name == model.name))
        .cloned()
        .collect();
    if wanted.is_empty() {
        let known: Vec<&str> = models.iter().map(|model| model.name.as_str()).collect();
        let what = only.map_or("any model".into(), |name| format!("model {name:?}"));
        return Err(ClientError::Other(format!(
            "the node's model directory does not hold {what} (it holds: {}): put NAME.toml and its weights there, or start the node with --models DIR",
            known.join(", ")
        )));
    }
    let mut before = Vec::new();
    for model in &wanted {
        match states(client, std::slice::from_ref(&model.name)) {
            Ok(states) => before.extend(states),
            Err(ClientError::Refused(Refusal::UnknownModel { .. })) => {}
            Err(error) => return Err(error),
        }
    }
    let (mut published, mut weights_digests) = (Vec::new(), Vec::new());
    let mut skipped = Vec::new();
    for model in wanted {
        match model.files {
            Ok((weights, manifest_bytes, weights_bytes)) => {
                let sizes = [manifest_bytes, weights_bytes];
                let (model, digest) = publish(client, &model.name, &weights, sizes)?;
                published.push(model);
                weights_digests.push(digest);
            }
            Err(reason) => {
                let serves = before.iter().any(|old| old.model.name == model.name);
                let rest = if serves {
                    "; what was published before serves on"
                } else {
                    ""
                };
                skipped.push((model.name, reason + rest));
            }
        }
    }
    if published.is_empty() {
        let reasons: Vec<String> = skipped
            .iter()
            .map(|(name, why)| format!("{name}: {why}"))
            .collect();
        return Err(ClientError::Other(format!(
            "no model could be published: {}",
            reasons.join("; ")
        )));
    }
    let versions = wait_until_loaded(client, &published, &before)?;
    let mut text = String::from("Models are ready for inference");
    for (name, why) in &skipped {
        text.push_str(&format!("\nskipped {name}: {why}"));
    }
    let models: Vec<_> = published
        .iter()
        .zip(versions)
        .zip(weights_digests)
        .map(|((model, version), digest)| json!({ "name": model.name, "version": version, "digest": digest.to_string() }))
        .collect();
    let names: Vec<&String> = skipped.iter().map(|(name, _)| name).collect();
    Ok(Answer {
        text,
        json: json!({ "models": models, "skipped": names }),
    })
}

/// Stores manifest and weights in SDFS where the newest versions differ, and publishes
/// them. The model, and the digest of its weights.
fn publish(
    client: &mut Client,
    name: &str,
    weights: &str,
    sizes: [u64; 2],
) -> Result<(Model, Digest), ClientError> {
    let (manifest, manifest_digest) = store(
        client,
        name,
        false,
        &format!("models/{name}.toml"),
        sizes[0],
    )?;
    let weights = format!("models/{weights}");
    let (weights, weights_digest) = store(client, name, true, &weights, sizes[1])?;
    let model = Model {
        name: name.into(),
        manifest,
        weights,
        digest: Model::digest_of(manifest_digest, weights_digest),
    };
    propose(client, &model)?;
    Ok((model, weights_digest))
}

fn propose(client: &mut Client, model: &Model) -> Result<(), ClientError> {
    let (request, model) = (client.request_id(), model.clone());
    match client.request(&Request::Publish { request, model })? {
        Reply::Done => Ok(()),
        _ => Err(client.unexpected()),
    }
}

fn store(
    client: &mut Client,
    model: &str,
    weights: bool,
    name: &str,
    bytes: u64,
) -> Result<((FileName, BlobId), Digest), ClientError> {
    let name = FileName::new(name)?;
    let mut content = Vec::with_capacity(bytes as usize);
    loop {
        let offset = content.len() as u64;
        match client.request(&Request::ReadLocalModel {
            name: model.into(),
            weights,
            offset,
        })? {
            Reply::Bytes(part) if part.is_empty() => break,
            Reply::Bytes(part) => content.extend_from_slice(&part),
            _ => return Err(client.unexpected()),
        }
    }
    let digest = Digest::of(&content);
    if let Ok(newest) = transfer::locate(client, &name)
        && newest.digest == digest
    {
        return Ok(((name, newest.blob), digest));
    }
    let receipts = transfer::put(
        client,
        vec![(name.clone(), Content::Bytes(content.into()))],
        None,
    )?;
    Ok(((name, receipts[0].blob), digest))
}

/// How far these published models are.
fn states(client: &mut Client, names: &[String]) -> Result<Vec<ModelState>, ClientError> {
    match client.request(&Request::ModelStatus(names.to_vec()))? {
        Reply::Models(states) => Ok(states),
        _ => Err(client.unexpected()),
    }
}

/// The versions of `models`, once every node has them. Where one cannot load one of them, what
/// served in its place `before` is published again.
fn wait_until_loaded(
    client: &mut Client,
    models: &[Model],
    before: &[ModelState],
) -> Result<Vec<u64>, ClientError> {
    let names: Vec<String> = models.iter().map(|model| model.name.clone()).collect();
    loop {
        let states = states(client, &names)?;
        if let Some((state, (node, why))) =
            states.iter().find_map(|s| s.failed.first().map(|f| (s, f)))
        {
            let name = &state.model.name;
            let failure = format!("model {name:?} could not be loaded on {node}: {why}");
            // Right after such a return nobody may have loaded it again yet.
            let served = |old: &&ModelState| {
                old.model.name == *name
                    && old.model.digest != state.model.digest
                    && (!old.ready.is_empty() || old.failed.is_empty())
            };
            let Some(old) = before.iter().find(served) else {
                return Err(ClientError::Other(failure));
            };
            propose(client, &old.model).map_err(|error| {
                let why =
                    format!("{failure}; what was published before could not be again: {error}");
                ClientError::Other(why)
            })?;
            return Err(ClientError::Other(format!(
                "{failure}; what was published before serves on"
            )));
        }
        if states.len() == names.len() && states.iter().all(|state| state.waiting.is_empty()) {
            return Ok(states.iter().map(|state| state.version).collect());
        }
        std::thread::sleep(POLL);
    }
}
