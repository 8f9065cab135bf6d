//! One file from the hub to the disk: continues what an earlier attempt left, checks size and SHA-256, and only then
//! gives the file its name. Called by `pull`; what it leaves behind when it fails is a partial file to continue, or
//! nothing where the content was wrong.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::Path;

use indicatif::ProgressBar;
use sha2::{Digest, Sha256};

use super::PullError;
use super::hub::{Checksum, Hub, Remote};

/// Attempts in a row that bring no byte.
const ATTEMPTS: u32 = 5;

/// Bytes moved at once.
const CHUNK: usize = 64 << 10;

/// Makes `target` the file `remote`: nothing is done where it is already. `partial` is where the bytes gather.
pub(super) fn download(
    hub: &Hub,
    remote: &Remote,
    partial: &Path,
    target: &Path,
    bar: &ProgressBar,
) -> Result<(), PullError> {
    if target.is_file() && is_right(target, remote)? {
        bar.set_position(remote.size);
        return Ok(());
    }
    let mut file = OpenOptions::new().create(true).append(true).open(partial).map_err(PullError::disk(partial))?;
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => PullError::Busy(target.to_owned()),
        TryLockError::Error(source) => PullError::disk(partial)(source),
    })?;
    gather(hub, remote, partial, &mut file, bar)?;
    file.sync_all().map_err(PullError::disk(partial))?;
    if !is_right(partial, remote)? {
        std::fs::remove_file(partial).map_err(PullError::disk(partial))?;
        return Err(PullError::WrongContent(target.to_owned()));
    }
    std::fs::rename(partial, target).map_err(PullError::disk(target))
}

/// Fills `file` up to the remote's size. An attempt that brought bytes makes the next one the first again.
fn gather(hub: &Hub, remote: &Remote, partial: &Path, file: &mut File, bar: &ProgressBar) -> Result<(), PullError> {
    let length = |file: &File| file.metadata().map(|metadata| metadata.len()).map_err(PullError::disk(partial));
    let mut fruitless = 0;
    loop {
        let have = length(file)?;
        bar.set_position(have);
        if have >= remote.size {
            return Ok(());
        }
        let Err(error) = transfer(hub, remote, have, partial, file, bar) else { continue };
        fruitless = if length(file)? > have { 0 } else { fruitless + 1 };
        if !error.may_pass() || fruitless >= ATTEMPTS {
            return Err(error);
        }
        bar.suspend(|| eprintln!("interrupted ({error}); continuing"));
        std::thread::sleep(hub.pause * 2_u32.pow(fruitless));
    }
}

/// One request: appends what comes until the file is whole. A body that ends early is an error.
fn transfer(
    hub: &Hub,
    remote: &Remote,
    have: u64,
    partial: &Path,
    file: &mut File,
    bar: &ProgressBar,
) -> Result<(), PullError> {
    let opened = hub.open(remote, have)?;
    if opened.start == 0 && have > 0 {
        file.set_len(0).map_err(PullError::disk(partial))?;
        bar.set_position(0);
    }
    let missing = remote.size - opened.start;
    let mut body = opened.body.take(missing);
    let mut chunk = vec![0; CHUNK];
    let mut moved = 0;
    loop {
        match body.read(&mut chunk).map_err(PullError::Interrupted)? {
            0 if moved < missing => return Err(PullError::Interrupted(std::io::ErrorKind::UnexpectedEof.into())),
            0 => return Ok(()),
            read => {
                file.write_all(&chunk[..read]).map_err(PullError::disk(partial))?;
                moved += read as u64;
                bar.inc(read as u64);
            }
        }
    }
}

/// Whether the file at `path` has the size and, where it is known, the SHA-256 of `remote`.
fn is_right(path: &Path, remote: &Remote) -> Result<bool, PullError> {
    let mut file = File::open(path).map_err(PullError::disk(path))?;
    if file.metadata().map_err(PullError::disk(path))?.len() != remote.size {
        return Ok(false);
    }
    if remote.checksum == Checksum::SizeOnly {
        return Ok(true);
    }
    let mut hasher = Sha256::new();
    std::io::copy(&mut file, &mut hasher).map_err(PullError::disk(path))?;
    let digest: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(digest == remote.etag)
}
