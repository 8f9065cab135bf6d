//! `shoal pull`: a model from the Hugging Face hub to the disk, in the cache that the Hugging Face tools share or in a
//! directory of its own. Called by `main`; needs no cluster and touches no configuration.
//!
//! 1. `names`: what names of the hub may be, and which files a model needs.
//! 2. `hub`: what the hub says.
//! 3. `download`: one file, continued, checked, then named.

mod download;
mod hub;
mod names;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::ApiError;
use indicatif::{ProgressBar, ProgressStyle};

pub(crate) use hub::Hub;
use hub::{Listing, Remote};
use names::{Chosen, FileName};
pub(crate) use names::{RepoId, Revision};

/// Why a model could not be pulled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PullError {
    #[error("{0:?} is no repository of the hub; write it as org/name")]
    BadRepo(String),
    #[error("{0:?} is no branch, tag or commit")]
    BadRevision(String),
    #[error("refused: the hub lists a file named \"{0}\", which is not safe to write")]
    UnsafeName(String),
    #[error("the hub has no {repo} for you: check the name and the revision; a private or gated model needs a token")]
    NotFound { repo: String },
    #[error("the repository has no file {wanted:?}{}", list(models))]
    NoSuchFile { wanted: String, models: Vec<String> },
    #[error("the repository has several GGUF files; choose one with --file{}", list(.0))]
    Ambiguous(Vec<String>),
    #[error("the repository holds no model that Shoal can read: there is no {0}")]
    NotAModel(&'static str),
    #[error("the hub could not be asked")]
    Hub(#[from] ApiError),
    #[error("the hub's answer was refused: {0}")]
    BadAnswer(&'static str),
    #[error("the hub did not send the file")]
    Transfer(#[source] Box<ureq::Error>),
    #[error("the connection broke")]
    Interrupted(#[source] io::Error),
    #[error("refused: what came is not what the hub announced for {}; it was deleted", .0.display())]
    WrongContent(PathBuf),
    #[error("another process is downloading {}", .0.display())]
    Busy(PathBuf),
    #[error("cannot write {}", path.display())]
    Disk { path: PathBuf, source: io::Error },
}

impl PullError {
    fn disk(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Disk { path: path.to_owned(), source }
    }

    /// Whether the same request may succeed a moment later.
    fn may_pass(&self) -> bool {
        match self {
            Self::Interrupted(_) => true,
            Self::Transfer(error) => !matches!(**error, ureq::Error::StatusCode(400..=428 | 430..=499)),
            _ => false,
        }
    }
}

fn list(files: &[String]) -> String {
    files.iter().map(|file| format!("\n  {file}")).collect()
}

/// What to pull, and where to.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) repo: RepoId,
    pub(crate) revision: Revision,
    /// The one file wanted; absent: what a model needs.
    pub(crate) file: Option<String>,
    /// Absent: the shared cache.
    pub(crate) dir: Option<PathBuf>,
}

/// Pulls a model and gives the path to serve it from: a GGUF file or a directory. Blocks; progress goes to stderr.
///
/// # Errors
/// What came of an interrupted download stays for the next attempt; wrong content is deleted.
pub(crate) fn pull(hub: &Hub, order: &Order) -> Result<PathBuf, PullError> {
    let listing = hub.list(&order.repo, &order.revision)?;
    let chosen = names::choose(&listing.files, order.file.as_deref())?;
    let store = Store { hub, order, listing: &listing };
    match &chosen {
        Chosen::File(file) => store.fetch(file),
        Chosen::Directory(files) => {
            let paths = files.iter().map(|file| store.fetch(file)).collect::<Result<Vec<_>, _>>()?;
            let first = paths.first().and_then(|path| path.parent());
            Ok(first.expect("a directory has at least its config.json").to_owned())
        }
    }
}

/// Where the files of one order go.
struct Store<'a> {
    hub: &'a Hub,
    order: &'a Order,
    listing: &'a Listing,
}

impl Store<'_> {
    fn fetch(&self, file: &FileName) -> Result<PathBuf, PullError> {
        let remote = self.hub.locate(&self.order.repo, &self.listing.commit, file)?;
        let bar = progress_bar(file, &remote);
        let path = match &self.order.dir {
            Some(dir) => self.fetch_to(dir, file, &remote, &bar),
            None => self.fetch_to_cache(file, &remote, &bar),
        }?;
        bar.finish();
        Ok(path)
    }

    fn fetch_to(&self, dir: &Path, file: &FileName, remote: &Remote, bar: &ProgressBar) -> Result<PathBuf, PullError> {
        let target = dir.join(file.as_str());
        make_parent(&target)?;
        // Named by content: a new revision of the file does not continue an old one.
        let partial = dir.join(format!("{file}.{}.part", &remote.etag[..12]));
        download::download(self.hub, remote, &partial, &target, bar)?;
        Ok(target)
    }

    /// The layout that the Hugging Face tools share: content in `blobs`, names in `snapshots`, branches in `refs`.
    fn fetch_to_cache(&self, file: &FileName, remote: &Remote, bar: &ProgressBar) -> Result<PathBuf, PullError> {
        let named = hf_hub::Repo::with_revision(
            self.order.repo.as_str().to_owned(),
            hf_hub::RepoType::Model,
            self.order.revision.as_str().to_owned(),
        );
        let cache = self.hub.cache.repo(named);
        let blob = cache.blob_path(&remote.etag);
        make_parent(&blob)?;
        download::download(self.hub, remote, &blob.with_extension("part"), &blob, bar)?;

        let pointer = cache.pointer_path(&self.listing.commit).join(file.as_str());
        make_parent(&pointer)?;
        let up = "../".repeat(2 + file.as_str().split('/').count() - 1);
        match std::os::unix::fs::symlink(format!("{up}blobs/{}", remote.etag), &pointer) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(PullError::disk(&pointer)(error)),
            _ => {}
        }
        cache.create_ref(&self.listing.commit).map_err(PullError::disk(self.hub.cache.path()))?;
        Ok(pointer)
    }
}

fn make_parent(path: &Path) -> Result<(), PullError> {
    let parent = path.parent().unwrap_or(path);
    std::fs::create_dir_all(parent).map_err(PullError::disk(parent))
}

/// On stderr, and only where that is a terminal: stdout carries the path.
fn progress_bar(file: &FileName, remote: &Remote) -> ProgressBar {
    let template = "{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    let style = ProgressStyle::with_template(template).expect("the template is well formed");
    let bar = ProgressBar::new(remote.size).with_style(style).with_message(file.to_string());
    if bar.is_hidden() {
        eprintln!("{file}: {}", indicatif::HumanBytes(remote.size));
    }
    bar
}
