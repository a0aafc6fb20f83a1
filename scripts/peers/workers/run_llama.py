"""Run llama.cpp through llama-cpp-python's low-level functions. The high-level class takes one prompt at a time."""

from pathlib import Path
from typing import Any

import llama_cpp as llama
import numpy as np
from protocol import Generate, Prompts, Stopwatch, UnavailableError, serve

CONTEXT = 1024  # GPT-2's positions; each sequence of a batch has room for all of them
MICRO_BATCH = 512  # llama.cpp's default for the tokens that it computes at once


SILENCE = llama.llama_log_callback(lambda *_: None)


def open_model(folder: Path, variant: str, threads: int) -> Generate:
    llama.llama_log_set(SILENCE, None)
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(
        str(folder / f"model-{variant}.gguf").encode(), llama.llama_model_default_params()
    )
    if not model:
        raise UnavailableError("llama.cpp cannot open its model")
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    contexts: dict[int, Any] = {1: new_context(model, 1, threads)}

    def generate(prompts: Prompts, new_tokens: int, watch: Stopwatch) -> Prompts:
        rows = len(prompts)
        if rows not in contexts:
            contexts[rows] = new_context(model, rows, threads)
        context = contexts[rows]
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        batch = llama.llama_batch_init(rows * len(prompts[0]), 0, 1)
        watch.restart()
        chosen: Prompts = [[] for _ in prompts]
        position, step = 0, prompts
        for _ in range(new_tokens):
            last = decode(context, batch, step, position)
            position += len(step[0])
            step = [[int(logits(context, at, vocabulary).argmax())] for at in last]
            watch.token()
            for row, (token,) in zip(chosen, step, strict=True):
                row.append(token)
        llama.llama_batch_free(batch)
        return chosen

    return generate


def new_context(model: Any, rows: int, threads: int) -> Any:
    params = llama.llama_context_default_params()
    params.n_ctx = rows * CONTEXT
    params.n_seq_max = rows
    params.n_batch = rows * CONTEXT
    params.n_ubatch = MICRO_BATCH
    params.n_threads = params.n_threads_batch = threads
    context = llama.llama_init_from_model(model, params)
    if not context:
        raise UnavailableError(f"llama.cpp makes no context for {rows} sequences")
    return context


def decode(context: Any, batch: Any, step: Prompts, position: int) -> list[int]:
    """Run new tokens of all sequences at once; return where in the batch each sequence's last token is."""
    batch.n_tokens = 0
    last = []
    for row, tokens in enumerate(step):
        for offset, token in enumerate(tokens):
            at = batch.n_tokens
            batch.token[at], batch.pos[at] = token, position + offset
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, row
            batch.logits[at] = offset == len(tokens) - 1
            batch.n_tokens += 1
        last.append(batch.n_tokens - 1)
    if llama.llama_decode(context, batch):
        raise UnavailableError("llama.cpp cannot run the batch")
    return last


def logits(context: Any, at: int, vocabulary: int) -> np.ndarray:
    return np.ctypeslib.as_array(llama.llama_get_logits_ith(context, at), (vocabulary,))


if __name__ == "__main__":
    serve(open_model, "llama-cpp-python")
