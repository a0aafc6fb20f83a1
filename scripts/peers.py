"""Compare gpt2onnx with other converters and runtimes, on one checkpoint with random weights.

Each peer has its own environment and worker processes (``peers_workers/``). The candidates are measured in turn, so
that disturbances of the machine meet them all. Their models stay open, except for the largest batches, for which only
one is open at a time. If a peer cannot do something, a note stands beside its figures, and the rest goes on.
"""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
from processes import ROOT, Run, measure

WORKERS = Path(__file__).resolve().parent / "peers_workers"
THREADS = os.cpu_count() or 1
LIMIT_SECONDS = 900  # for one answer or conversion
INSTALL_SECONDS = 3600  # llama.cpp is compiled
PAUSE_SECONDS = 0.3  # between measurements, as threads of the last one may still spin
MEMORY_SHARE = 0.9  # the share of free memory for one worker
VOCABULARY = 50257
TOKENIZER_FILES = ("vocab.json", "merges.txt")
TOKENIZER_HELP = "The folder of GPT-2's vocab.json and merges.txt, which llama.cpp needs; by default from the Hub."
SANITY_PROMPTS, SANITY_LENGTH, SANITY_NEW = 32, 16, 4


class PeerError(Exception):
    """A peer could not do something. The message is one sentence."""


@dataclass(frozen=True)
class Environment:
    """The packages of a peer. One of them may be compiled here; its source is kept beside it."""

    packages: tuple[str, ...]
    compiled: str = ""


TORCH = "torch==2.13.0"
ONNXRUNTIME = "onnxruntime==1.32.0"
GENAI = "onnxruntime-genai==0.18.0"
LLAMA = "llama-cpp-python==0.3.36"
ENVIRONMENTS = {
    # optimum-onnx needs accelerate; without it, it writes the token embedding twice
    "optimum": Environment(
        ("optimum-onnx[onnxruntime]==0.1.0", "transformers==4.57.6", "accelerate==1.15.0", TORCH, ONNXRUNTIME)
    ),
    "mobius": Environment(("mobius-onnx==0.1.0", "transformers==5.23.0", TORCH, ONNXRUNTIME, GENAI)),
    "ctranslate2": Environment(("ctranslate2==4.8.5", "transformers==5.23.0", TORCH)),
    "llama": Environment((LLAMA, "transformers==4.57.6", "sentencepiece==0.2.3", "protobuf", TORCH), compiled=LLAMA),
    "genai": Environment((GENAI, ONNXRUNTIME, "numpy==2.4.6")),
}
HERE = ""  # the environment of this process
# Compiled for this processor, but without AMX: with AMX llama.cpp's quantized models ended in a segmentation fault.
NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16" if platform.machine() in ("x86_64", "AMD64") else ""
COMPILER = {
    "CMAKE_ARGS": f"-DGGML_NATIVE=ON -DGGML_OPENMP=ON -DCMAKE_C_FLAGS='{NO_AMX}' -DCMAKE_CXX_FLAGS='{NO_AMX}'",
    "CMAKE_BUILD_PARALLEL_LEVEL": str(THREADS),
}


@dataclass(frozen=True)
class Model:
    """How to convert a model. {bin}, {python}, {environment}, {source} and {out} are filled in."""

    environment: str
    command: tuple[str, ...]
    files: tuple[str, ...] = ("**/*",)  # the files that count as its size on disk


def ours(precision: str, suffix: str) -> Model:
    command = ("{python}", "-m", "converter.cli", "convert", "{source}", "{out}", "-q")
    # A folder may hold several precisions. Only the files of this one count.
    return Model(HERE, (*command, "--precision", precision), (f"onnx/model{suffix}.onnx*",))


def llama(variant: str) -> Model:
    script = "{environment}/source/vendor/llama.cpp/convert_hf_to_gguf.py"
    return Model("llama", ("{python}", str(WORKERS / "convert_llama.py"), script, "{source}", "{out}", variant))


