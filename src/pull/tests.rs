//! The promises of `shoal pull`, against a stand-in hub on loopback that speaks the real one's paths and headers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, Response, StatusCode};
use axum::routing::get;
use futures_util::StreamExt;
use hf_hub::Cache;
use hf_hub::api::sync::ApiBuilder;
use sha2::{Digest, Sha256};

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the stand-in hub holds and how it misbehaves.
#[derive(Default)]
struct Shelf {
    files: HashMap<String, Bytes>,
    /// Etags that are not the SHA-256.
    etags: HashMap<String, String>,
    /// Bytes after which a connection breaks, once each.
    breaks: Mutex<Vec<usize>>,
    ranges: RangeSupport,
    /// `Range` headers of the content requests.
    asked: Mutex<Vec<Option<String>>>,
    /// `Authorization` headers of all requests.
    tokens: Mutex<Vec<Option<String>>>,
    /// The client's directory.
    home: OnceLock<PathBuf>,
}

#[derive(Default, PartialEq, Eq)]
enum RangeSupport {
    #[default]
    Honoured,
    Ignored,
}

impl Shelf {
    fn of(files: &[(&str, &[u8])]) -> Self {
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), Bytes::copy_from_slice(bytes))).collect();
        Self { files, ..Self::default() }
    }

    /// Waits until the client has written that many bytes of a partial file: a connection that breaks before would lose
    /// bytes that are on their way.
    async fn partial_file_holds(&self, bytes: usize) {
        let blobs = self.home.get().expect("the fixture set it").join("hub/models--org--name/blobs");
        let length = || -> Option<u64> {
            let mut entries = std::fs::read_dir(&blobs).ok()?.filter_map(Result::ok);
            entries
                .find(|entry| entry.path().extension() == Some("part".as_ref()))?
                .metadata()
                .ok()
                .map(|file| file.len())
        };
        while length() != Some(bytes as u64) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn etag(&self, name: &str) -> String {
        let hash = || Sha256::digest(&self.files[name]).iter().map(|byte| format!("{byte:02x}")).collect();
        self.etags.get(name).cloned().unwrap_or_else(hash)
    }
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).map(|value| value.to_str().expect("text").to_owned())
}

async fn info(State(shelf): State<Arc<Shelf>>, headers: HeaderMap) -> String {
    shelf.tokens.lock().expect("not poisoned").push(header(&headers, "authorization"));
    let mut names: Vec<_> = shelf.files.keys().collect();
    names.sort();
    let siblings: Vec<_> = names.iter().map(|name| serde_json::json!({ "rfilename": name })).collect();
    serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string()
}

/// As the hub does for large files: facts in the headers, the content behind a redirect.
async fn resolve(
    State(shelf): State<Arc<Shelf>>,
    UrlPath((_, _, _, name)): UrlPath<(String, String, String, String)>,
    headers: HeaderMap,
) -> Response<Body> {
    shelf.tokens.lock().expect("not poisoned").push(header(&headers, "authorization"));
    let response = Response::builder().status(StatusCode::FOUND).header("location", format!("/content/{name}"));
    let response =
        response.header("x-repo-commit", COMMIT).header("x-linked-etag", format!("\"{}\"", shelf.etag(&name)));
    response.header("etag", "\"of-the-redirect\"").body(Body::empty()).expect("a response")
}

async fn content(
    State(shelf): State<Arc<Shelf>>,
    UrlPath(name): UrlPath<String>,
    headers: HeaderMap,
) -> Response<Body> {
    let bytes = shelf.files[&name].clone();
    let range = header(&headers, "range");
    let response = Response::builder().header("x-repo-commit", COMMIT).header("etag", shelf.etag(&name));
    if range.as_deref() == Some("bytes=0-0") {
        let response = response.header("content-range", format!("bytes 0-0/{}", bytes.len()));
        return response.status(StatusCode::PARTIAL_CONTENT).body(Body::from(bytes.slice(..1))).expect("a response");
    }
    shelf.asked.lock().expect("not poisoned").push(range.clone());
    let offset = range.filter(|_| shelf.ranges == RangeSupport::Honoured);
    let offset = offset.map(|range| range["bytes=".len()..].trim_end_matches('-').parse::<usize>().expect("a range"));
    let rest = bytes.slice(offset.unwrap_or(0)..);
    let response = match offset {
        Some(offset) => response
            .status(StatusCode::PARTIAL_CONTENT)
            .header("content-range", format!("bytes {offset}-{}/{}", bytes.len() - 1, bytes.len())),
        None => response.status(StatusCode::OK),
    };
    let response = response.header("content-length", rest.len());
    let breaks_at = shelf.breaks.lock().expect("not poisoned").pop();
    let body = match breaks_at {
        None => Body::from(rest),
        Some(at) => {
            let reached = offset.unwrap_or(0) + at;
            let parts = [Ok(rest.slice(..at)), Err(io::Error::other("the cable was pulled"))];
            Body::from_stream(futures_util::stream::iter(parts).then(move |part| {
                let shelf = shelf.clone();
                async move {
                    if part.is_err() {
                        shelf.partial_file_holds(reached).await;
                    }
                    part
                }
            }))
        }
    };
    response.body(body).expect("a response")
}

