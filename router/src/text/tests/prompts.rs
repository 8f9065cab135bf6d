use shoal_common::ids::TokenId;
use shoal_common::wire::blob::FimTokens;

use super::samples::*;
use crate::request::ClientText;
use crate::testing::request;
use crate::text::prompts::tokenise;
use crate::text::tokenizer::Tokenizer;

#[test]
fn what_stands_before_the_prefix_of_an_infill_is_no_part_of_the_prompts_text() {
    let mut bundle = bundle(&byte_level_json());
    bundle.fim = Some(FimTokens { prefix: TokenId(0), suffix: TokenId(1), middle: TokenId(2) });
    let mut request = request("def f(");
    request.suffix = Some(ClientText(" return".to_owned()));
    for add_bos in [false, true] {
        bundle.add_bos = add_bos;
        let tokenizer = Tokenizer::from_bundle(&bundle, BYTE_LEVEL_VOCAB).unwrap();
        let prompt = tokenise(&tokenizer, &request).unwrap().remove(0);
        assert_eq!(prompt.ids[prompt.added - 1], TokenId(0), "with a bos: {add_bos}");
    }
}