def ctranslate2(variant: str) -> Model:
    command = ("{bin}/ct2-transformers-converter", "--model", "{source}", "--output_dir", "{out}")
    return Model("ctranslate2", (*command, "--quantization", variant))


OPTIMUM = ("{bin}/optimum-cli", "export", "onnx", "--model", "{source}", "--task", "text-generation-with-past", "{out}")
MOBIUS = ("{bin}/mobius", "build", "--config", "{source}", "--ep", "cpu", "--runtime", "ort-genai", "{out}")
MODELS = {
    "ours": Model(HERE, ("{python}", "-m", "converter.cli", "convert", "{source}", "{out}", "-q")),
    "ours-int8": ours("int8", "_int8"),
    "ours-int4": ours("int4", "_q4"),
    "optimum": Model("optimum", OPTIMUM),
    "mobius": Model("mobius", MOBIUS),
    "ctranslate2-float32": ctranslate2("float32"),
    "ctranslate2-int8": ctranslate2("int8"),
    "llama-f32": llama("f32"),
    "llama-q8_0": llama("q8_0"),
    "llama-q4_0": llama("q4_0"),
    "checkpoint": Model(HERE, (), ("model.safetensors",)),
}


@dataclass(frozen=True)
class Candidate:
    """One row of the tables."""

    name: str
    model: str
    environment: str
    worker: str
    variant: str


CANDIDATES = (
    Candidate("ours fp32", "ours", HERE, "run_ours.py", "fp32"),
    Candidate("ours int8", "ours-int8", HERE, "run_ours.py", "int8"),
    Candidate("ours int4", "ours-int4", HERE, "run_ours.py", "int4"),
    Candidate("genai fp32 on our graph", "ours", "genai", "run_genai.py", "fp32"),
    Candidate("genai int8 on our graph", "ours-int8", "genai", "run_genai.py", "int8"),
    Candidate("optimum fp32", "optimum", "optimum", "run_optimum.py", "fp32"),
    Candidate("mobius fp32 in genai", "mobius", "mobius", "run_genai.py", "fp32"),
    Candidate("CTranslate2 float32", "ctranslate2-float32", "ctranslate2", "run_ctranslate2.py", "float32"),
    Candidate("CTranslate2 int8", "ctranslate2-int8", "ctranslate2", "run_ctranslate2.py", "int8"),
    Candidate("llama.cpp f32", "llama-f32", "llama", "run_llama.py", "f32"),
    Candidate("llama.cpp q8_0", "llama-q8_0", "llama", "run_llama.py", "q8_0"),
    Candidate("llama.cpp q4_0", "llama-q4_0", "llama", "run_llama.py", "q4_0"),
    Candidate("transformers fp32", "checkpoint", HERE, "run_transformers.py", "fp32"),
    Candidate("transformers bf16", "checkpoint", HERE, "run_transformers.py", "bf16"),
)
BASELINE = CANDIDATES[0]


@dataclass(frozen=True, order=True)
class Shape:
    """A batch of prompts, each ``context`` tokens long."""

    batch: int
    context: int


SMALL = {Shape(1, 16): 1, Shape(1, 128): 64, Shape(1, 900): 64, Shape(8, 128): 32, Shape(32, 128): 16}  # new tokens
LARGE = {Shape(8, 900): 16, Shape(32, 900): 16}  # peers that return all logits need many gigabytes here


@dataclass(frozen=True)
class Plan:
    """How much to measure."""

    rounds: int = 5
    small: dict[Shape, int] = field(default_factory=lambda: SMALL)
    large: dict[Shape, int] = field(default_factory=lambda: LARGE)

    @property
    def few(self) -> int:
        """Return the rounds of what takes long: conversions and the largest batches."""
        return (self.rounds + 1) // 2

    @classmethod
    def quick(cls) -> Plan:
        """Return the plan of a trial run, which shows whether everything works."""
        small = {shape: min(tokens, 8) for shape, tokens in SMALL.items()}
        return cls(1, small, {Shape(8, 900): 4})


