// What both libraries' tests share: the servers' addresses, and the same request sent without any library.
import assert from "node:assert/strict";

export const url = process.env.SHOAL_URL;
export const narrowUrl = process.env.SHOAL_NARROW_URL;
export const model = process.env.SHOAL_MODEL;
assert.ok(url && narrowUrl && model, "run by test_javascript.py");

/** The answer as the server sent it. */
export async function whole(body) {
  const response = await fetch(`${url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ model, ...body }),
  });
  assert.equal(response.status, 200);
  return response.json();
}

/** Fills the server that serves one request at a time while `body` runs. */
export async function whileFull(body) {
  const busy = new AbortController();
  const response = await fetch(`${narrowUrl}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ model, prompt: "x", max_tokens: 4000, ignore_eos: true, stream: true }),
    signal: busy.signal,
  });
  await response.body.getReader().read();
  await body();
  busy.abort();
}

/** Texts of the choices by index, from chunks of a stream. */
export function joined(chunks) {
  const texts = [];
  for (const { choices } of chunks) {
    for (const choice of choices) {
      texts[choice.index] = (texts[choice.index] ?? "") + choice.text;
    }
  }
  return texts;
}
