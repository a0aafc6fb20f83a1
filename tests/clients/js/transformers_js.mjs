// What transformers.js is asked, in Node and in a browser alike.

/**
 * A function for each thing that is asked.
 *
 * @param library transformers.js: the package's module in Node, its bundle in a browser.
 * @param request `name`, as `from_pretrained` takes it; `encode`: texts, and `decode`: ids; or `dtype`, `texts` and `new_tokens`.
 */
export async function questions({ AutoModelForCausalLM, AutoTokenizer, pipeline }, request) {
  const tokenizer = await AutoTokenizer.from_pretrained(request.name);
  if (request.encode) {
    return {
      encode: async () => request.encode.map((text) => tokenizer.encode(text)),
      decode: async () => request.decode.map((ids) => tokenizer.decode(ids)),
    };
  }
  const { dtype, texts } = request;
  const options = { max_new_tokens: request.new_tokens, do_sample: false };
  const model = await AutoModelForCausalLM.from_pretrained(request.name, { dtype });
  const generate = async (prompts, more = {}) => {
    const inputs = tokenizer(prompts, { padding: true });
    const done = await model.generate({ ...inputs, ...options, ...more });
    return done.tolist().map((row) => row.slice(inputs.input_ids.dims[1]).map(Number));
  };
  return {
    single: async () => {
      const rows = [];
      for (const text of texts.single) {
        rows.push(...(await generate([text])));
      }
      return rows;
    },
    batch: () => generate(texts.batch),
    beams: () => generate(texts.beams, { num_beams: request.beams }),
    pipeline: async () => {
      const write = await pipeline("text-generation", request.name, { dtype });
      const done = await write(texts.batch, { ...options, return_full_text: false });
      return done.map(([row]) => row.generated_text);
    },
  };
}
