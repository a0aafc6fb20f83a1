"""Run transformers' own GPT-2, opened by transformers' own loader."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np
import torch
import transformers
from transformers.utils import logging

from converter.checkpoint.config import ALIASES
from converter.checkpoint.source import Checkpoint
from converter.parity.legs.cases import Case
from converter.parity.legs.heads import STACKED
from converter.parity.legs.leg import Leg, Step, run
from converter.parity.legs.memory import forget_pages
from converter.parity.legs.truth import to_torch
from converter.weights.ledger import Ledger
from converter.weights.table import TABLE
from reference.config import HEAD_FIELDS
from reference.head import HEADS, LM

HALF = (torch.float16, torch.bfloat16)  # they lose digits: the model must be loaded again after them


class HuggingFace:
    """transformers' GPT-2 with its own reading of the config. It is loaded once, and converted from one dtype to the
    next.

    Every source widens to float32 and float64 exactly. Rounding to 16 bits gives the same from there as from the file.

    If transformers' loader does not find every weight (a checkpoint saved through a wrapper, say), transformers' code
    gets the weights as the ledger maps them. ``note`` then says that no second reader proves the mapping.
    """

    def __init__(self, checkpoint: Checkpoint, ledger: Ledger) -> None:
        self.folder, self.values, self.ledger = checkpoint.folder, checkpoint.config_values, ledger
        self.files = {weight.file for weight in ledger.weights.values()}
        self.head = ledger.config.head
        self.klass = getattr(transformers, HEADS[self.head].class_name)
        self.note: str | None = None
        if not checkpoint.transformers_reads:
            self.note = (
                f"transformers does not read {checkpoint.format} checkpoints such as {checkpoint.name}: its code was "
                f"given the weights as gpt2onnx maps them, so the mapping is not independently proven"
            )
        self._model: transformers.PreTrainedModel | None = None
        self._upcast: bool | None = None

    def open(self, dtype: torch.dtype, attention: str) -> Leg:
        """Return the leg in one dtype, with ``eager`` or ``sdpa`` attention. Legs that were opened before can no longer
        be used.
        """
        model = self.model(dtype, attention)
        return partial(run, step_of(model)) if self.head == LM else partial(answer, model, self.head)

    def model(self, dtype: torch.dtype, attention: str) -> transformers.PreTrainedModel:
        """Return the model in one dtype, with one kind of attention."""
        # With this flag transformers raises an error in float64. The flag changes the rounding, not the mathematics.
        upcast = self.ledger.config.reorder_and_upcast_attn and dtype != torch.float64
        narrowed = self._model is not None and self._model.dtype in HALF and self._model.dtype != dtype
        if self._model is None or narrowed or upcast is not self._upcast:
            self._model = None  # free it before the next one is loaded
            self._model, self._upcast = self._load(upcast), upcast
        if self._model.dtype != dtype:
            for module in (*self._model.base_model.h, self._model):
                module.to(dtype)
                forget_pages(self.files)  # else the file's pages stay in memory beside the copy
        self._model.set_attn_implementation(attention)
        return self._model

    def close(self) -> None:
        """Drop the model."""
        self._model = None

    def _load(self, upcast: bool) -> transformers.PreTrainedModel:
        config = self._config()
        config.reorder_and_upcast_attn = upcast
        config._attn_implementation = "eager"  # even if config.json asks for another
        if self.note is None:
            model, fault = self._from_pretrained(config)
            if model is not None:
                return model.eval()
            self.note = (
                f"transformers {fault}: its code was given the weights as gpt2onnx maps them, so the mapping is not "
                f"independently proven"
            )
        return self._mapped(config)

    def _config(self) -> transformers.GPT2Config:
        """Return transformers' own reading of the config keys that shape the model; other keys are left out.

        The others change no number, right or wrong: they say how texts are generated, or which attention is used.
        """
        config = self.ledger.config
        shaping = {field.name: field.type for field in fields(config) if field.name not in HEAD_FIELDS}
        values = {key: value for key, value in self.values.items() if key in shaping or key in ALIASES}
        values |= {key: float(values[key]) for key in values if shaping.get(key) == "float"}  # it refuses 0 for 0.0
        values |= {key: getattr(config, key) for key in HEAD_FIELDS if key != "head"}
        return transformers.GPT2Config(**values, bos_token_id=None, eos_token_id=None)

    def _from_pretrained(self, config: transformers.GPT2Config) -> tuple[transformers.PreTrainedModel | None, str]:
        """Return the model as transformers' loader opens it; or None, and what the loader cannot do."""
        try:
            with quiet_transformers():
                model, found = self.klass.from_pretrained(
                    self.folder,
                    config=config,
                    generation_config=transformers.GenerationConfig(),  # the folder's may be invalid
                    local_files_only=True,
                    output_loading_info=True,
                    dtype=torch.float32,
                )
        except Exception as error:  # its loader raises many kinds for a file that it does not know
            return None, f"cannot open {self.folder} ({type(error).__name__})"
        missing = sorted(found["missing_keys"])
        if missing:
            return None, f"does not find {missing[0]} in {self.folder}, {len(missing)} weights in all"
        return model, ""

    def _mapped(self, config: transformers.GPT2Config) -> transformers.PreTrainedModel:
        config.tie_word_embeddings = self.ledger.config.tie_word_embeddings
        with quiet_transformers(), torch.device("meta"):
            model = self.klass(config)
        body = f"{model.base_model_prefix}." if not HEADS[self.head].bare else ""
        given = {name: to_torch(weight) for name, weight in self.ledger.weights.items()}
        heads = {weight.name for weight in TABLE if weight.heads}
        state = {name if name in heads else f"{body}{name}": weight for name, weight in given.items()}
        if isinstance(model, (transformers.GPT2LMHeadModel, transformers.GPT2DoubleHeadsModel)):
            state.setdefault("lm_head.weight", given["wte.weight"])
        model.load_state_dict(state, assign=True)
        return model.to(torch.float32).eval()


