"""The ledger: it compares a source's tensors with the table of GPT-2's parameters, and accounts for each tensor."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import NoReturn

from converter.checkpoint.foreign import IN_SHARDS
from converter.checkpoint.names import canonical, outer_name, outer_names
from converter.checkpoint.open import open_checkpoint
from converter.checkpoint.options import SourceOptions
from converter.checkpoint.source import Checkpoint
from converter.checkpoint.tensor import LazyTensor
from converter.errors import CheckpointError
from converter.weights.table import BUFFERS, HEAD_WEIGHTS, TABLE, VOCABULARY, Layout, parameters
from reference.config import GPT2Config

# Narrower types are widened, which is exact; nothing wider is narrowed behind the user's back.
WEIGHT_DTYPES = ("float32", "float16", "bfloat16")

PIECE_BYTES = 8 * 1024 * 1024  # of two tensors that are compared

# Of tensors that nobody knows, this many are named, and no more globs are advised that would omit them.
NAMES_SHOWN = 10
MOST_GLOBS = 4

_LAYER = re.compile(r"^h\.(0|[1-9][0-9]*)\.")
_NUMBER = re.compile(r"(?<=\.)[0-9]+(?=\.)")
_LORA = re.compile(r"\.(base_layer|lora_[A-Za-z_]+|modules_to_save|original_module)\.")


class Role(StrEnum):
    """What became of a tensor."""

    USED = "used"
    TIED = "tied"  # lm_head.weight with the bytes of wte.weight
    BUFFER = "buffer"
    IGNORED = "ignored"  # by --ignore
    OTHER_HEAD = "other head"  # than the one that was asked for
    UNKNOWN = "unknown"  # which no ledger has in the end


@dataclass(frozen=True)
class Entry:
    """What became of one tensor of the source; ``name`` is its canonical name."""

    tensor: LazyTensor
    name: str
    role: Role
    layout: Layout | None = None


@dataclass(frozen=True)
class Ledger:
    """Every tensor of a source, and what became of it.

    Attributes:
        config: the architecture, with ``tie_word_embeddings`` as the tensors have it.
        entries: one for each tensor of the source, in its order.
        weights: canonical name → tensor, in the table's order.
        warnings: sentences for the user.
    """

    config: GPT2Config
    entries: tuple[Entry, ...]
    weights: Mapping[str, LazyTensor]
    warnings: tuple[str, ...] = field(default=())

    @property
    def parameters(self) -> int:
        """Return the number of parameters; a tied head counts once."""
        return sum(tensor.size for tensor in self.weights.values())

    @property
    def per_graph(self) -> tuple[Ledger, ...]:
        """Return a ledger for each graph that the model becomes: two for double heads, else this one alone."""
        return tuple(self._part(head) for head in self.config.head_spec.graphs) or (self,)

    def _part(self, head: str) -> Ledger:
        config = replace(self.config, head=head)
        return replace(self, config=config, weights={name: self.weights[name] for name, *_ in parameters(config)})


def read_source(source: str | os.PathLike[str], asked: SourceOptions, bars: bool = False) -> tuple[Checkpoint, Ledger]:
    """Open a checkpoint and account for every tensor of it; see ``open_checkpoint`` and ``account``.

    Raises:
        ConfigError, CheckpointError: it is not a GPT-2, is incomplete, or is damaged.
    """
    checkpoint = open_checkpoint(source, asked, bars)
    return checkpoint, account(checkpoint, asked.ignore)


def account(checkpoint: Checkpoint, ignore: Iterable[str] = ()) -> Ledger:
    """Compare every tensor of ``checkpoint`` with the table.

    Args:
        ignore: globs of tensors to leave aside, matched against the source's name and the canonical one.

    Raises:
        CheckpointError: a tensor is missing, surplus, misshapen, of an unusable type, or there twice.
    """
    warnings: list[str] = []
    globs = (ignore,) if isinstance(ignore, str) else tuple(ignore)
    entries, found = _sort(checkpoint, globs)
    entries = _head_for_embedding(checkpoint.config, entries, found)
    _refuse_unknown(checkpoint, entries, found)
    checkpoint = _with_head(checkpoint, found)
    config = checkpoint.config
    if checkpoint.asked_head:
        entries = _leave_other_heads(config, entries, found)
    head = found.get("lm_head.weight")
    if head is not None and config.head_spec.predicts:
        tied = "wte.weight" in found and same_bytes(head, found["wte.weight"])
        if not tied and config.tie_word_embeddings:
            warnings.append(
                f"{checkpoint.config_file} ties lm_head.weight to wte.weight, but the checkpoint holds a "
                f"different {head.name}; it is used, as transformers does"
            )
        config = replace(config, tie_word_embeddings=tied)
        if tied:
            found.pop("lm_head.weight")
            entries = [replace(e, role=Role.TIED) if e.tensor is head else e for e in entries]
    weights = _match(checkpoint, config, found)
    return Ledger(config, tuple(entries), weights, tuple(warnings))


def _with_head(checkpoint: Checkpoint, found: Mapping[str, LazyTensor]) -> Checkpoint:
    """Return the checkpoint with the head that its tensors show, if neither the user nor the config names one."""
    heads = {head for name, head in HEAD_WEIGHTS.items() if name in found}
    return checkpoint if checkpoint.states_head or len(heads) != 1 else checkpoint.with_head(heads.pop())


def _leave_other_heads(config: GPT2Config, entries: list[Entry], found: dict[str, LazyTensor]) -> list[Entry]:
    """Remove from ``found`` what belongs to other heads than the one that was asked for."""
    surplus = {weight.name for weight in TABLE if not weight.belongs_to(config)} & found.keys()
    for name in surplus:
        del found[name]
    return [replace(e, role=Role.OTHER_HEAD) if e.role is Role.USED and e.name in surplus else e for e in entries]


def _head_for_embedding(config: GPT2Config, entries: list[Entry], found: dict[str, LazyTensor]) -> list[Entry]:
    """Take the head for the embedding, where one tensor that is both was saved under the head's name alone.

    safetensors' ``save_model`` does so: of two names for one tensor it keeps the first in the alphabet.
    """
    head = found.get("lm_head.weight")
    if head is None or "wte.weight" in found or not config.tie_word_embeddings:
        return entries
    found["wte.weight"] = found.pop("lm_head.weight")
    return [replace(e, name="wte.weight", layout=Layout.EMBEDDING) if e.tensor is head else e for e in entries]


def _sort(checkpoint: Checkpoint, globs: tuple[str, ...]) -> tuple[list[Entry], dict[str, LazyTensor]]:
    """Decide by its name alone what each tensor is."""
    known = {weight.name: weight.layout for weight in TABLE}
    entries: list[Entry] = []
    found: dict[str, LazyTensor] = {}
    outer = outer_name(n for n, t in checkpoint.tensors.items() if not _is_among(globs, t.name, canonical(n)))
    for source_name, tensor in checkpoint.tensors.items():
        name = canonical(source_name, outer)
        pattern = _LAYER.sub("h.{i}.", name)
        if _is_among(globs, tensor.name, name):
            entries.append(Entry(tensor, name, Role.IGNORED))
        elif pattern in BUFFERS:
            entries.append(Entry(tensor, name, Role.BUFFER))
        elif pattern not in known:
            entries.append(Entry(tensor, source_name, Role.UNKNOWN))
        elif name in found:
            raise CheckpointError(
                f"{checkpoint.folder} holds {name} twice: as {found[name].name} and as {tensor.name}; omit one of "
                f"them with --ignore"
            )
        else:
            entries.append(Entry(tensor, name, Role.USED, known[pattern]))
            found[name] = tensor
    return entries, found


def _is_among(globs: Iterable[str], *names: str) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs for name in names)


def _refuse_unknown(checkpoint: Checkpoint, entries: Iterable[Entry], found: Mapping[str, LazyTensor]) -> None:
    """Refuse tensors that are no part of a GPT-2."""
    unknown = [entry.name for entry in entries if entry.role is Role.UNKNOWN]
    if not unknown:
        return
    more = ", ".join(unknown[1:NAMES_SHOWN])
    beyond = f" and {len(unknown) - NAMES_SHOWN} more" if len(unknown) > NAMES_SHOWN else ""
    others = f" (also {more}{beyond})" if more else ""
    known = [entry for entry in entries if entry.role is not Role.UNKNOWN]
    missing = next((name for name, *_ in parameters(checkpoint.config) if name not in found), None)
    raise CheckpointError(
        f"{checkpoint.tensors[unknown[0]].file}: tensor {unknown[0]}{others} is not part of a GPT-2; "
        f"{_mend(unknown, known, missing)}"
    )


def _mend(unknown: list[str], known: Iterable[Entry], missing: str | None) -> str:
    """Return what to do about unknown tensors. Advice to omit them is given only if it leaves a whole model.

    Args:
        missing: a weight that the model needs and the source lacks; None if it lacks none.
    """
    if any(_LORA.search(name) for name in unknown):
        return "a LoRA that is not merged lies there: save what peft's merge_and_unload() returns"
    models = outer_names(unknown)
    if missing is not None and len(models) > 1:
        aside = _options([f"{model}*" for model in models[1:]])
        return f"there are {len(models)} models, under {' and '.join(models)}: choose one, as with {aside}"
    if missing is not None:
        return f"and {missing} is missing: these are weights of something else, or of a GPT-2 by names of its own"
    globs = _globs(unknown, known)
    return f"omit it with {_options(globs)} if the model does not need it" if globs else "it was built on one"


def _options(globs: Iterable[str]) -> str:
    return " ".join(f"--ignore '{glob}'" for glob in globs)


def _globs(names: list[str], known: Iterable[Entry]) -> list[str]:
    """Return a few globs that match all of ``names`` and none of what is known; none if there are no such globs.

    One for all of them if they share a module, else one for each name without the number of its layer.
    """
    shared = os.path.commonprefix(names).rpartition(".")[0]  # noqa: RUF071 - names, not paths
    layers = list(dict.fromkeys(_NUMBER.sub("*", name) if len(names) > 1 else name for name in names))
    for globs in ([f"{shared}.*"] if len(names) > 1 and shared else [], layers):
        if 0 < len(globs) <= MOST_GLOBS and not any(_is_among(globs, e.tensor.name, e.name) for e in known):
            return globs
    return []


def _match(checkpoint: Checkpoint, config: GPT2Config, found: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Remove from ``found`` what the architecture needs, and return it in the table's order."""
    left = dict(found)
    weights: dict[str, LazyTensor] = {}
    for name, _layout, shape in parameters(config):
        tensor = left.pop(name, None)
        if tensor is None:
            _refuse_missing(checkpoint, name, shape, found)
        if tensor.shape != shape:
            raise CheckpointError(
                f"{tensor.file}: tensor {tensor.name} is {list(tensor.shape)}; config.json asks for {list(shape)}"
                f"{_cause(name, shape, config, found)}"
            )
        if tensor.dtype not in WEIGHT_DTYPES:
            raise CheckpointError(
                f"{tensor.file}: tensor {tensor.name} is {tensor.dtype}; expected {', '.join(WEIGHT_DTYPES)}: "
                f"save the model in one of these"
            )
        weights[name] = tensor
    if left:
        name, tensor = next(iter(left.items()))
        raise CheckpointError(
            f"{tensor.file}: tensor {tensor.name} is beyond what config.json describes (n_layer {config.n_layer}, "
            f"activation_function {config.activation_function!r}, head {config.head}); --head makes another head, "
            f"--ignore {name} leaves it aside"
        )
    return weights


