"""Writes checkpoints as OpenAI's TensorFlow code does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from converter.checkpoint.openai import MAGIC, crc32c

HPARAMS = {"n_vocab": 61, "n_ctx": 24, "n_embd": 12, "n_head": 3, "n_layer": 3}

CHECKSUM_MASK = 0xA282EAD8

# A checkpoint as a table holds it: names and values, sorted; the empty name is the header's.
Entries = list[tuple[bytes, bytes]]


def varint(value: int) -> bytes:
    more = value >> 7
    return bytes([value & 0x7F | 0x80]) + varint(more) if more else bytes([value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value)


def entry(shape: tuple[int, ...], offset: int, size: int, dtype: int = 1, shard: int = 0) -> bytes:
    """A BundleEntryProto; zeros are left out, as protocol buffers do."""
    dims = b"".join(field(2, field(1, n)) for n in shape)
    numbers = ((3, shard), (4, offset), (5, size))
    return field(1, dtype) + field(2, dims) + b"".join(field(n, v) for n, v in numbers if v) + b"\x35\0\0\0\0"


def block(entries: Entries, restart_every: int = 16) -> bytes:
    contents, restarts, previous = b"", [], b""
    for i, (key, value) in enumerate(entries):
        shared = 0
        if i % restart_every == 0:
            restarts.append(len(contents))
        else:
            while shared < min(len(key), len(previous)) and key[shared] == previous[shared]:
                shared += 1
        own = key[shared:]
        contents += varint(shared) + varint(len(own)) + varint(len(value)) + own + value
        previous = key
    restarts = restarts or [0]
    return contents + b"".join(n.to_bytes(4, "little") for n in (*restarts, len(restarts)))


def sealed(contents: bytes, compression: int = 0) -> bytes:
    crc = crc32c(contents + bytes([compression]))
    masked = ((crc >> 15 | crc << 17) + CHECKSUM_MASK) & 0xFFFFFFFF
    return contents + bytes([compression]) + masked.to_bytes(4, "little")


def table(blocks: list[bytes], index: bytes | None = None, compression: int = 0) -> bytes:
    """A table of blocks as ``block`` gives them; ``index`` is the block that leads to them."""
    data, handles = b"", []
    for contents in blocks:
        handles.append(varint(len(data)) + varint(len(contents)))
        data += sealed(contents, compression)
    filters = varint(len(data)) + varint(len(block([])))
    data += sealed(block([]))
    found = index if index is not None else block([(b"%08d" % i, handle) for i, handle in enumerate(handles)])
    top = varint(len(data)) + varint(len(found))
    return data + sealed(found) + (filters + top).ljust(40, b"\0") + MAGIC


def write(folder: Path, state: dict[str, np.ndarray], shards: int = 1, hparams: Any = None) -> Path:
    """``state``, by Hugging Face's names, as OpenAI's model.py would have saved it."""
    folder.mkdir(exist_ok=True)
    data, entries = [b""] * shards, []
    for i, (name, value) in enumerate(sorted((own_name(name), value) for name, value in state.items())):
        value = value[None] if name.endswith("/w") else value
        at = i % shards
        entries.append((name.encode(), entry(value.shape, len(data[at]), value.nbytes, shard=at)))
        data[at] += value.tobytes()
    for i, part in enumerate(data):
        (folder / f"model.ckpt.data-{i:05d}-of-{shards:05d}").write_bytes(part)
    entries.insert(0, (b"", field(1, shards)))
    (folder / "model.ckpt.index").write_bytes(table([block(entries[i : i + 9]) for i in range(0, len(entries), 9)]))
    (folder / "hparams.json").write_text(json.dumps(hparams or HPARAMS))
    return folder


def own_name(name: str) -> str:
    parts = name.removeprefix("transformer.").split(".")
    leaf = parts.pop()
    if parts[0] == "h":
        parts[:2] = [f"h{parts[1]}"]
    kind = {"wte": "", "wpe": ""}.get(parts[-1], "/b" if leaf == "bias" else "/g" if "ln" in parts[-1] else "/w")
    return "model/" + "/".join(parts) + kind
