"""The ledger: it compares a source's tensors with the table of GPT-2's parameters, and accounts for each tensor."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from fnmatch import fnmatchcase

from converter.checkpoint.open import open_checkpoint
from converter.checkpoint.options import SourceOptions
from converter.checkpoint.source import Checkpoint
from converter.checkpoint.tensor import LazyTensor
from converter.errors import CheckpointError
from converter.weights.table import BUFFERS, HEAD_WEIGHTS, TABLE, Layout, canonical, parameters
from reference.config import GPT2Config

# Narrower types are widened, which is exact; nothing wider is narrowed behind the user's back.
WEIGHT_DTYPES = ("float32", "float16", "bfloat16")

PIECE_BYTES = 8 * 1024 * 1024  # of two tensors that are compared

# Of tensors that nobody knows, this many are named.
NAMES_SHOWN = 10

_LAYER = re.compile(r"^h\.(0|[1-9][0-9]*)\.")


class Role(StrEnum):
    """What became of a tensor."""

    USED = "used"
    TIED = "tied"  # lm_head.weight with the bytes of wte.weight
    BUFFER = "buffer"
    IGNORED = "ignored"  # by --ignore
    OTHER_HEAD = "other head"  # than the one that was asked for


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


def _sort(checkpoint: Checkpoint, globs: tuple[str, ...]) -> tuple[list[Entry], dict[str, LazyTensor]]:
    """Decide by its name alone what each tensor is."""
    known = {weight.name: weight.layout for weight in TABLE}
    entries: list[Entry] = []
    found: dict[str, LazyTensor] = {}
    unknown: list[str] = []
    for source_name, tensor in checkpoint.tensors.items():
        name = canonical(source_name)
        pattern = _LAYER.sub("h.{i}.", name)
        if any(fnmatchcase(tensor.name, glob) or fnmatchcase(name, glob) for glob in globs):
            entries.append(Entry(tensor, name, Role.IGNORED))
        elif pattern in BUFFERS:
            entries.append(Entry(tensor, name, Role.BUFFER))
        elif pattern not in known:
            unknown.append(source_name)
        elif name in found:
            raise CheckpointError(f"{checkpoint.folder} holds {name} twice: as {found[name].name} and as {tensor.name}")
        else:
            entries.append(Entry(tensor, name, Role.USED, known[pattern]))
            found[name] = tensor
    if unknown:
        more = ", ".join(unknown[1:NAMES_SHOWN])
        beyond = f" and {len(unknown) - NAMES_SHOWN} more" if len(unknown) > NAMES_SHOWN else ""
        others = f" (also {more}{beyond})" if more else ""
        raise CheckpointError(
            f"{checkpoint.tensors[unknown[0]].file}: tensor {unknown[0]}{others} is not part of a GPT-2; "
            f"omit it with --ignore '{_glob(unknown)}' if the model does not need it"
        )
    return entries, found


def _glob(names: list[str]) -> str:
    """Return a glob that matches all of ``names`` if they share a module, else the first name."""
    shared = os.path.commonprefix(names).rpartition(".")[0]  # noqa: RUF071 - names, not paths
    return f"{shared}.*" if len(names) > 1 and shared else names[0]


def _match(checkpoint: Checkpoint, config: GPT2Config, found: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Remove from ``found`` what the architecture needs, and return it in the table's order."""
    left = dict(found)
    weights: dict[str, LazyTensor] = {}
    for name, _layout, shape in parameters(config):
        tensor = left.pop(name, None)
        if tensor is None:
            raise CheckpointError(
                f"{checkpoint.folder / checkpoint.weight_file} has no tensor {name} {list(shape)}, which config.json "
                f"asks for; the checkpoint is incomplete or config.json is not its own"
            )
        if tensor.shape != shape:
            raise CheckpointError(
                f"{tensor.file}: tensor {tensor.name} is {list(tensor.shape)}; config.json asks for {list(shape)}"
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