def _refuse_missing(
    checkpoint: Checkpoint, name: str, shape: tuple[int, ...], found: Mapping[str, LazyTensor]
) -> NoReturn:
    mend = "the checkpoint is incomplete or config.json is not its own"
    if name == "wte.weight" and "lm_head.weight" in found:
        mend = "if lm_head.weight is both, set tie_word_embeddings to true there"
    raise CheckpointError(
        f"{checkpoint.folder / checkpoint.weight_file} has no tensor {name} {list(shape)}, which config.json "
        f"asks for; {mend}"
    )


def _cause(name: str, expected: tuple[int, ...], config: GPT2Config, found: Mapping[str, LazyTensor]) -> str:
    """Return what a shape tells of its cause, as the end of a sentence; nothing if it tells nothing."""
    shape, heads = found[name].shape, config.n_head
    if 0 in shape:
        return f": {IN_SHARDS}"
    rows = {found[matrix].shape[:1] for matrix in VOCABULARY if matrix in found}
    if len(shape) != 2 or len(expected) != 2:
        return ""
    if name in VOCABULARY and shape[1] == expected[1] and len(rows) == 1:
        return f": the vocabulary was resized, so set vocab_size to {shape[0]} there"
    if name == "wpe.weight" and shape[1] == expected[1]:
        return f": set n_positions to {shape[0]} there"
    if name in ("score.weight", "classifier.weight") and shape[1] == expected[1]:
        return f": set num_labels to {shape[0]} there, and let id2label name as many or none"
    if shape == expected[::-1]:
        return ": it is transposed, as in nn.Linear, so save each projection as [in, out], as transformers' Conv1D does"
    left, odd = divmod(shape[1] * heads, expected[1])
    if name.endswith("attn.c_attn.weight") and shape[0] == expected[0] and left < heads and not odd:
        return f": {left} of {heads} attention heads are left, so convert the model as it was before it was pruned"
    return ""


def same_bytes(a: LazyTensor, b: LazyTensor) -> bool:
    """Tell whether two tensors are equal bit for bit. They are read piece by piece, unless they are the same bytes."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    if a.in_file and b.in_file and (a.file, a.offset) == (b.file, b.offset):
        return True
    return all(x == y for x, y in zip(_pieces(a), _pieces(b), strict=True))


def _pieces(tensor: LazyTensor) -> Iterator[bytes]:
    """Yield a tensor's bytes in pieces of one size, however it is stored."""
    held = b""
    for chunk in tensor.chunks():
        held += chunk.tobytes()
        while len(held) >= PIECE_BYTES:
            yield held[:PIECE_BYTES]
            held = held[PIECE_BYTES:]
    yield held
