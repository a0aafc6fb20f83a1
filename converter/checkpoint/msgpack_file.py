"""Read Flax' msgpack files, ``flax_model.msgpack``.

transformers before version 5 wrote them with FlaxGPT2LMHeadModel. The file holds nested maps. Their leaves are
extensions of code 1: a packed (shape, name of type, bytes), see flax/serialization.py. The heads of values are read
here and not by the msgpack library, because that library also reads the weights behind them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO, NamedTuple

from converter.checkpoint.tensor import DTYPES, LazyTensor
from converter.errors import CheckpointError

ARRAY = 1  # flax' code for an array
CHUNKED = "__msgpack_chunked_array__"  # flax' key of an array beyond 1 GiB, stored in pieces with heads between them
MAX_NAME_BYTES = 4096
MAX_DEPTH = 32
MAX_RANK = 32


class Head(NamedTuple):
    """The head of a value: its kind, how many bytes its length takes, and what is added to the length."""

    kind: str
    width: int
    base: int


# First byte → head: the part of https://github.com/msgpack/msgpack/blob/master/spec.md that flax writes.
HEADS: dict[int, Head] = {
    **{first: Head("int", 0, first) for first in range(0x80)},
    **{0xCC + i: Head("int", 1 << i, 0) for i in range(4)},
    **{0x80 + size: Head("map", 0, size) for size in range(16)},
    **{0xDE + i: Head("map", 2 << i, 0) for i in range(2)},
    **{0x90 + size: Head("array", 0, size) for size in range(16)},
    **{0xDC + i: Head("array", 2 << i, 0) for i in range(2)},
    **{0xA0 + size: Head("text", 0, size) for size in range(32)},
    **{0xD9 + i: Head("text", 1 << i, 0) for i in range(3)},
    **{0xC4 + i: Head("bytes", 1 << i, 0) for i in range(3)},
    **{0xD4 + i: Head("extension", 0, 1 << i) for i in range(5)},
    **{0xC7 + i: Head("extension", 1 << i, 0) for i in range(3)},
}

# The possible first bytes of a file, which is a map that is not empty.
MAGICS = tuple(bytes([first]) for first, head in HEADS.items() if head.kind == "map" and first != 0x80)

# Flax' name of a parameter → PyTorch's.
EMBEDDING = {"embedding": "weight"}
NORM = {"scale": "weight", "bias": "bias"}
CONV1D = {"kernel": "weight", "bias": "bias"}  # FlaxConv1D's kernel is [out, in]; Conv1D's weight is [in, out]
DENSE = {"kernel": "weight"}  # Dense's kernel is [in, out]; Linear's weight is [out, in]

MODULES = {
    "wte": EMBEDDING,
    "wpe": EMBEDDING,
    "h.{i}.ln_1": NORM,
    "h.{i}.attn.c_attn": CONV1D,
    "h.{i}.attn.c_proj": CONV1D,
    "h.{i}.ln_2": NORM,
    "h.{i}.mlp.c_fc": CONV1D,
    "h.{i}.mlp.c_proj": CONV1D,
    "ln_f": NORM,
    "lm_head": DENSE,
}

# Flax' name without ``transformer/``, joined with dots → Hugging Face's name.
NAMES = {f"{module}.{leaf}": f"{module}.{name}" for module, leaves in MODULES.items() for leaf, name in leaves.items()}
TRANSPOSED = frozenset(name for name in NAMES if name.endswith(".kernel"))

_LAYER = re.compile(r"^h/(0|[1-9][0-9]*)/")


def read(file: Path) -> dict[str, LazyTensor]:
    """Return every tensor of ``file`` by Hugging Face's name. A tensor that GPT-2 does not have keeps its own name.

    Raises:
        CheckpointError: the file is truncated or damaged, or is not nested maps of arrays.
    """
    with file.open("rb") as opened:
        found = Walker(file, opened).walk()
    tensors: dict[str, LazyTensor] = {}
    for tensor in found:
        key = hf_name(tensor.name)
        if key in tensors:
            raise CheckpointError(f"{file} holds {key} twice: as {tensors[key].name} and as {tensor.name}")
        tensors[key] = _transposed(tensor) if _pattern(tensor.name)[0] in TRANSPOSED else tensor
    return tensors


def hf_name(path: str) -> str:
    """Return Hugging Face's name for ``transformer/h/0/ln_1/scale``; other paths stay as they are."""
    pattern, layer = _pattern(path)
    return NAMES[pattern].replace("{i}", layer) if pattern in NAMES else path


def _pattern(path: str) -> tuple[str, str]:
    """Return a path with ``{i}`` for the layer, as in ``NAMES``, and the layer's number.

    The number is empty if there is none.
    """
    own = path.removeprefix("transformer/")
    match = _LAYER.match(own)
    return _LAYER.sub("h.{i}/", own).replace("/", "."), match[1] if match else ""