@torch.inference_mode()
def answer(model: transformers.PreTrainedModel, head: str, case: Case) -> np.ndarray:
    """Return the output of a head other than the language model's, ``[batch, positions, numbers]``.

    Position ids are fed, because transformers would count padding too. If ``pad_token_id`` is not a token, transformers
    classifies one text at a time, at its last position, whatever the mask says. Rows are then fed one by one.
    """
    fed = {name: torch.tensor(getattr(case, name)) for name in ("input_ids", "attention_mask", "position_ids")}
    if HEADS[head].pools and not HEADS[head].compares and not knows_padding(model):
        rows = [
            {name: x[i][case.attention_mask[i] > 0][None] for name, x in fed.items()} for i in range(len(case.real))
        ]
        return np.concatenate([_array(head, model(**row)) for row in rows])
    if HEADS[head].compares:
        fed |= {name: fed[name][None] for name in ("input_ids", "attention_mask")}
        fed["mc_token_ids"] = torch.tensor(case.last)[None]
    return _array(head, model(**fed))


def knows_padding(model: transformers.PreTrainedModel) -> bool:
    """Tell whether ``pad_token_id`` is a token, with which a batch can be filled up."""
    return model.config.pad_token_id in range(model.config.vocab_size)


def _array(head: str, outputs: Any) -> np.ndarray:
    """Return the outputs in the one form for all heads, no narrower than float32."""
    widened = {n: x.float() if x.dtype.itemsize < 4 else x for n, x in outputs.items() if isinstance(x, torch.Tensor)}
    return STACKED[head]({name: x.numpy() for name, x in widened.items()})


def step_of(model: transformers.PreTrainedModel) -> Step:
    """Return a function that computes one step with transformers' GPT-2."""

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
    """Turn off the progress bars and warnings of transformers in a ``with`` block."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