@dataclass
class Row:
    """The measurements of one candidate."""

    conversions: list[Run] = field(default_factory=list)
    disk_bytes: int | None = None
    load_seconds: list[float] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    sanity: list[list[int]] = field(default_factory=list)  # tokens after the fixed prompts
    prefill: dict[Shape, list[float]] = field(default_factory=dict)  # seconds until the first token
    decode: dict[Shape, list[float]] = field(default_factory=dict)  # tokens a second after it, of all rows together
    notes: list[str] = field(default_factory=list)

    def note(self, what: str, error: PeerError) -> None:
        """Record a failure, once."""
        note = f"{what}: {error}"
        if note not in self.notes:
            self.notes.append(note)
            click.echo(f"  {note}", err=True)

    @contextmanager
    def noting(self, what: str) -> Iterator[None]:
        """Turn a failure into a note."""
        try:
            yield
        except PeerError as error:
            self.note(what, error)


@dataclass(frozen=True)
class Results:
    """All rows, by the names of the candidates."""

    plan: Plan
    rows: dict[str, Row]
    work: Path

    def as_json(self) -> dict[str, Any]:
        """Return every measurement."""

        def by_shape(values: dict[Shape, list[float]]) -> dict[str, list[float]]:
            return {f"{shape.batch}x{shape.context}": figures for shape, figures in values.items()}

        rows = {
            name: {
                "conversion_seconds": [run.seconds for run in row.conversions],
                "conversion_peak_bytes": [run.peak_bytes for run in row.conversions],
                "disk_bytes": row.disk_bytes,
                "load_seconds": row.load_seconds,
                "versions": row.versions,
                "sanity": row.sanity,
                "prefill_seconds": by_shape(row.prefill),
                "decode_tokens_per_second": by_shape(row.decode),
                "notes": row.notes,
            }
            for name, row in self.rows.items()
        }
        return {"date": time.strftime("%Y-%m-%d"), "threads": THREADS, "rounds": self.plan.rounds, "candidates": rows}


def chosen(only: str) -> list[Candidate]:
    """Return the candidates whose names begin as asked for; by default all of them."""
    beginnings = tuple(part.strip() for part in only.split(",") if part.strip())
    found = [candidate for candidate in CANDIDATES if not beginnings or candidate.name.startswith(beginnings)]
    if not found:
        names = ", ".join(candidate.name for candidate in CANDIDATES)
        raise click.ClickException(f"no candidate begins with {only}; expected some of {names}")
    return found