def _transposed(kernel: LazyTensor) -> LazyTensor:
    if len(kernel.shape) != 2:
        raise CheckpointError(f"{kernel.file}: tensor {kernel.name} is {list(kernel.shape)}; expected a matrix")
    return kernel.transposed()


class Walker:
    """A reader that goes through an open file from head to head, and skips the bytes of the arrays."""

    def __init__(self, file: Path, opened: BinaryIO) -> None:
        self.file = file
        self.opened = opened
        self.end = file.stat().st_size
        self.found: list[LazyTensor] = []

    def walk(self) -> list[LazyTensor]:
        """Return every array, named by the keys that lead to it, joined with slashes.

        Raises:
            CheckpointError: the file is truncated, damaged, or holds something else.
        """
        kind, size = self.head()
        if kind != "map":
            raise self.fault(f"it begins with {kind}")
        self.walk_map("", size, 0)
        if self.opened.tell() != self.end:
            raise CheckpointError(f"{self.file} is too long: {self.end - self.opened.tell()} bytes follow its end")
        return self.found

    def walk_map(self, path: str, size: int, depth: int) -> None:
        """Collect what lies in a map of ``size`` entries, whose head has been read."""
        if depth > MAX_DEPTH:
            raise self.fault(f"{path[:80]} leads to maps within maps without end")
        keys = set()
        for _ in range(size):
            key = self.text()
            if key in keys:
                raise self.fault(f"it names {path}{key} twice")
            if key == CHUNKED:
                raise CheckpointError(
                    f"{self.file}: tensor {path.rstrip('/')} is stored in chunks, as flax does beyond 1 GiB; "
                    f"save the model in safetensors"
                )
            keys.add(key)
            kind, inner = self.head()
            if kind == "map":
                self.walk_map(f"{path}{key}/", inner, depth + 1)
            elif kind == "extension" and self.byte() == ARRAY:
                self.found.append(self.array(f"{path}{key}", inner))
            else:
                raise CheckpointError(
                    f"{self.file} holds {path}{key}, which is not an array; expected the parameters of a Flax model"
                )

    def array(self, name: str, size: int) -> LazyTensor:
        """Return the array in the next ``size`` bytes, and skip its data."""
        end = self.opened.tell() + size
        if end > self.end:
            raise CheckpointError(f"{self.file} is truncated within tensor {name}; download or save it again")
        if self.head() != ("array", 3):
            raise self.fault(f"tensor {name} is malformed")
        shape = tuple(self.expect("int", name) for _ in range(self.expect("array", name, MAX_RANK)))
        dtype = self.text()
        if dtype not in DTYPES:
            raise CheckpointError(
                f"{self.file}: tensor {name} is of type {dtype}, which no GPT-2 is trained in; save it as float32"
            )
        nbytes = self.expect("bytes", name)
        tensor = LazyTensor(name, dtype, shape, self.file, self.opened.tell())
        if nbytes != tensor.nbytes or tensor.offset + nbytes != end:
            raise self.fault(f"tensor {name} of {dtype} {list(shape)} cannot take {nbytes} bytes")
        self.opened.seek(end)
        return tensor

    def expect(self, kind: str, name: str, most: int | None = None) -> int:
        """Read a head of kind ``kind``; return its value or length, which is at most ``most``."""
        found, size = self.head()
        if found != kind or (most is not None and size > most):
            raise self.fault(f"tensor {name} is malformed")
        return size

    def head(self) -> tuple[str, int]:
        """Read the head of the next value; return its kind, and its value or length."""
        first = self.byte()
        if first not in HEADS:
            raise self.fault(f"byte {self.opened.tell() - 1} is 0x{first:02x}, which begins nothing that flax writes")
        kind, width, base = HEADS[first]
        return kind, base + int.from_bytes(self.take(width), "big")

    def text(self) -> str:
        """Read a text. Flax once wrote texts as bytes."""
        kind, size = self.head()
        if kind not in ("text", "bytes") or size > MAX_NAME_BYTES:
            raise self.fault(f"{kind} of length {size} before byte {self.opened.tell()} is no name")
        try:
            return self.take(size).decode()
        except UnicodeDecodeError as error:
            raise self.fault(f"a name is not UTF-8 ({error})") from error

    def byte(self) -> int:
        """Read the next byte."""
        return self.take(1)[0]

    def take(self, count: int) -> bytes:
        """Read the next ``count`` bytes."""
        found = self.opened.read(count)
        if len(found) < count:
            raise CheckpointError(f"{self.file} is truncated: it ends within a name or head; download or save it again")
        return found

    def fault(self, what: str) -> CheckpointError:
        """Return the error for a damaged file."""
        return CheckpointError(f"{self.file} is corrupt or no Flax model: {what}; download or save it again")
