"""Run the checkpoint that ships with the project, and record every value inside it."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from converter.checkpoint.open import open_checkpoint
from converter.data import CHECKPOINT
from converter.weights.ledger import Ledger, account
from reference.config import GPT2Config
from reference.model import GPT2

if TYPE_CHECKING:
    from converter.parity.report.report import Report

SENTENCE = 'When an exception is raised, the interpreter looks for a matching "except"'
PRECISIONS = ("fp32", "fp16", "int8", "int4")

torch.set_num_threads(1)  # in so small a model, threads only wait for each other


@dataclass(frozen=True)
class Run:
    """All values in the from-scratch GPT-2 in float64, while it reads ``SENTENCE``.

    Attributes:
        model: the model.
        tokens: the tokens of the sentence, with ``␣`` for a blank.
        ids: the ids of the tokens.
        values: path of a module → its output, without the cache.
        logits: ``[1, S, V]``.
    """

    model: GPT2
    tokens: list[str]
    ids: list[int]
    values: dict[str, Tensor]
    logits: Tensor

    @property
    def config(self) -> GPT2Config:
        """Return the architecture."""
        return self.model.config


@functools.cache
def tokenizer() -> Tokenizer:
    """Return the checkpoint's tokenizer."""
    return Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))


def shown(token: int) -> str:
    """Return a token as text, with blanks made visible."""
    return tokenizer().decode([token]).replace(" ", "␣").replace("\n", "⏎")


@functools.cache
def run() -> Run:
    """Return the run, which is done once."""
    model = GPT2.from_pretrained(CHECKPOINT, dtype=torch.float64)
    ids = tokenizer().encode(SENTENCE).ids
    values, logits = observe(model, ids)
    return Run(model, [shown(i) for i in ids], ids, values, logits)


@torch.no_grad()
def observe(model: GPT2, ids: list[int]) -> tuple[dict[str, Tensor], Tensor]:
    """Return what each module puts out for a text, and the logits."""
    values: dict[str, Tensor] = {}

    def keep(path: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            values[path] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [module.register_forward_hook(keep(path)) for path, module in model.named_modules() if path]
    try:
        logits = model(torch.tensor([ids])).logits
    finally:
        for handle in handles:
            handle.remove()
    return values, logits


@functools.cache
def ledger() -> Ledger:
    """Return the ledger of the checkpoint's tensors."""
    return account(open_checkpoint(CHECKPOINT))


@functools.cache
def folder() -> Path:
    """Return a model folder with every precision."""
    from converter.folder.convert import convert

    out = Path(mkdtemp(prefix="gpt2onnx-docs-")) / "tiny-onnx"
    convert(CHECKPOINT, out, precision=PRECISIONS)
    return out


@functools.cache
def inside() -> dict[str, np.ndarray]:
    """Return what a graph returns of ``SENTENCE`` that was converted with hidden states and attention."""
    from converter.folder.convert import convert
    from converter.runtime.opening import load

    out = Path(mkdtemp(prefix="gpt2onnx-docs-")) / "inside"
    convert(CHECKPOINT, out, outputs="hidden_states,attentions")
    return load(out).outputs(run().ids)


@functools.cache
def report() -> Report:
    """Return the report of a check of that folder, operation by operation."""
    import transformers

    from converter.parity.check import check

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return check(CHECKPOINT, folder(), layers=True, own_process=True)
