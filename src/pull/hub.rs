//! The Hugging Face hub over HTTP: what a repository holds, what a file must be, and its bytes from an offset on. Listing,
//! metadata, URLs and the cache's layout are hf-hub's. The bytes are not: hf-hub 0.5 takes a path out of the server's
//! `etag`, resumes without looking at the answer's range and never checks a checksum.

use std::io::Read;
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use ureq::config::RedirectAuthHeaders;
use ureq::http::StatusCode;
use ureq::http::header::{AUTHORIZATION, CONTENT_RANGE, HeaderMap, RANGE};

use super::PullError;
use super::names::{FileName, RepoId, Revision};

/// A server that says nothing for this long is gone; the download is tried again.
const SILENCE: Duration = Duration::from_secs(60);

/// A hub, with the operator's token and cache.
#[derive(Debug)]
pub(crate) struct Hub {
    api: Api,
    agent: ureq::Agent,
    pub(super) cache: Cache,
    token: Option<String>,
    /// Before the first retry; doubled for each further one.
    pub(super) pause: Duration,
}

impl Hub {
    /// The hub and cache that `HF_ENDPOINT` and `HF_HOME` name; without `token`, the one that was saved by a login.
    pub(crate) fn from_environment(token: Option<String>) -> Result<Self, PullError> {
        let cache = Cache::from_env();
        let token = token.or_else(|| cache.token());
        Self::new(ApiBuilder::from_env(), cache, token, Duration::from_secs(1))
    }

    pub(super) fn new(
        builder: ApiBuilder,
        cache: Cache,
        token: Option<String>,
        pause: Duration,
    ) -> Result<Self, PullError> {
        let api = builder.with_progress(false).with_token(token.clone()).build()?;
        let config = ureq::Agent::config_builder()
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            // Ranges and sizes are of the file, not of a compressed form.
            .accept_encoding("identity")
            .timeout_connect(Some(SILENCE))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .build();
        Ok(Self { api, agent: config.new_agent(), cache, token, pause })
    }

    /// The commit that `revision` stands for now, and the files it holds.
    pub(super) fn list(&self, repo: &RepoId, revision: &Revision) -> Result<Listing, PullError> {
        let info = self.repo(repo, revision.as_str()).info().map_err(|source| match status(&source) {
            Some(401 | 403 | 404) => PullError::NotFound { repo: repo.as_str().to_owned() },
            _ => PullError::Hub(source),
        })?;
        if !is_hex(&info.sha, 40) {
            return Err(PullError::BadAnswer("its commit is no git hash"));
        }
        let files = info.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        Ok(Listing { commit: info.sha, files })
    }

    /// Where a file is, how long it is and what it hashes to.
    pub(super) fn locate(&self, repo: &RepoId, commit: &str, file: &FileName) -> Result<Remote, PullError> {
        let url = self.repo(repo, commit).url(file.as_str());
        let metadata = self.api.metadata(&url)?;
        let etag = metadata.etag().to_owned();
        let checksum = match etag.len() {
            64 if is_hex(&etag, 64) => Checksum::Sha256,
            40 if is_hex(&etag, 40) => Checksum::SizeOnly,
            _ => return Err(PullError::BadAnswer("its etag is neither a SHA-256 nor a git hash")),
        };
        Ok(Remote { url, size: metadata.size() as u64, etag, checksum })
    }

    /// The bytes of a file from `offset` on, or from its beginning where the server knows no ranges.
    pub(super) fn open(&self, remote: &Remote, offset: u64) -> Result<Opened, PullError> {
        let mut request = self.agent.get(&remote.url);
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if offset > 0 {
            request = request.header(RANGE, format!("bytes={offset}-"));
        }
        let response = request.call().map_err(|error| PullError::Transfer(Box::new(error)))?;
        let start = match response.status() {
            StatusCode::PARTIAL_CONTENT if begins_at(response.headers(), offset) => offset,
            StatusCode::OK => 0,
            _ => return Err(PullError::BadAnswer("it sent another part of the file than was asked for")),
        };
        Ok(Opened { start, body: Box::new(response.into_body().into_reader()) })
    }

    pub(super) fn repo(&self, repo: &RepoId, revision: &str) -> ApiRepo {
        self.api.repo(Repo::with_revision(repo.as_str().to_owned(), RepoType::Model, revision.to_owned()))
    }
}

/// What a repository holds at one commit. The names are the hub's, unchecked.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: Vec<String>,
}

/// A file on the hub.
#[derive(Debug)]
pub(super) struct Remote {
    url: String,
    pub(super) size: u64,
    /// Lower-case hex digits only, so it can be part of a path.
    pub(super) etag: String,
    pub(super) checksum: Checksum,
}

/// What the etag says about a file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checksum {
    /// It is the SHA-256: so for all large files.
    Sha256,
    /// It is git's own hash, of a small text file; only the size is checked.
    SizeOnly,
}

/// A body, and where in the file it begins.
pub(super) struct Opened {
    pub(super) start: u64,
    pub(super) body: Box<dyn Read>,
}

fn begins_at(headers: &HeaderMap, offset: u64) -> bool {
    let range = headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let first = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
    first == Some(offset)
}

fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(source) => match **source {
            ureq::Error::StatusCode(status) => Some(status),
            _ => None,
        },
        _ => None,
    }
}
