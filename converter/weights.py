"""What GPT-2 consists of, as a table, and the ledger that holds a source's tensors against it.

The table alone decides what a tensor is and how it lies; no decision here or elsewhere looks at a shape.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from fnmatch import fnmatchcase

from converter.checkpoint import Checkpoint, LazyTensor
from converter.errors import CheckpointError
from reference.config import GPT2Config


class Layout(StrEnum):
    """How a weight lies in a Hugging Face file."""

    EMBEDDING = "embedding"  # [rows, n_embd]
    CONV1D = "conv1d"  # [in, out]: MatMul's own order, torch.nn.Linear's transpose
    LINEAR = "linear"  # [out, in]
    VECTOR = "vector"


@dataclass(frozen=True)
class Weight:
    """One parameter of GPT-2: ``name`` as Hugging Face's GPT2Model spells it, ``{i}`` for the layer."""

    name: str
    layout: Layout
    shape: Callable[[GPT2Config], tuple[int, ...]]
    needed: Callable[[GPT2Config], bool] = lambda config: True


TABLE: tuple[Weight, ...] = (
    Weight("wte.weight", Layout.EMBEDDING, lambda c: (c.vocab_size, c.n_embd)),
    Weight("wpe.weight", Layout.EMBEDDING, lambda c: (c.n_positions, c.n_embd)),
    Weight("h.{i}.ln_1.weight", Layout.VECTOR, lambda c: (c.n_embd,)),
    Weight("h.{i}.ln_1.bias", Layout.VECTOR, lambda c: (c.n_embd,)),
    Weight("h.{i}.attn.c_attn.weight", Layout.CONV1D, lambda c: (c.n_embd, 3 * c.n_embd)),
    Weight("h.{i}.attn.c_attn.bias", Layout.VECTOR, lambda c: (3 * c.n_embd,)),
    Weight("h.{i}.attn.c_proj.weight", Layout.CONV1D, lambda c: (c.n_embd, c.n_embd)),
    Weight("h.{i}.attn.c_proj.bias", Layout.VECTOR, lambda c: (c.n_embd,)),
    Weight("h.{i}.ln_2.weight", Layout.VECTOR, lambda c: (c.n_embd,)),
    Weight("h.{i}.ln_2.bias", Layout.VECTOR, lambda c: (c.n_embd,)),
    Weight("h.{i}.mlp.c_fc.weight", Layout.CONV1D, lambda c: (c.n_embd, c.inner_dim)),
    Weight("h.{i}.mlp.c_fc.bias", Layout.VECTOR, lambda c: (c.inner_dim,)),
    Weight("h.{i}.mlp.act.weight", Layout.VECTOR, lambda c: (1,), lambda c: c.activation_function == "prelu"),
    Weight("h.{i}.mlp.c_proj.weight", Layout.CONV1D, lambda c: (c.inner_dim, c.n_embd)),
    Weight("h.{i}.mlp.c_proj.bias", Layout.VECTOR, lambda c: (c.n_embd,)),
    Weight("ln_f.weight", Layout.VECTOR, lambda c: (c.n_embd,)),
    Weight("ln_f.bias", Layout.VECTOR, lambda c: (c.n_embd,)),
    Weight("lm_head.weight", Layout.LINEAR, lambda c: (c.vocab_size, c.n_embd), lambda c: not c.tie_word_embeddings),
)

# What DataParallel, torch.compile, trainers and GPT2LMHeadModel put before a name, in any combination.
PREFIXES = ("module.", "_orig_mod.", "model.", "transformer.")

# The causal mask and its filler, which transformers once saved with the weights.
BUFFERS = ("h.{i}.attn.bias", "h.{i}.attn.masked_bias")

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


@dataclass(frozen=True)
class Entry:
    """What became of one tensor of the source; ``name`` is its canonical name."""

    tensor: LazyTensor
    name: str
    role: Role
    layout: Layout | None = None


@dataclass(frozen=True)
class Ledger:
    """Every tensor of a source, accounted for.

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
        """The number of parameters, a tied head counted once."""
        return sum(tensor.size for tensor in self.weights.values())


def canonical(name: str) -> str:
    """A source's name without the prefixes that wrappers put before it."""
    while prefix := next((p for p in PREFIXES if name.startswith(p)), None):
        name = name[len(prefix) :]
    return name


def parameters(config: GPT2Config) -> Iterator[tuple[str, Layout, tuple[int, ...]]]:
    """Canonical name, layout and shape of every parameter of a GPT-2, in the order data flows through them."""
    needed = [weight for weight in TABLE if weight.needed(config)]
    blocks = [weight for weight in needed if "{i}" in weight.name]
    before = needed[: needed.index(blocks[0])]
    after = needed[needed.index(blocks[-1]) + 1 :]
    for weight in before:
        yield weight.name, weight.layout, weight.shape(config)
    for i in range(config.n_layer):
        for weight in blocks:
            yield weight.name.format(i=i), weight.layout, weight.shape(config)
    for weight in after:
        yield weight.name, weight.layout, weight.shape(config)


def account(checkpoint: Checkpoint, ignore: Iterable[str] = ()) -> Ledger:
    """Hold every tensor of ``checkpoint`` against the table.

    Args:
        ignore: globs of tensors to leave aside, matched against the source's name and the canonical one.

    Raises:
        CheckpointError: a tensor is missing, surplus, misshapen, of an unusable type, or there twice.
    """
    config, warnings = checkpoint.config, []
    globs = (ignore,) if isinstance(ignore, str) else tuple(ignore)
    entries, found = _sort(checkpoint, globs)
    head = found.get("lm_head.weight")
    if head is not None:
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


def _sort(checkpoint: Checkpoint, globs: tuple[str, ...]) -> tuple[list[Entry], dict[str, LazyTensor]]:
    """Say what each tensor is by its name alone."""
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
            f"leave it aside with --ignore '{_glob(unknown)}' if the model does not need it"
        )
    return entries, found


def _glob(names: list[str]) -> str:
    """What matches all of ``names`` if they share a module, else the first of them."""
    shared = os.path.commonprefix(names).rpartition(".")[0]  # noqa: RUF071 - names, not paths
    return f"{shared}.*" if len(names) > 1 and shared else names[0]


def _match(checkpoint: Checkpoint, config: GPT2Config, found: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Take out of ``found`` what the architecture asks for, in the table's order."""
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
            f"activation_function {config.activation_function!r})"
        )
    return weights


def same_bytes(a: LazyTensor, b: LazyTensor) -> bool:
    """Whether two tensors are equal bit for bit; read a piece at a time unless they are one and the same."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    if a.in_file and b.in_file and (a.file, a.offset) == (b.file, b.offset):
        return True
    return all(x == y for x, y in zip(_pieces(a), _pieces(b), strict=True))


def _pieces(tensor: LazyTensor) -> Iterator[bytes]:
    """A tensor's bytes in pieces of one size, however it is stored."""
    held = b""
    for chunk in tensor.chunks():
        held += chunk.tobytes()
        while len(held) >= PIECE_BYTES:
            yield held[:PIECE_BYTES]
            held = held[PIECE_BYTES:]
    yield held
