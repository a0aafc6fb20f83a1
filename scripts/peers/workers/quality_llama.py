"""Convert the bundled checkpoint with llama.cpp, and write the logits that llama.cpp computes.

python quality_llama.py SCRIPT SOURCE OUT VARIANT IDS.npy LOGITS.npy
"""

import sys
from pathlib import Path

import llama_cpp as llama
import numpy as np
from run_llama import logits, new_context

THREADS = 1


def main(script: Path, source: str, out: Path, variant: str, ids_file: str, logits_file: str) -> None:
    sys.path.insert(0, str(script.parent))
    from conversion import base

    # The converter refuses a tokenizer that it does not know. Only ids are fed here, so any known one will do.
    base.TextModel.get_vocab_base_pre = lambda *_: "gpt-2"
    convert(script, source, out, variant)
    rows = np.load(ids_file)
    llama.llama_backend_init()
    file = out / f"model-{variant}.gguf"
    model = llama.llama_model_load_from_file(str(file).encode(), llama.llama_model_default_params())
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    context = new_context(model, 1, THREADS)
    np.save(logits_file, np.stack([run(context, row, vocabulary) for row in rows]))


def convert(script: Path, source: str, out: Path, variant: str) -> None:
    import convert_hf_to_gguf
    from convert_llama import quantize

    out.mkdir(parents=True, exist_ok=True)
    whole = out / "model-f32.gguf"
    sys.argv = [str(script), source, "--outfile", str(whole), "--outtype", "f32"]
    convert_hf_to_gguf.main()
    if variant != "f32":
        quantize(whole, out, variant)


def run(context: object, row: np.ndarray, vocabulary: int) -> np.ndarray:
    """Return the logits ``[tokens, vocab_size]``, float32, of a row of ids ``[tokens]``."""
    llama.llama_memory_clear(llama.llama_get_memory(context), True)
    batch = llama.llama_batch_init(len(row), 0, 1)
    batch.n_tokens = len(row)
    for at, token in enumerate(row):
        batch.token[at], batch.pos[at], batch.logits[at] = int(token), at, True
        batch.n_seq_id[at], batch.seq_id[at][0] = 1, 0
    if llama.llama_decode(context, batch):
        sys.exit("llama.cpp cannot run the batch")
    found = np.stack([logits(context, at, vocabulary).copy() for at in range(len(row))])
    llama.llama_batch_free(batch)
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), *sys.argv[4:])
