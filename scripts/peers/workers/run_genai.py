"""Run onnxruntime-genai: its C++ loop, on our folder or mobius's."""

import json
from importlib import metadata
from pathlib import Path

import numpy as np
import onnxruntime_genai as genai
from protocol import Generate, Prompts, Stopwatch, UnavailableError, serve

FILES = {
    "fp32": None,
    "fp16": "onnx/model_fp16.onnx",
    "int8": "onnx/model_int8.onnx",
}  # None: the graph in the folder's genai_config.json


def open_model(folder: Path, variant: str, threads: int) -> Generate:
    decoder: dict[str, object] = {"session_options": {"intra_op_num_threads": threads}}
    precision, *provider = variant.split()
    file = FILES[precision]
    if file is not None:
        if not (folder / file).is_file():
            raise UnavailableError(f"this version of gpt2onnx wrote no {file}")
        decoder["filename"] = file
    config = genai.Config(str(folder))
    for name in provider:
        config.append_provider(name)
    # mobius writes "gpt2", for which genai expects a cache of another shape and does not run.
    config.overlay(json.dumps({"model": {"type": "decoder", "decoder": decoder}}))
    model = genai.Model(config)

    def generate(prompts: Prompts, new_tokens: int, watch: Stopwatch) -> Prompts:
        ids = np.array(prompts, np.int32)
        length = ids.shape[1] + new_tokens
        options = genai.GeneratorParams(model)
        options.set_search_options(batch_size=len(ids), min_length=length, max_length=length, do_sample=False)
        generator = genai.Generator(model, options)
        generator.append_tokens(ids)
        for _ in range(new_tokens):
            generator.generate_next_token()
            watch.token()
        return [[int(i) for i in generator.get_sequence(row)[ids.shape[1] :]] for row in range(len(ids))]

    return generate


if __name__ == "__main__":
    peers = [name for name in ("mobius-onnx",) if any(metadata.distributions(name=name))]
    serve(open_model, "onnxruntime-genai", "onnxruntime", *peers)
