// The OctoAI JavaScript SDK, unmodified, pointed at Shoal by its environment.
import assert from "node:assert/strict";
import { test } from "node:test";

import sdk from "@octoai/sdk";
import * as serializers from "@octoai/sdk/serialization/index.js";

import { joined, model, narrowUrl, url, whileFull, whole } from "./wire.mjs";

const environment = (base) => ({ default: base, imageGen: base, textGen: base });
const client = new sdk.OctoAIClient({ apiKey: "none", environment: environment(url) });

const ALL_FIELDS = {
  bestOf: 4,
  echo: true,
  frequencyPenalty: 0.25,
  ignoreEos: true,
  logPrompt: false,
  logitBias: { 65: 1.5 },
  loglikelihood: true,
  logprobs: 3,
  maxTokens: 12,
  minP: 0.01,
  n: 2,
  presencePenalty: 0.25,
  prompt: ["one prompt", "and another"],
  repetitionPenalty: 1.1,
  seed: 4,
  stop: ["~~~~~~", "@@@@@@"],
  temperature: 0.9,
  topP: 0.95,
  user: "someone",
};

const onTheWire = (fields) =>
  Object.fromEntries(Object.entries(fields).map(([key, value]) => [key.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`), value]));

/** As the SDK parses it, but without the leniency that it parses with. */
async function strictly(document) {
  return serializers.textGen.CompletionResponse.parseOrThrow(document, { unrecognizedObjectKeys: "passthrough" });
}

test("a completion", async () => {
  const answer = await client.textGen.createCompletion({ model, prompt: "hello", maxTokens: 20, seed: 1 });
  const expected = await whole({ prompt: "hello", max_tokens: 20, seed: 1 });
  assert.equal(answer.choices[0].text, expected.choices[0].text);
  assert.equal(answer.usage.completionTokens, expected.usage.completion_tokens);
  assert.equal(answer.systemFingerprint, expected.system_fingerprint);
});

test("a stream of completions", async () => {
  const body = { model, prompt: "hello", maxTokens: 20, n: 2, seed: 1, streamOptions: { includeUsage: true } };
  const chunks = [];
  for await (const chunk of await client.textGen.createCompletionStream(body)) chunks.push(chunk);
  const expected = await whole({ prompt: "hello", max_tokens: 20, n: 2, seed: 1 });
  assert.deepEqual(joined(chunks), expected.choices.map((choice) => choice.text));
  assert.equal(chunks.at(-1).usage.completionTokens, expected.usage.completion_tokens);
});

test("all fields mean what they mean on the wire", async () => {
  const answer = await client.textGen.createCompletion({ model, ...ALL_FIELDS });
  const expected = await whole(onTheWire(ALL_FIELDS));
  assert.deepEqual(answer.choices.map((choice) => choice.text), expected.choices.map((choice) => choice.text));
  for (const choice of answer.choices) {
    const sent = expected.choices[choice.index].logprobs.content;
    assert.deepEqual(choice.logprobs.content.map((entry) => entry?.logprob), sent.map((entry) => entry?.logprob));
    assert.equal(choice.logprobs.content[0] ?? null, null);
    assert.equal(choice.logprobs.content[1].topLogprobs.length, 3);
  }
});

test("every answer passes its schema without leniency", async () => {
  const { best_of: _, ...body } = onTheWire(ALL_FIELDS);
  await strictly(await whole(onTheWire(ALL_FIELDS)));
  const response = await fetch(`${url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ model, stream: true, stream_options: { include_usage: true }, ...body }),
  });
  const events = (await response.text()).split("\n\n").filter((event) => event !== "");
  assert.equal(events.pop(), "data: [DONE]");
  assert.ok(events.length > 20);
  for (const event of events) await strictly(JSON.parse(event.slice("data: ".length)));
});

test("an invalid field is named", async () => {
  await assert.rejects(client.textGen.createCompletion({ model, prompt: "x", temperature: 2.5 }), (error) => {
    assert.ok(error instanceof sdk.OctoAI.textGen.UnprocessableEntityError, String(error));
    assert.equal(error.statusCode, 422);
    assert.deepEqual(error.body.detail[0].loc, ["body", "temperature"]);
    assert.ok(error.message.includes(error.body.detail[0].msg));
    return true;
  });
});

// The SDK never reads the body of a stream that was refused: whoever catches the error must. With 422 it fails over that
// body, so that its error says nothing.
test("a refused stream is refused", async () => {
  await assert.rejects(client.textGen.createCompletionStream({ model, prompt: "x", temperature: 2.5 }));
  const error = await client.textGen.createCompletionStream({ model: "no-such", prompt: "x" }).catch((caught) => caught);
  assert.equal(error.statusCode, 404);
  let body = "";
  for await (const piece of error.body) body += Buffer.from(piece).toString();
  assert.ok(JSON.parse(body).message.includes("no-such"));
});

test("an unknown model or adapter is told", async () => {
  for (const fields of [{ model: "no-such" }, { model, peft: "no-such" }]) {
    await assert.rejects(client.textGen.createCompletion({ prompt: "x", ...fields }), (error) => {
      assert.equal(error.statusCode, 404);
      assert.ok(error.body.message.includes("no-such"));
      assert.ok(error.message.includes(error.body.message));
      return true;
    });
  }
});

test("a full server says so", async () => {
  const narrow = new sdk.OctoAIClient({ apiKey: "none", environment: environment(narrowUrl) });
  await whileFull(async () => {
    await assert.rejects(narrow.textGen.createCompletion({ model, prompt: "x" }, { maxRetries: 0 }), (error) => {
      assert.equal(error.statusCode, 503);
      assert.ok(error.message.includes(error.body.message));
      return true;
    });
  });
});
