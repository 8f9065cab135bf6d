//! The names of a group's blocks of KV: hashes of its full blocks, computed where it comes in, and one more whenever a
//! branch has filled another. The policy finds cached KV by them and sees no token. Pure.

use shoal_common::block_hash::{BLOCK_TOKENS, BlockHash};
use shoal_common::ids::TokenId;
use shoal_common::wire::message::Submit;

use crate::scheduler::Hashes;

/// All full blocks of a submission. Takes about 10 ns a token.
pub(super) fn of_submission(submit: &Submit) -> Hashes {
    let (begin, prompt) = (begin(submit), &submit.prompt.0[..]);
    let of_prompt = chain(begin, prompt);
    let last = of_prompt.last().copied().unwrap_or(begin);
    let rest = &prompt[of_prompt.len() * BLOCK_TOKENS..];
    let of_branch = |emitted: &[TokenId]| chain(last, &[rest, emitted].concat());
    let branches = submit.branches.iter().map(|branch| of_branch(&branch.emitted.0)).collect();
    Hashes { prompt: of_prompt, branches }
}

/// What stands before the first block of a submission.
pub(super) fn begin(submit: &Submit) -> BlockHash {
    BlockHash::begin(submit.cache_salt, &submit.fingerprint)
}

/// The hashes of the full blocks of `tokens`, which follow a block with the hash `before`.
fn chain(before: BlockHash, tokens: &[TokenId]) -> Vec<BlockHash> {
    let next = |before: &mut BlockHash, block: &[TokenId]| {
        *before = before.then(block);
        Some(*before)
    };
    tokens.chunks_exact(BLOCK_TOKENS).scan(before, next).collect()
}

/// The hash of the block that ends with the last of `generated`, if it is full. `before` is that of the block before it.
pub(super) fn filled(before: &BlockHash, prompt: &[TokenId], generated: &[TokenId]) -> Option<BlockHash> {
    if !(prompt.len() + generated.len()).is_multiple_of(BLOCK_TOKENS) {
        return None;
    }
    let mut block = [TokenId(0); BLOCK_TOKENS];
    let last = prompt.iter().rev().take(BLOCK_TOKENS);
    let last = generated.iter().rev().chain(last).take(BLOCK_TOKENS);
    block.iter_mut().rev().zip(last).for_each(|(to, from)| *to = *from);
    Some(before.then(&block))
}

#[cfg(test)]
mod tests {
    use shoal_common::wire::message::PromptIds;

    use super::*;
    use crate::engine::tests::bench::{start, submission};

    #[test]
    fn blocks_have_the_same_names_whether_they_came_or_were_generated() {
        let text: Vec<TokenId> = (0..100).map(TokenId).collect();
        for cut in [1, 15, 16, 17, 40, 99] {
            let (prompt, generated) = text.split_at(cut);
            let mut whole = submission(&[1], 200, 1);
            whole.prompt = PromptIds(text.clone());
            let whole = of_submission(&whole).prompt;
            let mut resumed = submission(&[1], 200, 0);
            resumed.prompt = PromptIds(prompt.to_vec());
            let mut branch = start(0, &[]);
            branch.emitted = PromptIds(generated.to_vec());
            resumed.branches = vec![branch];
            let hashes = of_submission(&resumed);
            assert_eq!([hashes.prompt.clone(), hashes.branches[0].clone()].concat(), whole, "emitted after {cut}");
            let mut last = hashes.prompt.last().copied().unwrap_or_else(|| begin(&resumed));
            let mut grown = hashes.prompt;
            for at in 1..=generated.len() {
                if let Some(hash) = filled(&last, prompt, &generated[..at]) {
                    last = hash;
                    grown.push(hash);
                }
            }
            assert_eq!(grown, whole, "generated after {cut}");
        }
    }

    #[test]
    fn another_salt_or_another_model_has_other_names() {
        let submit = || submission(&[1; 32], 4, 1);
        let mut salted = submit();
        salted.cache_salt.0 += 1;
        let mut other = submit();
        let digest = shoal_common::ids::Digest::of(b"other");
        other.fingerprint = shoal_common::fingerprint::Fingerprint::new(digest, None, digest, "hash");
        let first = |submit: &Submit| of_submission(submit).prompt[0];
        assert!(first(&submit()) != first(&salted) && first(&submit()) != first(&other));
    }
}
