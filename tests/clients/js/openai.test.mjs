// The OpenAI JavaScript library, unmodified, pointed at Shoal by its base URL.
import assert from "node:assert/strict";
import { test } from "node:test";

import OpenAI from "openai";

import { joined, model, narrowUrl, url, whileFull, whole } from "./wire.mjs";

const clientOf = (base) => new OpenAI({ baseURL: `${base}/v1`, apiKey: "none", maxRetries: 0 });
const client = clientOf(url);
const texts = (answer) => answer.choices.map((choice) => choice.text);

const ALL_FIELDS = {
  best_of: 4,
  echo: true,
  frequency_penalty: 0.5,
  ignore_eos: true,
  logit_bias: { 65: 2 },
  logprobs: 3,
  max_tokens: 12,
  min_p: 0.02,
  n: 2,
  presence_penalty: 0.5,
  prompt: ["one", "two"],
  seed: 9,
  stop: ["~~~~~~"],
  temperature: 1.2,
  top_p: 0.9,
  user: "someone",
};

test("a completion", async () => {
  const answer = await client.completions.create({ model, prompt: "hello", max_tokens: 20, seed: 1 });
  const expected = await whole({ prompt: "hello", max_tokens: 20, seed: 1 });
  assert.deepEqual(texts(answer), texts(expected));
  assert.deepEqual(answer.usage, expected.usage);
});

test("a stream of completions", async () => {
  const body = { prompt: ["hello", "there"], max_tokens: 20, n: 2, seed: 1 };
  const chunks = [];
  const options = { stream: true, stream_options: { include_usage: true } };
  for await (const chunk of await client.completions.create({ model, ...body, ...options })) chunks.push(chunk);
  const expected = await whole(body);
  assert.deepEqual(joined(chunks), texts(expected));
  assert.deepEqual(chunks.at(-1).usage, expected.usage);
});

test("all fields mean what they mean on the wire", async () => {
  const answer = await client.completions.create({ model, ...ALL_FIELDS });
  const expected = await whole(ALL_FIELDS);
  assert.deepEqual(answer.choices, expected.choices);
  assert.equal(answer.choices[0].logprobs.token_logprobs[0], null);
});

test("a stream that is left early can be left", async () => {
  const stream = await client.completions.create({ model, prompt: "x", max_tokens: 2000, stream: true });
  for await (const chunk of stream) {
    assert.ok(chunk.choices.length > 0);
    break;
  }
  assert.ok(stream.controller.signal.aborted);
});

test("the models are listed", async () => {
  const listed = [];
  for await (const entry of client.models.list()) listed.push(entry.id);
  assert.ok(listed.includes(model));
});

test("an error has its class and names its field", async () => {
  const cases = [
    [{ model: "no-such" }, OpenAI.NotFoundError, "model"],
    [{ peft: "no-such" }, OpenAI.NotFoundError, "peft"],
    [{ temperature: 2.5 }, OpenAI.UnprocessableEntityError, "temperature"],
    [{ prompt: ["a", 1] }, OpenAI.UnprocessableEntityError, "prompt[1]"],
    [{ n: 0, stream: true }, OpenAI.UnprocessableEntityError, "n"],
  ];
  for (const [fields, kind, param] of cases) {
    await assert.rejects(client.completions.create({ model, prompt: "x", ...fields }), (error) => {
      assert.ok(error instanceof kind, String(error));
      assert.equal(error.param, param);
      assert.ok(error.error.message && error.message.includes(error.error.message));
      assert.ok(error.requestID);
      return true;
    });
  }
});

test("a full server says so", async () => {
  await whileFull(async () => {
    await assert.rejects(clientOf(narrowUrl).completions.create({ model, prompt: "x" }), (error) => {
      assert.ok(error instanceof OpenAI.InternalServerError);
      assert.equal(error.status, 503);
      assert.ok(error.message.includes(error.error.message));
      assert.ok(Number(error.headers.get("retry-after")) >= 1);
      return true;
    });
  });
});