def add_tokenizer(source: Path, tokenizer: Path | None) -> None:
    """Copy GPT-2's tokenizer beside the checkpoint, from a folder or from the Hub. llama.cpp's converter needs it."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            continue
        try:
            shutil.copyfile(tokenizer / name if tokenizer else hub_file(name), source / name)
        except OSError as error:
            click.echo(f"{name} cannot be copied ({type(error).__name__}); give it with --tokenizer DIR", err=True)


def hub_file(name: str) -> str:
    from huggingface_hub import hf_hub_download

    return hf_hub_download("openai-community/gpt2", name)


def compare(work: Path, source: Path, candidates: Sequence[Candidate], plan: Plan) -> Results:
    """Install, convert and measure the candidates; return the results."""
    rows = {candidate.name: Row() for candidate in candidates}
    bench = Bench(work, source, plan, rows)
    try:
        bench.install(candidates)
        bench.convert(candidates)
        bench.measure_small(bench.able(candidates))
        bench.measure_large(bench.able(candidates))
    except KeyboardInterrupt:
        click.echo("stopped; these were the measurements so far:", err=True)
    return Results(plan, rows, work)


@dataclass(frozen=True)
class Bench:
    """The run of all measurements. A candidate that fails in an early step takes no later ones."""

    work: Path
    source: Path
    plan: Plan
    rows: dict[str, Row]

    def able(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Return the candidates that have a model."""
        return [candidate for candidate in candidates if self.rows[candidate.name].disk_bytes]

    def install(self, candidates: Sequence[Candidate]) -> None:
        for name in dict.fromkeys(candidate.environment for candidate in candidates):
            if name == HERE:
                continue
            click.echo(f"environment {name}", err=True)
            try:
                install(self.work / "environments" / name, ENVIRONMENTS[name])
            except PeerError as error:
                for candidate in candidates:
                    if candidate.environment == name:
                        self.rows[candidate.name].note("installation", error)

    def convert(self, candidates: Sequence[Candidate]) -> None:
        """Convert all models, round by round. A model that two candidates run is converted once a round."""
        warm(self.source)
        users: dict[str, list[Row]] = {}
        for candidate in candidates:
            if not self.rows[candidate.name].notes:
                users.setdefault(candidate.model, []).append(self.rows[candidate.name])
        for _ in range(self.plan.few):
            for name, rows in users.items():
                self.convert_once(name, [row for row in rows if not row.notes])

    def convert_once(self, name: str, rows: list[Row]) -> None:
        if not rows:
            return
        click.echo(f"conversion {name}", err=True)
        try:
            run, disk = convert(self.work, self.source, name)
        except PeerError as error:
            for row in rows:
                row.note("conversion", error)
            return
        for row in rows:
            row.disk_bytes = disk
            row.conversions += [run] if run else []

    def measure_small(self, candidates: list[Candidate]) -> None:
        """Measure all candidates in turn for each shape. Their models stay open."""
        for _ in range(self.plan.rounds - 1):
            for candidate in candidates:
                with ExitStack() as stack:
                    self.open(stack, candidate)
        with ExitStack() as stack:
            workers = {candidate.name: self.open(stack, candidate) for candidate in candidates}
            open_ones = {name: worker for name, worker in workers.items() if worker is not None}
            for name, worker in open_ones.items():
                with self.rows[name].noting("first tokens"):
                    prompts = random_prompts(SANITY_PROMPTS, SANITY_LENGTH, seed=0)
                    self.rows[name].sanity = worker.generate(prompts, SANITY_NEW)["tokens"]
                    worker.generate(*WARM)
            for number in range(self.plan.rounds):
                for shape, new_tokens in self.plan.small.items():
                    click.echo(f"round {number + 1}: batch {shape.batch}, context {shape.context}", err=True)
                    for name, worker in open_ones.items():
                        self.time(name, worker, shape, new_tokens, number)

    def measure_large(self, candidates: list[Candidate]) -> None:
        """Measure all candidates in turn, one open at a time. Together they would not fit into memory."""
        for number in range(self.plan.few if self.plan.large else 0):
            for candidate in candidates:
                with ExitStack() as stack:
                    worker = self.open(stack, candidate)
                    if worker is not None:
                        self.time_large(candidate.name, worker, number)

    def time_large(self, name: str, worker: Worker, number: int) -> None:
        with self.rows[name].noting("first tokens"):
            worker.generate(*WARM)
        for shape, new_tokens in self.plan.large.items():
            click.echo(f"round {number + 1}: batch {shape.batch}, context {shape.context}, {name}", err=True)
            self.time(name, worker, shape, new_tokens, number)

    def open(self, stack: ExitStack, candidate: Candidate) -> Worker | None:
        row = self.rows[candidate.name]
        opened: list[Worker] = []
        with row.noting("loading"):
            worker = Worker(self.work, self.model_folder(candidate), candidate)
            stack.callback(worker.close)
            reply = worker.answer()
            row.load_seconds.append(reply["seconds"])
            row.versions = reply["versions"]
            opened.append(worker)
        return opened[0] if opened else None

    def model_folder(self, candidate: Candidate) -> Path:
        return self.work / "models" / candidate.model if MODELS[candidate.model].command else self.source

    def time(self, name: str, worker: Worker, shape: Shape, new_tokens: int, number: int) -> None:
        if worker.ended:
            return
        row = self.rows[name]
        with row.noting(f"batch {shape.batch}, context {shape.context}"):
            time.sleep(PAUSE_SECONDS)
            done = worker.generate(random_prompts(shape.batch, shape.context, seed=number), new_tokens)
            row.prefill.setdefault(shape, []).append(done["first"])
            if new_tokens > 1:
                rate = shape.batch * (new_tokens - 1) / (done["last"] - done["first"])
                row.decode.setdefault(shape, []).append(rate)


