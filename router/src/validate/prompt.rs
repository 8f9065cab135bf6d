//! The four forms of a prompt. The form is the first element's; faults name the element.

use shoal_common::config::Limits;
use shoal_common::wire::message::PromptIds;

use super::fields::{Broken, Fields, list, text, token_ids, value_of};
use super::json::{Element, Json, List};
use crate::http::error::{FaultKind, Loc};
use crate::request::{ClientText, PromptForm, PromptInput};

const FIELD: &str = "prompt";

/// The prompts of a completion request and how they were written. After a fault the list may be short.
pub(super) fn prompts(fields: &mut Fields, limits: &Limits) -> (Vec<PromptInput>, PromptForm) {
    match fields.take(FIELD) {
        None => (vec![PromptInput::DocumentStart], PromptForm::Single),
        Some(Json::Text(text)) => (vec![from_text(text)], PromptForm::Single),
        Some(Json::List(elements)) => {
            let form = form_of(&elements);
            (from_list(fields, elements, form, limits), form)
        }
        Some(_) => {
            let rule = "must be a string, a list of strings, a list of token ids or a list of such lists";
            fields.fault([FIELD.into()], (FaultKind::StringType, rule.into()));
            (Vec::new(), PromptForm::Single)
        }
    }
}

fn from_text(text: String) -> PromptInput {
    if text.is_empty() { PromptInput::DocumentStart } else { PromptInput::Text(ClientText(text)) }
}

fn form_of(elements: &List) -> PromptForm {
    match elements.others.first() {
        Some((0, Json::List(_))) => PromptForm::IdLists,
        Some((0, Json::Unsigned(_) | Json::Negative(_) | Json::Float(_))) => PromptForm::Ids,
        Some((0, _)) => PromptForm::Texts,
        _ if elements.ids.is_empty() => PromptForm::Texts,
        _ => PromptForm::Ids,
    }
}

fn from_list(fields: &mut Fields, elements: List, form: PromptForm, limits: &Limits) -> Vec<PromptInput> {
    let size = match elements.len {
        0 => Err((FaultKind::TooShort, "must not be an empty list".into())),
        len if form != PromptForm::Ids && len > limits.prompts => {
            Err((FaultKind::TooLong, format!("must hold at most {} prompts", limits.prompts)))
        }
        _ => Ok(()),
    };
    match (fields.noted([FIELD.into()], size), form) {
        (None, _) => Vec::new(),
        (Some(()), PromptForm::Ids) => {
            let ids = token_ids(fields, elements, |place| vec![FIELD.into(), place.into()]);
            vec![PromptInput::Tokens(PromptIds(ids))]
        }
        (Some(()), PromptForm::IdLists) => id_lists(fields, elements),
        (Some(()), PromptForm::Texts | PromptForm::Single) => texts(fields, elements),
    }
}

fn texts(fields: &mut Fields, elements: List) -> Vec<PromptInput> {
    let read = |(place, element): (usize, Element)| {
        fields.noted([FIELD.into(), place.into()], text(value_of(element))).map(from_text)
    };
    elements.into_elements().filter_map(read).collect()
}

fn id_lists(fields: &mut Fields, elements: List) -> Vec<PromptInput> {
    let mut prompts = Vec::with_capacity(elements.len);
    for (place, element) in elements.into_elements() {
        let here: [Loc; 2] = [FIELD.into(), place.into()];
        let Some(inner) = fields.noted(here, inner_list(element)) else { continue };
        let ids = token_ids(fields, inner, |inner| vec![FIELD.into(), place.into(), inner.into()]);
        prompts.push(PromptInput::Tokens(PromptIds(ids)));
    }
    prompts
}

fn inner_list(element: Element) -> Result<List, Broken> {
    let inner = list(value_of(element))?;
    if inner.len == 0 {
        return Err((FaultKind::TooShort, "must hold at least one token id".into()));
    }
    Ok(inner)
}
