"""onnxruntime-genai: its C++ loop, from the folder's own genai_config.json."""

import json

import numpy as np
import onnxruntime_genai as genai
from protocol import Answers, Prompts, Request, serve, usual


def answers(request: Request) -> Answers:
    config = genai.Config(request["folder"])
    if request["precision"] != "fp32":  # which is the one that a folder of several names
        config.overlay(json.dumps({"model": {"decoder": {"filename": request["model"]}}}))
    model = genai.Model(config)
    tokenizer = genai.Tokenizer(model)
    new_tokens = request["new_tokens"]

    def generator(batch: int, length: int, beams: int = 1) -> genai.Generator:
        options = genai.GeneratorParams(model)
        options.set_search_options(batch_size=batch, num_beams=beams, max_length=length, do_sample=False)
        return genai.Generator(model, options)

    def generate(prompts: Prompts, beams: int) -> Prompts:
        if len(prompts) == 1:
            ids = np.array(prompts, np.int32)
        else:  # padded as it pads them
            ids = tokenizer.encode_batch(request["texts"]["batch"]).as_numpy()
        running = generator(len(prompts), ids.shape[1] + new_tokens, beams)
        running.append_tokens(ids)
        while not running.is_done():
            running.generate_next_token()
        return [[int(i) for i in running.get_sequence(row)[ids.shape[1] :]] for row in range(len(prompts))]

    def continued(rewind: bool) -> Prompts:
        """A second turn after the first one, in the same cache, which lacks the last token that was chosen."""
        turns = request["prompts"]["continued"]
        each = new_tokens // len(turns)
        running = generator(1, sum(map(len, turns)) + new_tokens)
        found = []
        for turn in turns:
            said = [int(i) for i in running.get_sequence(0)] if found and rewind else []
            if said:
                running.rewind_to(len(said) - 2)  # by one alone it refuses to
            running.append_tokens(np.array([said[-2:] + turn], np.int32))
            for _ in range(each):
                running.generate_next_token()
            found.append([int(i) for i in running.get_sequence(0)[-each:]])
        return found

    return {
        **usual(request, generate),
        "continued": lambda: continued(rewind=False),
        "continued, rewound by 2": lambda: continued(rewind=True),
    }


if __name__ == "__main__":
    serve(answers)
