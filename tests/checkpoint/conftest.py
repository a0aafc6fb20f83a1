"""Files to read, memory to bound, and a Hub on the loopback interface."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch.nn import functional as F

from converter import convert, load, to_huggingface, to_reference
from converter.checkpoint.tensor import LazyTensor, to_float32
from converter.errors import CheckpointError
from tests.checkpoint.adapters import save_base

DTYPES = (
    torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64,
)  # fmt: skip


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all examples of a property write to, one after the other."""
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def bounded_memory() -> Iterator[None]:
    """Damage that asks for gigabytes ends in a MemoryError here, and not in the machine's swap."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + (1 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="session")
def bits() -> Callable[[torch.Tensor], bytes]:
    """The elements of a torch tensor in row-major order, as bytes."""

    def elements(tensor: torch.Tensor) -> bytes:
        flat = tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1)
        return flat.view(torch.uint8).numpy().tobytes()

    return elements


@pytest.fixture(scope="session")
def assert_same(
    bits: Callable[[torch.Tensor], bytes],
) -> Callable[[dict[str, LazyTensor], dict[str, torch.Tensor]], None]:
    """Asserts that lazy tensors are bit for bit these torch tensors, mapped and in chunks."""

    def check(found: dict[str, LazyTensor], expected: dict[str, torch.Tensor]) -> None:
        assert {n: (t.name, t.dtype, t.shape) for n, t in found.items()} == {
            n: (n, str(t.dtype).removeprefix("torch."), tuple(t.shape)) for n, t in expected.items()
        }
        for name, tensor in expected.items():
            assert found[name].memmap().shape == tuple(tensor.shape), name
            assert found[name].memmap().tobytes() == bits(tensor), name
            assert b"".join(chunk.tobytes() for chunk in found[name].chunks()) == bits(tensor), name

    return check


@pytest.fixture(scope="session")
def refusal() -> Callable[[Callable[[Path], dict[str, LazyTensor]], Path], str | None]:
    """What a reader says of a file that it refuses, at once or when a tensor is read; None if all can be read."""

    def read_all(read: Callable[[Path], dict[str, LazyTensor]], file: Path) -> str | None:
        try:
            for tensor in read(file).values():
                mapped = tensor.memmap()
                for chunk in islice(tensor.chunks(), 1):
                    assert chunk.tobytes() == mapped.flat[: chunk.size].tobytes()
        except CheckpointError as error:
            return str(error)
        return None

    return read_all


def pattern(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor whose elements are told apart by their bytes, as far as the type can."""
    count = torch.Size(shape).numel()
    if dtype == torch.bool:
        return (torch.arange(count) % 3 == 1).reshape(shape)
    return (torch.arange(count) * 7 % 251 + 1).to(dtype).reshape(shape)


