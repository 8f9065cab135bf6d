"""What the scripted engine answers, computed here a second time: a token is a hash of all tokens before it. Tests compare
the server's answers with this oracle; it shares no code with the server."""

import math

import numpy as np

BOS, EOS, FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE = range(256, 261)
VOCAB = 261
EOS_EVERY = 64
MASK = (1 << 64) - 1


def mix(value):
    z = (value + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def ids(text):
    return list(text.encode())


def after(state, token):
    return mix((((state << 17) | (state >> 47)) & MASK) ^ token)


def state_of(history, salt=0, adapter=b""):
    """`adapter` is the digest that is its generation; none is the base model."""
    state = mix(salt ^ 0x53484F414C000001)
    for byte in adapter:
        state = after(state, 1 << 32 | byte)
    for token in history:
        state = after(state, token)
    return state


def logits(history, adapter=b""):
    """The row that follows `history`."""
    return row_of(state_of(history, adapter=adapter))


def row_of(state):
    hashed = mix(state)
    row = np.full(VOCAB, -60.0, dtype=np.float32)
    for rank in range(16):
        letter = (hashed % 96 + rank * 37) % 96
        byte = 10 if letter == 95 else 32 + letter
        row[byte] = np.float32(6.0 - 0.75 * rank) + np.float32((mix(hashed ^ rank) >> 56) / 256.0 * 0.25)
    if mix(hashed ^ MASK) % EOS_EVERY == 0:
        row[EOS] = 8.0
    return row


def logprobs(history):
    row = logits(history).astype(np.float64)
    return row - (row.max() + math.log(np.exp(row - row.max()).sum()))


def greedy(prompt, count, adjust=lambda row, prompt, out: row, past_eos=False, adapter=b""):
    """The tokens of greedy decoding, EOS included where it ends them; `adjust` plays logit_bias and the penalties."""
    state, out = state_of(prompt, adapter=adapter), []
    while len(out) < count:
        token = int(np.argmax(adjust(row_of(state), prompt, out)))
        state = after(state, token)
        out.append(token)
        if token == EOS and not past_eos:
            break
    return out


def text(tokens):
    """Special tokens are no text."""
    return bytes(token for token in tokens if token < 256).decode()


def prompt_that_ends(within, after=4):
    """A prompt whose greedy answer reaches EOS after `after` to `within` tokens."""
    for number in range(10_000):
        prompt = f"ending {number}"
        answer = greedy(ids(prompt), within)
        if answer[-1] == EOS and len(answer) > after:
            return prompt, answer
    raise AssertionError("no such prompt")


def prompt_that_goes_on(count):
    """A prompt whose greedy answer does not end within `count` tokens."""
    for number in range(10_000):
        prompt = f"running {number}"
        if EOS not in greedy(ids(prompt), count):
            return prompt
    raise AssertionError("no such prompt")
