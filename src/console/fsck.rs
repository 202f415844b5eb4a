//! `fsck`: every copy on every node is read and checked, and what is missing is counted.
//!
//! Decides: that all nodes check at once, and that one which does not answer is named. Leaves to
//! others: the check and its consequences (`threads::copies`), the repair (`store::repair`).

use indicatif::ProgressBar;
use serde_json::json;

use super::client::{Client, ClientError};
use super::{Answer, progress};
use crate::wire::client::{Reply, Request, SURVEY_FOLDERS, Verified};

/// Checks the whole cluster.
pub fn fsck(client: &mut Client) -> Result<Answer, ClientError> {
    let Reply::Members(members) = client.request(&Request::Members)? else {
        return Err(client.unexpected());
    };
    let mut addresses = Vec::new();
    for member in &members {
        addresses.push(member.addr.parse().map_err(|_| client.unexpected())?);
    }
    let folders = u64::from(SURVEY_FOLDERS) * members.len() as u64;
    let bar = progress::steps(folders, "check");
    // Before the first one checks: what a check finds leads to repairs, which read the copies of
    // other nodes, and find some of theirs.
    let counted = at_once(addresses, |addr| {
        let mut client = Client::new(addr);
        let before = lost(&mut client)?;
        Ok((client, before))
    });
    let found = at_once(counted, |counted| {
        let (mut client, before) = counted?;
        let verified = verify(&mut client, &bar)?;
        Ok((verified, verified.lost.saturating_sub(before)))
    });
    bar.finish_and_clear();
    let Reply::Under(under) = client.request(&Request::Under)? else {
        return Err(client.unexpected());
    };
    let (mut sum, mut corrupt) = (Verified::default(), 0);
    let mut unchecked = Vec::new();
    let mut notes = String::new();
    for (member, found) in members.iter().zip(found) {
        match found {
            Ok((more, wrong)) => {
                corrupt += wrong;
                sum.copies += more.copies;
                sum.bytes += more.bytes;
                sum.orphaned += more.orphaned;
            }
            Err(error) => {
                notes += &format!("\n{} was not checked: {error}", member.name);
                unchecked.push(member.name.as_str());
            }
        }
    }
    let (bytes, total) = (indicatif::HumanBytes(sum.bytes), under.total);
    let Verified {
        copies, orphaned, ..
    } = sum;
    let text = format!(
        "{copies} copies checked, {bytes}\nunder-replicated versions: {total}\ncorrupt copies: \
         {corrupt}\norphaned copies: {orphaned}{notes}"
    );
    let json = json!({
        "under": total, "corrupt": corrupt, "orphaned": orphaned, "checked": copies,
        "bytes": sum.bytes, "unchecked": unchecked,
    });
    Ok(Answer { text, json })
}

/// What `ask` makes of each of `items`, a thread for each.
fn at_once<I: Send, T: Send>(
    items: Vec<I>,
    ask: impl Fn(I) -> Result<T, ClientError> + Sync,
) -> Vec<Result<T, ClientError>> {
    let ask = &ask;
    std::thread::scope(|scope| {
        let asked = items.into_iter().map(|item| scope.spawn(move || ask(item)));
        let asked: Vec<_> = asked.collect();
        let broken_off = |_| Err(ClientError::Other("the check of a node broke off".into()));
        let ended = asked
            .into_iter()
            .map(|asked| asked.join().unwrap_or_else(broken_off));
        ended.collect()
    })
}

/// How many copies a node has found to be wrong or gone since it started.
fn lost(client: &mut Client) -> Result<u64, ClientError> {
    match client.request(&Request::Held(0))? {
        Reply::Held(held) => Ok(held.lost),
        _ => Err(client.unexpected()),
    }
}

/// Has one node check its copies.
fn verify(client: &mut Client, bar: &ProgressBar) -> Result<Verified, ClientError> {
    let mut done = 0;
    let mut reply = client.request(&Request::Verify)?;
    loop {
        match reply {
            Reply::Verifying(folders) => {
                bar.inc(folders.saturating_sub(done));
                done = folders;
            }
            Reply::Verified(verified) => {
                bar.inc(u64::from(SURVEY_FOLDERS).saturating_sub(done));
                return Ok(verified);
            }
            _ => return Err(client.unexpected()),
        }
        reply = client.further()?;
    }
}
