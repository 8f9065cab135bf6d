//! Which model an adapter belongs to, where whoever registers it does not say. Pure.

use std::collections::BTreeSet;

use serde::Deserialize;
use shoal_common::ids::Name;

/// Models that one message lists at most.
const MAX_LISTED: usize = 32;

/// Why no model can be chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoBase {
    /// Nobody knows of a model yet.
    #[error("no worker has joined yet, so the base model is not known")]
    NoModels,
    /// There are several, and nothing tells them apart.
    #[error("the base model must be named: {}", .models.iter().take(MAX_LISTED).map(Name::as_str).collect::<Vec<_>>().join(", "))]
    Unsaid {
        /// What there is.
        models: BTreeSet<Name>,
    },
}

/// The model that is named, the only one there is, or the one that the adapter's own configuration was `made_for`.
pub fn choose(named: Option<&Name>, made_for: Option<&str>, models: &BTreeSet<Name>) -> Result<Name, NoBase> {
    if let Some(named) = named {
        return Ok(named.clone());
    }
    if models.is_empty() {
        return Err(NoBase::NoModels);
    }
    let exact = models.iter().filter(|model| made_for == Some(model.as_str()));
    let by_last_part =
        models.iter().filter(|model| made_for.is_some_and(|made_for| last_part(made_for) == last_part(model.as_str())));
    let only =
        |mut found: Box<dyn Iterator<Item = &Name> + '_>| found.next().filter(|_| found.next().is_none()).cloned();
    only(Box::new(models.iter()))
        .or_else(|| only(Box::new(exact)))
        .or_else(|| only(Box::new(by_last_part)))
        .ok_or_else(|| NoBase::Unsaid { models: models.clone() })
}

/// What follows the last slash of a repository's name or a path.
fn last_part(name: &str) -> &str {
    name.trim_end_matches('/').rsplit('/').next().unwrap_or(name)
}

/// What `adapter_config.json` says it was made for.
pub fn made_for(config: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Config {
        base_model_name_or_path: Option<String>,
    }
    serde_json::from_slice::<Config>(config).ok()?.base_model_name_or_path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(named: Option<&str>, made_for: Option<&str>, models: &[&str]) -> Option<String> {
        let named = named.map(|name| Name::new(name).unwrap());
        let models = models.iter().map(|name| Name::new(*name).unwrap()).collect();
        choose(named.as_ref(), made_for, &models).ok().map(String::from)
    }

    #[test]
    fn a_base_model_is_named_or_the_only_one_or_what_the_adapter_was_made_for() {
        assert_eq!(chosen(Some("a"), Some("b"), &["b", "c"]).as_deref(), Some("a"));
        assert_eq!(chosen(None, Some("x/y"), &["only"]).as_deref(), Some("only"));
        assert_eq!(chosen(None, Some("org/b"), &["a", "b", "org/b"]).as_deref(), Some("org/b"));
        assert_eq!(chosen(None, Some("/models/org/b/"), &["a", "org/b"]).as_deref(), Some("org/b"));
        assert_eq!(chosen(None, Some("b"), &["x/b", "y/b"]), None, "two models of one last part");
        assert_eq!(chosen(None, Some("z"), &["a", "b"]), None);
        assert_eq!(chosen(None, None, &["a", "b"]), None);
        assert_eq!(chosen(None, Some("a"), &[]), None);
    }

    #[test]
    fn a_configuration_that_is_none_was_made_for_nothing() {
        assert_eq!(made_for(br#"{"base_model_name_or_path": "org/m", "r": 8}"#).as_deref(), Some("org/m"));
        for nothing in [&b"{}"[..], b"[", b"\xff", br#"{"base_model_name_or_path": 7}"#] {
            assert_eq!(made_for(nothing), None);
        }
    }
}
