"""Run gpt2onnx in its own runtime."""

from pathlib import Path
from typing import Any

from protocol import Generate, Prompts, Stopwatch, UnavailableError, serve

from converter import load

FILES = {
    "fp32": "onnx/model.onnx",
    "fp16": "onnx/model_fp16.onnx",
    "int8": "onnx/model_int8.onnx",
    "int4": "onnx/model_q4.onnx",
}


def open_model(folder: Path, variant: str, threads: int) -> Generate:
    precision, *rest = variant.split()
    if not (folder / FILES[precision]).is_file():
        raise UnavailableError(f"this version of gpt2onnx wrote no {FILES[precision]}")
    options: dict[str, Any] = {} if precision == "fp32" else {"precision": precision}
    if rest:  # an older version has no such options
        options |= {"provider": rest[0], "cuda_graphs": "graphs" in rest}
    model = load(folder, threads=threads, large_pages=True, **options)
    model.token_ids.pop("eos_token_id", None)  # so that all rows have the same length
    vars(model)["tokenizer"] = None  # token ids in and out, as for the others, and no text

    def generate(prompts: Prompts, new_tokens: int, watch: Stopwatch) -> Prompts:
        done = model.generate(prompts, max_new_tokens=new_tokens)
        watch.first, watch.last = done.prefill_seconds, done.prefill_seconds + done.decode_seconds
        return done.new_ids

    return generate


if __name__ == "__main__":
    serve(open_model, "onnxruntime")