@st.composite
def _views(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    view = pattern(tuple(shape), draw(st.sampled_from(DTYPES)))
    steps = [slice(draw(st.integers(0, 2)), draw(st.integers(0, 6)), draw(st.integers(1, 3))) for _ in shape]
    view = view[tuple(steps)].permute(draw(st.permutations(range(len(shape)))))
    if draw(st.booleans()):
        view = view.expand(draw(st.integers(1, 3)), *view.shape)  # stride 0
    return view


@pytest.fixture(scope="session")
def views() -> st.SearchStrategy[torch.Tensor]:
    """Tensors of any type: sliced, transposed, expanded, empty and scalar."""
    return _views()


@pytest.fixture(scope="session")
def damaged() -> Callable[[bytes], st.SearchStrategy[bytes]]:
    """The strategy of bytes that differ from these in a few places, or end early."""

    def strategy(sound: bytes) -> st.SearchStrategy[bytes]:
        places = st.dictionaries(st.integers(0, len(sound) - 1), st.integers(0, 255), min_size=1, max_size=3)
        flipped = places.map(lambda at: bytes(at.get(i, byte) for i, byte in enumerate(sound)))
        cut = st.integers(0, len(sound) - 1).map(lambda end: sound[:end])
        return (flipped | cut).filter(lambda found: found != sound)

    return strategy


@dataclass
class Repo:
    """A model on the Hub: commits, and what branches and tags point at."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Path | dict[str, bytes], *refs: str) -> str:
        """Add a commit, let ``refs`` point at it, and return its id."""
        if isinstance(files, Path):
            files = {str(f.relative_to(files)): f.read_bytes() for f in files.rglob("*") if f.is_file()}
        digest = hashlib.sha1(b"".join(name.encode() + data for name, data in sorted(files.items()))).hexdigest()
        self.commits[digest] = files
        self.refs |= dict.fromkeys((digest, *refs), digest)
        return digest


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    token: str | None


@dataclass
class Opened:
    """What ``open_checkpoint`` gave in a process of its own: a checkpoint, or the error's type and message."""

    name: str = ""
    folder: Path = Path()
    weight_file: str = ""
    adapter: str = ""
    error: str = ""
    message: str = ""
    stderr: str = field(default="", compare=False)


OPEN = """
import json, sys
from converter.checkpoint.open import open_checkpoint
from converter.checkpoint.options import SourceOptions
try:
    c = open_checkpoint(sys.argv[1], SourceOptions(adapter=sys.argv[2] or None))
    found = {"name": c.name, "folder": str(c.folder.resolve()), "weight_file": c.weight_file}
    print(json.dumps(found | {"adapter": c.adapter_name}))
except Exception as error:
    print(json.dumps({"error": type(error).__name__, "message": str(error)}))
"""


class Server(ThreadingHTTPServer):
    """Keeps what goes wrong in its answers, and prints no traceback of it.

    To print one, Python parses lines of source. While another thread parses, as pytest does for a test that failed,
    CPython before 3.11.8 ends that with "AST constructor recursion depth mismatch" (its issue 106905).
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.errors: list[BaseException | None] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if not isinstance(error, ConnectionError):  # a client that was stopped goes away
            self.errors.append(error)


class Hub:
    """As much of huggingface.co as a download asks for, and a record of what was asked.

    Attributes:
        repos: by name.
        moved: old name → new name; answered with 307, as for a renamed repository.
        gated: names whose files are answered with 403 and GatedRepo; as on the Hub, anyone may list them.
        lfs: file names answered with a redirect to another host, as for a large file.
        broken: None, or the status and body of every answer.
        requests: every request, in order.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.repos: dict[str, Repo] = {}
        self.moved: dict[str, str] = {}
        self.gated: set[str] = set()
        self.lfs: set[str] = set()
        self.broken: tuple[int, bytes] | None = None
        self.requests: list[Request] = []
        self.port = 0

    def repo(self, name: str) -> Repo:
        return self.repos.setdefault(name, Repo())

    def fetched(self) -> list[str]:
        """The files whose bytes were asked for, without repository and commit."""
        return [r.path.split("/", 5)[-1] for r in self.requests if r.method == "GET" and "/resolve/" in r.path]

    def open(self, source: str | Path, cwd: Path | None = None, adapter: str = "", **env: str) -> Opened:
        """Run ``open_checkpoint(source)`` in a process for which this is the Hub."""
        unset = ("proxy", "hf_", "hugging")
        environment = {k: v for k, v in os.environ.items() if not any(part in k.lower() for part in unset)}
        environment |= {
            "HF_ENDPOINT": f"http://127.0.0.1:{self.port}", "HF_HOME": str(self.home), "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1,localhost",
        } | env  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", OPEN, source, adapter],
            cwd=cwd, env=environment, capture_output=True, text=True, timeout=50,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        values: dict[str, Any] = json.loads(done.stdout)
        return Opened(**values | {"folder": Path(values.get("folder", ""))}, stderr=done.stderr)

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a path."""
        if self.broken:
            return self.broken[0], {}, self.broken[1]
        parts = path.strip("/").split("/")
        if parts[0] == "cdn":  # cdn/<user>/<model>/<commit>/<file>
            return 200, {}, self.repos["/".join(parts[1:3])].commits[parts[3]]["/".join(parts[4:])]
        api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if api else parts[:2])
        if name in self.moved:
            return 307, {"Location": path.replace(name, self.moved[name])}, b""
        if name in self.gated and not api:
            return 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": f"Access to {name} is restricted."}, b"{}"
        if name not in self.repos:
            return 404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b"{}"
        repo = self.repos[name]
        revision = unquote(parts[5] if api and len(parts) > 5 else "main" if api else parts[3])
        if revision not in repo.refs:
            return 404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"}, b"{}"
        digest = repo.refs[revision]
        if api:
            siblings = [{"rfilename": file} for file in sorted(repo.commits[digest])]
            info = {"id": name, "modelId": name, "sha": digest, "siblings": siblings, "private": False}
            return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()
        file = "/".join(parts[4:])
        if file not in repo.commits[digest]:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}, b""
        data = repo.commits[digest][file]
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        if file in self.lfs:
            target = f"http://localhost:{self.port}/cdn/{name}/{digest}/{file}"
            linked = {"X-Linked-Size": str(len(data)), "X-Linked-Etag": etag}
            return 302, {"X-Repo-Commit": digest, "Location": target, **linked}, b""
        return 200, {"X-Repo-Commit": digest, "ETag": etag}, data

    @contextmanager
    def serving(self) -> Iterator[None]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = urlsplit(self.path).path
                hub.requests.append(Request(self.command, path, self.headers.get("Authorization")))
                status, headers, body = hub.answer(path)
                self.send_response(status)
                for key, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        server = Server(("127.0.0.1", 0), Handler)
        self.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
        assert server.errors == []


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A small GPT-2 that adapters are merged into."""
    return save_base(tmp_path / "base")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A Hub without models, with an empty cache beside it."""
    found = Hub(tmp_path / "hf-home")
    with found.serving():
        yield found


def linear_logits(
    state: dict[str, torch.Tensor], ids: torch.Tensor, n_head: int, gelu: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """A GPT-2 whose projections are torch.nn.Linear, [out, in], written out: ids [B, S] → logits [B, S, V]."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state.get(f"{name}.bias"), 1e-5)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    state = {name.removeprefix("transformer."): tensor.float() for name, tensor in state.items()}
    x = state["wte.weight"][ids] + state["wpe.weight"][: ids.size(1)]
    i = 0
    while f"h.{i}.ln_1.weight" in state:
        qkv = linear(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn")
        q, k, v = (part.unflatten(-1, (n_head, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + linear(attended, f"h.{i}.attn.c_proj")
        x = x + linear(gelu(linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")), f"h.{i}.mlp.c_proj")
        i += 1
    return F.linear(norm(x, "ln_f"), state.get("lm_head.weight", state["wte.weight"]))


@pytest.fixture(scope="session")
def linear_gpt() -> Callable[..., torch.Tensor]:
    """``linear_gpt(state, ids, n_head, gelu)``: logits of a state dict of Linears, as nanoGPT and llm.c have them."""
    return linear_logits


@pytest.fixture
def converted_logits(tmp_path: Path) -> Callable[..., torch.Tensor]:
    """``converted_logits(source, ids, **options)``: converts and runs, ids [S] → logits [S, V].

    And asserts that the other two targets hold the same weights, whatever the source made of their layout.
    """

    def run(source: Path, ids: torch.Tensor, **options: Any) -> torch.Tensor:
        to_huggingface(source, tmp_path / "hf", force=True, **options)
        to_reference(source, tmp_path / "reference", force=True, **options)
        to_huggingface(tmp_path / "reference", tmp_path / "back", force=True)
        for file in (tmp_path / "hf").iterdir():
            assert file.name == "gpt2onnx.json" or file.read_bytes() == (tmp_path / "back" / file.name).read_bytes()
        convert(source, tmp_path / "converted", force=True, **options)
        return torch.tensor(load(tmp_path / "converted").logits(ids.tolist()))

    return run


@pytest.fixture(scope="session")
def written() -> Path:
    """Checkpoints that TensorFlow and Flax wrote; see the README.md there."""
    return Path(__file__).parent / "written"


@pytest.fixture(scope="session")
def assert_written() -> Callable[..., None]:
    """``assert_written(found, inner=…, tied=…, dtype=…)``: these are the tensors of a checkpoint in ``written``."""

    def check(found: dict[str, LazyTensor], inner: int = 6, tied: bool = True, dtype: str = "float32") -> None:
        vectors = {"ln_1.weight": 4, "ln_1.bias": 4, "ln_2.weight": 4, "ln_2.bias": 4}
        layer: dict[str, tuple[int, ...]] = {name: (size,) for name, size in vectors.items()}
        for name, rows, columns in (
            ("attn.c_attn", 4, 12), ("attn.c_proj", 4, 4), ("mlp.c_fc", 4, inner), ("mlp.c_proj", inner, 4)
        ):  # fmt: skip
            layer |= {f"{name}.weight": (rows, columns), f"{name}.bias": (columns,)}
        shapes = {"wte.weight": (7, 4), "wpe.weight": (5, 4), "ln_f.weight": (4,), "ln_f.bias": (4,)}
        shapes |= {f"h.0.{name}": shape for name, shape in layer.items()} | ({} if tied else {"lm_head.weight": (7, 4)})
        assert {n: (t.dtype, t.shape) for n, t in found.items()} == {n: (dtype, s) for n, s in shapes.items()}
        for name, tensor in found.items():
            expected = (torch.arange(tensor.size) + zlib.crc32(name.encode())) % 256 / 8 - 16
            for array in (tensor.memmap().ravel(), np.concatenate(list(tensor.chunks()))):
                assert to_float32(array, dtype).tolist() == expected.tolist(), name

    return check


@pytest.fixture(scope="session")
def bytes_read() -> Callable[[], int]:
    """How many bytes this process has read from files so far, by whatever library."""
    return lambda: int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])