class Worker:
    """A process that holds a model open."""

    def __init__(self, work: Path, folder: Path, candidate: Candidate) -> None:
        python = python_of(work, candidate.environment)
        command = [str(python), str(WORKERS / candidate.worker), str(folder), candidate.variant]
        command += [str(THREADS), str(int(MEMORY_SHARE * free_memory()))]
        log = log_file(work, f"worker {candidate.name}").open("w", encoding="utf-8")
        self.ended = False
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=surroundings(candidate.environment),
        )
        log.close()

    def generate(self, prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
        """Send a request; return the worker's answer."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"prompts": prompts, "new_tokens": new_tokens}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # answer() says why it ended
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Return the worker's next answer; wait no longer than the limit."""
        assert self.process.stdout is not None
        began = time.monotonic()
        killer = threading.Timer(LIMIT_SECONDS, self.process.kill)
        killer.daemon = True
        killer.start()
        try:
            line = self.process.stdout.readline()
        finally:
            killer.cancel()
        if not line:
            self.ended = True
            late = time.monotonic() - began >= LIMIT_SECONDS
            code = self.process.wait()
            raise PeerError(f"no answer in {LIMIT_SECONDS} s" if late else f"its process ended with {code}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise PeerError(reply["error"])
        return reply

    def close(self) -> None:
        """End the worker by closing its input; kill it if it does not end."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with self.process, self.process.stdout:
            try:
                self.process.stdin.close()
                self.process.wait(60)
            except (BrokenPipeError, subprocess.TimeoutExpired):
                self.process.kill()


def install(folder: Path, environment: Environment) -> None:
    """Make an environment with its packages, once."""
    done = folder / "installed.json"
    wanted = json.dumps(asdict(environment))
    if done.is_file() and done.read_text(encoding="utf-8") == wanted:
        return
    folder.mkdir(parents=True, exist_ok=True)
    python = folder / "bin" / "python"
    log = folder / "install.log"

    def run(*command: str | Path) -> None:
        try:
            measure([*map(str, command)], log=log, limit=INSTALL_SECONDS, env=surroundings(folder.name) | COMPILER)
        except (click.ClickException, OSError) as error:
            raise PeerError(f"its packages cannot be installed ({last_line(log)})") from error

    if not python.is_file():
        run(sys.executable, "-m", "venv", folder)
    pip: list[str | Path] = [python, "-m", "pip", "--disable-pip-version-check"]
    name = environment.compiled.partition("==")[0]
    from_source = ["--no-binary", name, "--no-cache-dir"] if name else []  # a cached wheel has other flags
    run(*pip, "install", "--quiet", *from_source, *environment.packages)
    if name and not (folder / "source").is_dir():
        run(*pip, "download", "--quiet", "--no-deps", *from_source, "--dest", folder, environment.compiled)
        unpack(next(folder.glob("*.tar.gz")), folder / "source")
    run(*pip, "freeze")
    shutil.copyfile(log, folder / "packages.txt")
    done.write_text(wanted, encoding="utf-8")


def unpack(archive: Path, out: Path) -> None:
    """Unpack a source package; its only folder becomes ``out``."""
    beside = out.with_name("unpacked")
    shutil.rmtree(beside, ignore_errors=True)
    with tarfile.open(archive) as opened:
        opened.extractall(beside, filter="data")
    next(beside.iterdir()).rename(out)
    beside.rmdir()
    archive.unlink()


def convert(work: Path, source: Path, name: str) -> tuple[Run | None, int]:
    """Convert a model once; return what the process took, and the bytes on disk."""
    model = MODELS[name]
    out = work / "models" / name if model.command else source
    run = None
    if model.command:
        shutil.rmtree(out, ignore_errors=True)
        out.parent.mkdir(exist_ok=True)
        python = python_of(work, model.environment)
        places = {"python": python, "bin": python.parent, "environment": python.parent.parent}
        command = [part.format(source=source, out=out, **places) for part in model.command]
        log = log_file(work, f"convert {name}")
        try:
            run = measure(command, log=log, limit=LIMIT_SECONDS, env=surroundings(model.environment))
        except (click.ClickException, OSError) as error:
            raise PeerError(last_line(log) or "its converter failed without a message") from error
    files = {file for pattern in model.files for file in out.glob(pattern) if file.is_file() and not file.is_symlink()}
    if not files:
        raise PeerError(f"its converter wrote no {' or '.join(model.files)}")
    return run, sum(file.stat().st_size for file in files)


def llama_logits(work: Path, checkpoint: Path, source: Path, variant: str, ids: np.ndarray) -> np.ndarray:
    """Return llama.cpp's logits ``[rows, tokens, vocab_size]`` of a small checkpoint for ``ids`` ``[rows, tokens]``."""
    install(work / "environments" / "llama", ENVIRONMENTS["llama"])
    shutil.copytree(checkpoint, source, dirs_exist_ok=True)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["n_ctx"] = config["n_positions"]  # llama.cpp's converter reads it there
    (source / "config.json").write_text(json.dumps(config), encoding="utf-8")
    ids_file, logits_file = source.with_name("ids.npy"), source.with_name(f"{variant}.npy")
    np.save(ids_file, ids)
    environment = work / "environments" / "llama"
    script = environment / "source/vendor/llama.cpp/convert_hf_to_gguf.py"
    command = [
        python_of(work, "llama"),
        WORKERS / "quality_llama.py",
        script,
        source,
        source.with_name("gguf"),
        variant,
    ]
    log = log_file(work, f"quality {variant}")
    measure([*map(str, command), str(ids_file), str(logits_file)], log=log, env=surroundings("llama"))
    return np.load(logits_file)


def python_of(work: Path, environment: str) -> Path:
    return Path(sys.executable) if environment == HERE else work / "environments" / environment / "bin" / "python"


def surroundings(environment: str) -> dict[str, str]:
    """Return a process's environment variables: our modules for ours only, equal threads for all, and no Hub."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {
        **inherited,
        **({"PYTHONPATH": str(ROOT)} if environment == HERE else {}),
        "OMP_NUM_THREADS": str(THREADS),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def log_file(work: Path, name: str) -> Path:
    folder = work / "logs"
    folder.mkdir(exist_ok=True)
    return folder / f"{name.replace(' ', '-')}.log"


def last_line(log: Path) -> str:
    """Return the last line of a log, where most programs say why they failed."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    said = [line.split("\r")[-1].strip() for line in lines if line.strip()]
    return said[-1][:200] if said else ""


def warm(folder: Path) -> None:
    """Read the checkpoint once, so that no candidate meets a cold disk."""
    with (folder / "model.safetensors").open("rb") as opened:
        while opened.read(1 << 20):
            pass


def free_memory() -> int:
    """Return the bytes that a process can have; all there are if the kernel does not say."""
    info = Path("/proc/meminfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return free[0] if free else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def random_prompts(batch: int, length: int, seed: int) -> list[list[int]]:
    """Return random prompts, the same for every candidate."""
    rng = random.Random(f"{batch} {length} {seed}")
    return [[rng.randrange(VOCABULARY) for _ in range(length)] for _ in range(batch)]


# A text that every model writes before it is measured, so that the runtime has prepared everything.
WARM = random_prompts(1, SANITY_LENGTH, seed=0), 96
