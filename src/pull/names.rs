//! What the hub's names are allowed to be, and which files of a repository a model needs. Names come from a stranger and
//! become paths and URLs, so they are checked before anything else sees them. Pure; called by `pull`.

use std::fmt;

use super::PullError;

/// Longest name of a file in a repository, in bytes: as long as the file systems of the field allow.
const MAX_FILE_NAME: usize = 255;

/// `org/name` on the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RepoId(String);

impl RepoId {
    pub(crate) fn new(text: &str) -> Result<Self, PullError> {
        let parts: Vec<&str> = text.split('/').collect();
        if parts.len() <= 2 && text.len() <= 200 && parts.iter().all(|part| is_plain(part)) {
            Ok(Self(text.to_owned()))
        } else {
            Err(PullError::BadRepo(text.to_owned()))
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// A branch, a tag or a commit; it becomes part of a path in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Revision(String);

impl Revision {
    pub(crate) fn new(text: &str) -> Result<Self, PullError> {
        if text.len() <= MAX_FILE_NAME && text.split('/').all(is_plain) {
            Ok(Self(text.to_owned()))
        } else {
            Err(PullError::BadRevision(text.to_owned()))
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Path of a file within a repository: stays below any directory it is joined to, and needs no escape in a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileName(String);

impl FileName {
    pub(crate) fn new(text: &str) -> Result<Self, PullError> {
        if text.len() <= MAX_FILE_NAME && text.split('/').all(is_plain) {
            Ok(Self(text.to_owned()))
        } else {
            Err(PullError::UnsafeName(text.escape_debug().take(MAX_FILE_NAME).collect()))
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One segment of a path: not empty, not hidden (which rules out `.` and `..`), no character with a meaning elsewhere.
fn is_plain(segment: &str) -> bool {
    let starts_well = segment.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    starts_well && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-+=@,".contains(&b))
}

/// What is pulled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Chosen {
    /// One file, a GGUF mostly.
    File(FileName),
    /// A Hugging Face directory: configuration, tokenizer, weights.
    Directory(Vec<FileName>),
}

/// What of a Hugging Face directory is pulled besides weights: name, and whether a model can do without.
const DIRECTORY: [(&str, Need); 5] = [
    ("config.json", Need::Required),
    ("tokenizer.json", Need::Required),
    ("tokenizer_config.json", Need::Optional),
    ("generation_config.json", Need::Optional),
    ("chat_template.jinja", Need::Optional),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Required,
    Optional,
}

/// The weights of a directory, whole and as an index of shards.
const WHOLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Picks from the `listed` files: the one that is `wanted`, else the only GGUF, else a Hugging Face directory.
pub(crate) fn choose(listed: &[String], wanted: Option<&str>) -> Result<Chosen, PullError> {
    if let Some(wanted) = wanted {
        let name = FileName::new(wanted)?;
        return match listed.iter().any(|file| file == wanted) {
            true => Ok(Chosen::File(name)),
            false => Err(PullError::NoSuchFile { wanted: wanted.to_owned(), models: model_files(listed) }),
        };
    }
    let ggufs: Vec<&String> = listed.iter().filter(|file| has_extension(file, "gguf")).collect();
    match ggufs.as_slice() {
        [] => directory(listed),
        [only] => Ok(Chosen::File(FileName::new(only)?)),
        _ => Err(PullError::Ambiguous(model_files(listed))),
    }
}

fn directory(listed: &[String]) -> Result<Chosen, PullError> {
    let has = |name: &str| listed.iter().any(|file| file == name);
    let mut files = Vec::new();
    for (name, need) in DIRECTORY {
        match (has(name), need) {
            (true, _) => files.push(FileName::new(name)?),
            (false, Need::Required) => return Err(PullError::NotAModel(name)),
            (false, Need::Optional) => {}
        }
    }
    // Some repositories hold the same weights twice, whole or under another name.
    let is_weight = |file: &str| match (has(INDEX), has(WHOLE)) {
        (true, _) => file == INDEX || (file.starts_with("model-") && has_extension(file, "safetensors")),
        (false, true) => file == WHOLE,
        (false, false) => has_extension(file, "safetensors"),
    };
    let before = files.len();
    for file in listed.iter().filter(|file| !file.contains('/') && is_weight(file)) {
        files.push(FileName::new(file)?);
    }
    if files.len() == before {
        Err(PullError::NotAModel("*.safetensors or *.gguf"))
    } else {
        Ok(Chosen::Directory(files))
    }
}

fn has_extension(file: &str, wanted: &str) -> bool {
    file.rsplit_once('.').is_some_and(|(_, extension)| extension.eq_ignore_ascii_case(wanted))
}

/// What an operator could have meant, to be shown: escaped, since it is the hub's text.
fn model_files(listed: &[String]) -> Vec<String> {
    let models = listed.iter().filter(|file| has_extension(file, "gguf") || has_extension(file, "safetensors"));
    models.take(100).map(|file| file.escape_debug().take(MAX_FILE_NAME).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(files: &[&str]) -> Vec<String> {
        files.iter().map(|&file| file.to_owned()).collect()
    }

    #[test]
    fn a_name_of_the_hub_stays_below_the_directory_it_is_put_in() {
        let bad =
            ["", ".", "..", "../a.gguf", "a/../../b", "/etc/passwd", "a//b", "a\\b", "a\0", ".git/config", "a/.b"];
        for name in bad.into_iter().chain(["a?b", "a#b", "a%2e", "C:x", "a b", &"a".repeat(256)]) {
            assert!(FileName::new(name).is_err(), "{name:?} was taken as a file name");
            assert!(RepoId::new(name).is_err(), "{name:?} was taken as a repository");
            assert!(Revision::new(name).is_err(), "{name:?} was taken as a revision");
        }
        for name in ["model-00001-of-00002.safetensors", "onnx/model.onnx", "SmolLM2-135M-Instruct.Q4_1.gguf"] {
            assert!(FileName::new(name).is_ok(), "{name:?} was refused");
        }
        assert!(RepoId::new("a/b/c").is_err());
    }

    #[test]
    fn the_only_gguf_is_the_model() {
        let files = listed(&["README.md", "config.json", "x.Q8_0.gguf"]);
        let chosen = choose(&files, None).expect("one GGUF");
        assert_eq!(chosen, Chosen::File(FileName::new("x.Q8_0.gguf").expect("a name")));
    }

    #[test]
    fn several_ggufs_need_a_decision_and_are_listed() {
        let files = listed(&["a.gguf", "b.GGUF", "README.md"]);
        let Err(PullError::Ambiguous(shown)) = choose(&files, None) else { panic!("one was picked") };
        assert_eq!(shown, ["a.gguf", "b.GGUF"]);
        assert!(matches!(choose(&files, Some("b.GGUF")), Ok(Chosen::File(_))));
        assert!(matches!(choose(&files, Some("c.gguf")), Err(PullError::NoSuchFile { .. })));
    }

    #[test]
    fn a_directory_is_pulled_without_the_copies_of_its_weights() {
        let basics = ["config.json", "tokenizer.json", "README.md", "pytorch_model.bin"];
        let sharded = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", INDEX];
        let copies = ["consolidated.safetensors", "onnx/model.safetensors"];
        let pulled = |files: &[&[&str]]| match choose(&listed(&files.concat()), None).expect("a model") {
            Chosen::Directory(files) => files.into_iter().map(|file| file.to_string()).collect::<Vec<_>>(),
            Chosen::File(file) => panic!("only {file}"),
        };
        let with_index = pulled(&[&basics, &copies, &sharded, &[WHOLE]]);
        assert_eq!(with_index, [&["config.json", "tokenizer.json"], sharded.as_slice()].concat());
        assert_eq!(pulled(&[&basics, &copies, &[WHOLE]]), ["config.json", "tokenizer.json", WHOLE]);
        assert!(matches!(choose(&listed(&basics), None), Err(PullError::NotAModel(_))));
    }
}