/// A stand-in hub and an empty cache.
struct Fixture {
    shelf: Arc<Shelf>,
    hub: Hub,
    home: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Fixture {
    fn new(shelf: Shelf) -> Self {
        let shelf = Arc::new(shelf);
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let app = Router::new()
            .route("/api/models/{org}/{name}/revision/{revision}", get(info))
            .route("/{org}/{name}/resolve/{revision}/{*file}", get(resolve))
            .route("/content/{*file}", get(content))
            .with_state(shelf.clone());
        runtime.spawn(async move { axum::serve(listener, app).await });
        let home = tempfile::tempdir().expect("a directory");
        shelf.home.set(home.path().to_owned()).expect("it is set once");
        let cache = Cache::new(home.path().join("hub"));
        let builder = ApiBuilder::from_cache(cache.clone()).with_endpoint(endpoint);
        let hub = Hub::new(builder, cache, Some("secret".to_owned()), Duration::ZERO).expect("a client");
        Self { shelf, hub, home, _runtime: runtime }
    }

    fn order(&self) -> Order {
        Order {
            repo: RepoId::new("org/name").expect("a name"),
            revision: Revision::new("main").expect("a name"),
            file: None,
            dir: None,
        }
    }

    fn pull(&self) -> Result<PathBuf, PullError> {
        pull(&self.hub, &self.order())
    }

    fn asked(&self) -> Vec<Option<String>> {
        self.shelf.asked.lock().expect("not poisoned").clone()
    }

    /// Every file below the home, sorted.
    fn left_behind(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut open = vec![self.home.path().to_owned()];
        while let Some(dir) = open.pop() {
            for entry in std::fs::read_dir(dir).expect("a directory") {
                let entry = entry.expect("an entry");
                let is_dir = entry.file_type().expect("a type").is_dir();
                if is_dir { open.push(entry.path()) } else { found.push(entry.path()) }
            }
        }
        found.sort();
        found
    }
}

fn weights() -> Vec<u8> {
    (0..300_000_u32).flat_map(|i| i.to_le_bytes()).collect()
}

#[test]
fn a_pulled_file_is_the_hubs_file_in_the_shared_layout() {
    let weights = weights();
    let fixture = Fixture::new(Shelf::of(&[("m.Q4_1.gguf", &weights), ("README.md", b"read me")]));
    let path = fixture.pull().expect("the model");
    assert_eq!(std::fs::read(&path).expect("the file"), weights);
    let repo = fixture.home.path().join("hub/models--org--name");
    assert_eq!(path, repo.join("snapshots").join(COMMIT).join("m.Q4_1.gguf"));
    assert_eq!(std::fs::read_to_string(repo.join("refs/main")).expect("the ref"), COMMIT);
    assert_eq!(fixture.hub.cache.model("org/name".to_owned()).get("m.Q4_1.gguf"), Some(path.clone()));
    assert_eq!(fixture.pull().expect("it is there"), path);
    assert_eq!(fixture.asked().len(), 1, "the content is asked for once");
    let tokens = fixture.shelf.tokens.lock().expect("not poisoned");
    assert!(tokens.iter().all(|token| token.as_deref() == Some("Bearer secret")), "{tokens:?}");
}

#[test]
fn a_directory_is_pulled_whole() {
    let files: [(&str, &[u8]); 4] =
        [("config.json", b"{}"), ("tokenizer.json", b"{ }"), ("model.safetensors", b"weights"), ("x.bin", b"x")];
    let fixture = Fixture::new(Shelf::of(&files));
    let dir = fixture.home.path().join("model");
    let order = Order { dir: Some(dir.clone()), ..fixture.order() };
    assert_eq!(pull(&fixture.hub, &order).expect("the model"), dir);
    let names: Vec<_> = fixture.left_behind().iter().map(|path| path.file_name().expect("a name").to_owned()).collect();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json"]);
}

#[test]
fn an_interrupted_download_goes_on_where_it_broke() {
    let weights = weights();
    let shelf = Shelf { breaks: Mutex::new(vec![200_000, 100_000]), ..Shelf::of(&[("m.gguf", &weights)]) };
    let fixture = Fixture::new(shelf);
    let path = fixture.pull().expect("the model");
    assert_eq!(std::fs::read(path).expect("the file"), weights);
    let continued = ["bytes=100000-", "bytes=300000-"].map(|range| Some(range.to_owned()));
    assert_eq!(fixture.asked(), [[None].as_slice(), &continued].concat());
}

#[test]
fn a_later_process_continues_what_an_earlier_one_left() {
    let weights = weights();
    let fixture = Fixture::new(Shelf::of(&[("m.gguf", &weights)]));
    let blobs = fixture.home.path().join("hub/models--org--name/blobs");
    std::fs::create_dir_all(&blobs).expect("a directory");
    let partial = blobs.join(format!("{}.part", fixture.shelf.etag("m.gguf")));
    std::fs::write(&partial, &weights[..70_000]).expect("the first part");
    assert_eq!(std::fs::read(fixture.pull().expect("the model")).expect("the file"), weights);
    assert_eq!(fixture.asked(), [Some("bytes=70000-".to_owned())]);
    assert!(!partial.exists());
}

#[test]
fn a_whole_partial_file_needs_only_its_name() {
    let weights = weights();
    let fixture = Fixture::new(Shelf::of(&[("m.gguf", &weights)]));
    let blobs = fixture.home.path().join("hub/models--org--name/blobs");
    std::fs::create_dir_all(&blobs).expect("a directory");
    std::fs::write(blobs.join(format!("{}.part", fixture.shelf.etag("m.gguf"))), &weights).expect("all of it");
    assert_eq!(std::fs::read(fixture.pull().expect("the model")).expect("the file"), weights);
    assert_eq!(fixture.asked(), []);
}

#[test]
fn a_server_without_ranges_is_read_from_the_beginning_again() {
    let weights = weights();
    let breaks = Mutex::new(vec![100_000]);
    let shelf = Shelf { breaks, ranges: RangeSupport::Ignored, ..Shelf::of(&[("m.gguf", &weights)]) };
    let fixture = Fixture::new(shelf);
    assert_eq!(std::fs::read(fixture.pull().expect("the model")).expect("the file"), weights);
}

#[test]
fn a_file_with_a_wrong_checksum_is_refused_and_deleted() {
    let etags = HashMap::from([("m.gguf".to_owned(), "ab".repeat(32))]);
    let fixture = Fixture::new(Shelf { etags, ..Shelf::of(&[("m.gguf", b"not what was announced")]) });
    let error = fixture.pull().expect_err("the content is wrong");
    assert!(matches!(error, PullError::WrongContent(_)), "{error:?}");
    assert_eq!(fixture.left_behind(), Vec::<PathBuf>::new());
}

#[test]
fn a_damaged_file_on_the_disk_is_pulled_again() {
    let weights = weights();
    let fixture = Fixture::new(Shelf::of(&[("m.gguf", &weights)]));
    let path = fixture.pull().expect("the model");
    std::fs::write(&path, vec![0; weights.len()]).expect("the damage");
    assert_eq!(std::fs::read(fixture.pull().expect("the model")).expect("the file"), weights);
}

#[test]
fn a_file_name_that_leaves_the_directory_is_refused() {
    let fixture = Fixture::new(Shelf::of(&[("../../../escape.gguf", b"boo")]));
    let error = fixture.pull().expect_err("the name is unsafe");
    assert!(matches!(error, PullError::UnsafeName(_)), "{error:?}");
    assert_eq!(fixture.left_behind(), Vec::<PathBuf>::new());
}

#[test]
fn an_etag_that_leaves_the_cache_is_refused() {
    let etags = HashMap::from([("m.gguf".to_owned(), "../../../escape".to_owned())]);
    let fixture = Fixture::new(Shelf { etags, ..Shelf::of(&[("m.gguf", b"boo")]) });
    let error = fixture.pull().expect_err("the etag is unsafe");
    assert!(matches!(error, PullError::BadAnswer(_)), "{error:?}");
    assert_eq!(fixture.left_behind(), Vec::<PathBuf>::new());
}

#[test]
fn a_repository_that_is_not_there_is_said_so() {
    let fixture = Fixture::new(Shelf::default());
    let order = Order { repo: RepoId::new("nobody").expect("a name"), ..fixture.order() };
    let error = pull(&fixture.hub, &order).expect_err("there is none");
    assert!(matches!(error, PullError::NotFound { .. }), "{error:?}");
}
