"""transformers' own GPT-2, opened by transformers' own loader."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

from converter.checkpoint import Checkpoint
from converter.parity.legs import Leg, Step, run
from converter.parity.memory import forget_pages
from converter.parity.truth import to_torch
from converter.weights import Ledger

HALF = (torch.float16, torch.bfloat16)  # dtypes that there is no way back from


class HuggingFace:
    """transformers' GPT-2 with its own reading of the config; loaded once, and turned from one dtype into the next.

    Every source widens to float32 and float64 exactly, and is rounded to 16 bits from there as from the file.

    Where that loader does not find every weight (a checkpoint saved through a wrapper, say), transformers' code is
    given the weights as the ledger maps them, and ``note`` says that the mapping is not proven by a second reader.
    """

    def __init__(self, checkpoint: Checkpoint, ledger: Ledger) -> None:
        self.folder, self.ledger = checkpoint.folder, ledger
        self.files = {weight.file for weight in ledger.weights.values()}
        self.note: str | None = None
        if not checkpoint.transformers_reads:
            self.note = (
                f"transformers does not read {checkpoint.format} checkpoints such as {checkpoint.name}: its code was "
                f"given the weights as gpt2onnx maps them, so the mapping is not independently proven"
            )
        self._model: GPT2LMHeadModel | None = None
        self._upcast: bool | None = None

    def open(self, dtype: torch.dtype, attention: str) -> Leg:
        """The leg in one dtype, with ``eager`` or ``sdpa`` attention; those opened before it end."""
        return partial(run, step_of(self.model(dtype, attention)))

    def model(self, dtype: torch.dtype, attention: str) -> GPT2LMHeadModel:
        """The model itself."""
        # transformers raises in float64 when the flag is set, which is about rounding and not about mathematics.
        upcast = self.ledger.config.reorder_and_upcast_attn and dtype != torch.float64
        narrowed = self._model is not None and self._model.dtype in HALF and self._model.dtype != dtype
        if self._model is None or narrowed or upcast is not self._upcast:
            self._model = None  # it goes before the next one comes
            self._model, self._upcast = self._load(upcast), upcast
        if self._model.dtype != dtype:
            for module in (*self._model.transformer.h, self._model):
                module.to(dtype)
                forget_pages(self.files)  # else what was read stays resident beside what it became
        self._model.set_attn_implementation(attention)
        return self._model

    def close(self) -> None:
        """Forget the model."""
        self._model = None

    def _load(self, upcast: bool) -> GPT2LMHeadModel:
        override = {"reorder_and_upcast_attn": upcast}
        if self.note is None:
            with quiet_transformers():
                model, found = GPT2LMHeadModel.from_pretrained(
                    self.folder, local_files_only=True, output_loading_info=True, dtype=torch.float32, **override
                )
            if not found["missing_keys"]:
                return model.eval()
            missing = sorted(found["missing_keys"])
            self.note = (
                f"transformers does not find {missing[0]} in {self.folder}, {len(missing)} weights in all: its code "
                f"was given them as gpt2onnx maps them, so the mapping is not independently proven"
            )
        return self._mapped(override)

    def _mapped(self, override: dict[str, Any]) -> GPT2LMHeadModel:
        values = asdict(self.ledger.config) | override | {"bos_token_id": None, "eos_token_id": None}
        with quiet_transformers(), torch.device("meta"):
            model = GPT2LMHeadModel(GPT2Config(**values))
        weights = {name: to_torch(weight) for name, weight in self.ledger.weights.items()}
        head = weights.pop("lm_head.weight", weights["wte.weight"])
        state = {f"transformer.{name}": weight for name, weight in weights.items()} | {"lm_head.weight": head}
        model.load_state_dict(state, assign=True)
        return model.to(torch.float32).eval()


def step_of(model: GPT2LMHeadModel) -> Step:
    """One call of transformers' GPT-2."""

    @torch.inference_mode()
    def step(ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, cache: Any, keep: int) -> tuple[np.ndarray, Any]:
        out = model(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            position_ids=torch.tensor(positions),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        return out.logits.float().numpy() if out.logits.dtype.itemsize < 4 else out.logits.numpy(), out.past_key_values

    return step


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """transformers without its bars and warnings; afterwards as talkative as before."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
