// ONNX Runtime's own Node API, and the loop that a user writes who has nothing else.

import { InferenceSession, Tensor } from "onnxruntime-node";
import { join } from "node:path";
import { reply } from "./reply.mjs";
import { serve } from "./serve.mjs";

await serve((request) => reply(questions(request)));

async function questions({ folder, model, prompts, new_tokens }) {
  const session = await InferenceSession.create(join(folder, model));
  const generate = (rows) => greedy(session, rows, new_tokens);
  return {
    single: async () => {
      const rows = [];
      for (const prompt of prompts.single) {
        rows.push(...(await generate([prompt])));
      }
      return rows;
    },
    batch: () => generate(prompts.batch),
  };
}

/** The likeliest tokens after each prompt, which are padded on the left. */
async function greedy(session, prompts, newTokens) {
  const longest = Math.max(...prompts.map((prompt) => prompt.length));
  const padding = prompts.map((prompt) => Array(longest - prompt.length).fill(0));
  const mask = prompts.map((prompt, row) => [...padding[row], ...prompt.map(() => 1)]);
  const chosen = prompts.map(() => []);
  let ids = prompts.map((prompt, row) => [...padding[row], ...prompt]);
  let positions = mask.map((row) => row.map((_, i) => Math.max(sum(row.slice(0, i + 1)) - 1, 0)));
  let cache = empty(session, prompts.length);
  for (let step = 0; step < newTokens; step++) {
    const outputs = await session.run({
      input_ids: int64(ids),
      attention_mask: int64(mask),
      position_ids: int64(positions),
      ...cache,
    });
    ids = likeliest(outputs.logits).map((id) => [id]);
    positions = positions.map((row) => [row.at(-1) + 1]);
    ids.forEach(([id], row) => {
      chosen[row].push(id);
      mask[row].push(1);
    });
    const names = Object.keys(cache);
    cache = Object.fromEntries(names.map((name) => [name, outputs[name.replace("past_key_values", "present")]]));
  }
  return chosen;
}

/** `past_key_values.*` without a position. */
function empty(session, batch) {
  const caches = session.inputMetadata.filter(({ name }) => name.startsWith("past_key_values"));
  return Object.fromEntries(
    caches.map(({ name, type, shape: [, heads, , width] }) => [
      name,
      new Tensor(type, type === "float16" ? new Uint16Array() : new Float32Array(), [batch, heads, 0, width]),
    ]),
  );
}

/** The best token at the last position of each row of logits [batch, positions, tokens]. */
function likeliest({ data, dims: [batch, positions, size] }) {
  return Array.from({ length: batch }, (_, row) => {
    const last = data.subarray(((row + 1) * positions - 1) * size, (row + 1) * positions * size);
    return last.reduce((best, value, id) => (value > last[best] ? id : best), 0);
  });
}

function int64(rows) {
  return new Tensor("int64", BigInt64Array.from(rows.flat(), BigInt), [rows.length, rows[0].length]);
}

function sum(values) {
  return values.reduce((total, value) => total + value, 0);
}
