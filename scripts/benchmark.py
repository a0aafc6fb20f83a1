"""Measure gpt2onnx as its users run it: whole processes, with their peak memory.

    \b
    python scripts/benchmark.py convert gpt2 gpt2-xl
    python scripts/benchmark.py check gpt2
    python scripts/benchmark.py sources gpt2-xl
    python scripts/benchmark.py first-token
    python scripts/benchmark.py quality
    python scripts/benchmark.py provider gpt2 --provider cuda
    python scripts/benchmark.py gpu
    python scripts/benchmark.py peers --write docs/benchmarks.md
    python scripts/benchmark.py serve
    python scripts/benchmark.py stream-cost

Checkpoints of the real sizes are made on first use and kept in --work. Figures are medians of --runs, after one run
that warms the page cache. "copy" is the time of cp(1) for the same weights in the same minute.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
from make_checkpoint import SIZES as MADE_SIZES
from make_sources import FORMATS
from peers.bench import compare as compare_peers
from peers.candidates import ON_GPU, chosen
from peers.gpu import measure_on_gpu, tables
from peers.llama import llama_logits
from peers.load import LEVELS
from peers.machine import machine
from peers.page import page as page_of
from peers.plan import Plan
from peers.ratios import ratios
from peers.serve import as_json, beside_generate, measure_servers, page_of_servers, serving_ratios
from peers.servers import SERVERS
from peers.tokenizer import TOKENIZER_HELP, add_tokenizer
from processes import Run, measure

from converter.weights.table import parameters

HERE = Path(__file__).resolve().parent
GPT2ONNX = [sys.executable, "-m", "converter.cli"]
ALLOWED_BYTES = 400e6  # for a conversion's peak memory, in addition to the largest tensor
LLAMA = ("f32", "q8_0", "q4_0")
ALL_PRECISIONS = "fp32,fp16,int8,int4"
SIZES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")


def median(runs: int, once: Callable[[], Run]) -> str:
    """Run once to warm the caches, then ``runs`` times; return ``median s (min–max), peak``."""
    once()
    return figures([once() for _ in range(runs)])


def figures(done: list[Run]) -> str:
    """Return ``median s (min–max), peak`` of some runs."""
    seconds = sorted(run.seconds for run in done)
    peak = max(run.peak_bytes for run in done) / 1e6
    return f"{statistics.median(seconds):.2f} s ({seconds[0]:.2f}–{seconds[-1]:.2f}), peak {peak:.0f} MB"


@click.group(help=__doc__)
@click.option("--work", type=click.Path(path_type=Path), default=Path("/tmp/gpt2onnx-benchmark"), show_default=True)
@click.option("--runs", default=3, show_default=True)
@click.pass_context
def main(ctx: click.Context, work: Path, runs: int) -> None:
    ctx.obj = (work, runs)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    click.echo(
        f"{time.strftime('%Y-%m-%d')}, Python {platform.python_version()}, {os.cpu_count()} cores, {memory:.0f} GiB"
    )


def checkpoint(work: Path, size: str) -> Path:
    """Return the random checkpoint of a size; it is made if it is not there."""
    folder = work / size
    if not (folder / "config.json").is_file():
        subprocess.run([sys.executable, HERE / "make_checkpoint.py", "--size", size, folder], check=True)
    return folder


@main.command()
@click.argument("sizes", nargs=-1, type=click.Choice(SIZES))
@click.pass_obj
def convert(settings: tuple[Path, int], sizes: tuple[str, ...]) -> None:
    """Measure a conversion to a folder and in place, with and without the scan for NaN, beside a plain copy."""
    for size in sizes or SIZES[:1]:
        benchmark_convert(*settings, size)


def benchmark_convert(work: Path, runs: int, size: str) -> None:
    source, out, copied = checkpoint(work, size), work / f"{size}-onnx", work / f"{size}-copy"
    weights = source / "model.safetensors"
    click.echo(f"\n{size}: {weights.stat().st_size / 1e6:.0f} MB of weights")

    def row(label: str, command: list[str], *leftovers: Path) -> None:
        def once() -> Run:
            remove(*leftovers)
            return measure(command)

        click.echo(f"  {label:22} {median(runs, once)}")

    new = [*GPT2ONNX, "convert", str(source), str(out), "-q"]
    row("copy (cp)", ["cp", "--reflink=auto", str(weights), str(copied)], copied)
    row("convert", new, out)
    row("convert --no-scan", [*new, "--no-scan"], out)
    files = sum(file.lstat().st_size for file in out.rglob("*") if file.is_file() and not file.is_symlink())
    click.echo(f"  {'OUT on disk':22} {files / 1e6:.1f} MB")
    remove(copied, out)

    added = [source / name for name in ("model.onnx", "gpt2onnx.json", "genai_config.json", "README.md")]
    in_place = [*GPT2ONNX, "convert", str(source), "--in-place", "-q"]
    row("--in-place", in_place, *added)
    row("--in-place --no-scan", [*in_place, "--no-scan"], *added)
    remove(*added)


def remove(*paths: Path) -> None:
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@main.command()
@click.argument("sizes", nargs=-1, type=click.Choice(SIZES))
@click.option("--level", default="quick", show_default=True)
@click.pass_obj
def check(settings: tuple[Path, int], sizes: tuple[str, ...], level: str) -> None:
    """Measure the parity check of a fresh conversion."""
    for size in sizes or SIZES[:1]:
        benchmark_check(*settings, size, level)


def benchmark_check(work: Path, runs: int, size: str, level: str) -> None:
    source, out = checkpoint(work, size), work / f"{size}-onnx"
    remove(out)
    measure([*GPT2ONNX, "convert", str(source), str(out), "-q"])
    command = [*GPT2ONNX, "check", str(source), str(out), "--level", level, "--json"]
    done = [measure(command) for _ in range(runs)]
    report = json.loads(done[0].output)
    click.echo(f"\n{size}: {report['verdict']}")
    for leg in report["legs"]:
        error = f"RMS {leg['rms']:.1e} = {leg['rms_floors']:.2f} × floor"
        click.echo(f"  {leg['name']:38} {error}, {leg['seconds']:.1f} s")
    click.echo(f"  {f'check --level {level}':38} {figures(done)}")
    remove(out)


@main.command()
@click.argument("sizes", nargs=-1, type=click.Choice(SIZES))
@click.pass_obj
def sources(settings: tuple[Path, int], sizes: tuple[str, ...]) -> None:
    """Measure conversions of other formats, and compare their memory with the limit: 400 MB and the largest tensor."""
    for size in sizes or SIZES[:1]:
        benchmark_sources(*settings, size)


def benchmark_sources(work: Path, runs: int, size: str) -> None:
    made, out, config = checkpoint(work, size), work / f"{size}-onnx", MADE_SIZES[size]
    largest = max(4 * math.prod(shape) for _, _, shape in parameters(config))
    allowed = largest + ALLOWED_BYTES
    click.echo(f"\n{size}: largest tensor {largest / 1e6:.0f} MB, so a conversion may take {allowed / 1e6:.0f} MB")

    def once(command: list[str]) -> Run:
        remove(out)
        return measure(command)

    for kind, (file, _, has_config) in FORMATS.items():
        folder = work / f"{size}-{kind}"
        remove(folder)
        try:  # one at a time: each takes as much of the disk as the model
            subprocess.run([sys.executable, HERE / "make_sources.py", made, folder, "--format", kind], check=True)
            command = [*GPT2ONNX, "convert", str(folder if has_config else folder / file), str(out), "-q"]
            command += ["--activation", "gelu"] if kind == "nanogpt" else []
            once(command)
            done = [once(command) for _ in range(runs)]
        finally:
            remove(folder, out)
        kept = "kept" if max(run.peak_bytes for run in done) <= allowed else "BROKEN"
        click.echo(f"  {file:22} {figures(done)}: {kept}")


@main.command("peers")
@click.option(
    "--work", "there", type=click.Path(path_type=Path), help="Keep peers and models here; by default as above."
)
@click.option("--only", default="", help="Candidates whose names begin like this: ours,llama.cpp")
@click.option("--rounds", default=5, show_default=True, help="Measurements of each figure.")
@click.option("--quick", is_flag=True, help="A trial run: one round, few tokens, no largest batch.")
@click.option("--tokenizer", type=click.Path(exists=True, file_okay=False, path_type=Path), help=TOKENIZER_HELP)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write every measurement.")
@click.option("--write", "page", type=click.Path(path_type=Path), help="Write the tables as a Markdown page.")
@click.pass_obj
def compare(
    settings: tuple[Path, int],
    there: Path | None,
    only: str,
    rounds: int,
    quick: bool,
    tokenizer: Path | None,
    json_file: Path | None,
    page: Path | None,
) -> None:
    """Measure other converters and runtimes, each in an environment of its own, beside gpt2onnx."""
    candidates = chosen(only)  # first, as a wrong name is to be told before anything is made
    work = (there or settings[0]).resolve()
    source = checkpoint(work, "gpt2")
    add_tokenizer(source, tokenizer)
    results = compare_peers(work, source, candidates, Plan.quick() if quick else Plan(rounds))
    text = page_of(results)
    click.echo(text)
    if json_file is not None:
        values = {"machine": machine(), **results.as_json(), "ratios": ratios(results)}
        json_file.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    if page is not None:
        page.write_text(text, encoding="utf-8")


@main.command()
@click.option("--only", default="", help="Servers whose names begin like this: ours,llama-server")
@click.option("--rounds", default=3, show_default=True, help="Measurements of each figure.")
@click.option("--streams", default=max(LEVELS), show_default=True, help="Streams at most.")
@click.option("--tokenizer", type=click.Path(exists=True, file_okay=False, path_type=Path), help=TOKENIZER_HELP)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write every measurement.")
@click.option("--write", "page", type=click.Path(path_type=Path), help="Write the tables as a Markdown page.")
@click.pass_obj
def serve(
    settings: tuple[Path, int],
    only: str,
    rounds: int,
    streams: int,
    tokenizer: Path | None,
    json_file: Path | None,
    page: Path | None,
) -> None:
    """Load gpt2onnx serve and other servers with 1 to 64 streams, in turn."""
    work = settings[0].resolve()
    source = checkpoint(work, "gpt2")
    add_tokenizer(source, tokenizer)
    found = measure_servers(work, source, only, rounds, streams)
    text = page_of_servers(found)
    click.echo(text)
    for line in serving_ratios(found):
        click.echo(line)
    if json_file is not None:
        json_file.write_text(json.dumps({"machine": machine(), **as_json(found)}, indent=1) + "\n", encoding="utf-8")
    if page is not None:
        page.write_text(text, encoding="utf-8")


@main.command("stream-cost")
@click.option("--prompts", default=12, show_default=True, help="How many; each is run by both.")
@click.pass_obj
def stream_cost(settings: tuple[Path, int], prompts: int) -> None:
    """Compare one stream of the server with generate."""
    work = settings[0].resolve()
    for server in SERVERS:
        if server.name.startswith("ours"):
            pairs = list(beside_generate(work, checkpoint(work, "gpt2"), server, prompts))
            ratios = sorted(stream / alone for stream, alone in pairs)
            served, alone = (sum(times) for times in zip(*pairs, strict=True))
            click.echo(
                f"{server.name}: {served:.1f} s served, {alone:.1f} s by generate; "
                f"ratio {statistics.median(ratios):.3f} ({ratios[0]:.3f}–{ratios[-1]:.3f})"
            )


@main.command("first-token")
@click.pass_obj
def first_token(settings: tuple[Path, int]) -> None:
    """Measure the time from the start of `gpt2onnx generate` on the bundled checkpoint to the first byte of text."""
    from converter import convert
    from converter.data import CHECKPOINT

    work, runs = settings
    convert(CHECKPOINT, work / "tiny-onnx", precision="fp32,int8", force=True)
    command = [*GPT2ONNX, "generate", str(work / "tiny-onnx"), "The following", "-n", "8", "-q", "--precision"]

    def once(precision: str) -> float:
        began = time.perf_counter()
        with subprocess.Popen([*command, precision], stdout=subprocess.PIPE, cwd=HERE.parent) as process:
            assert process.stdout is not None
            assert process.stdout.read(1)
            return time.perf_counter() - began

    for precision in ("fp32", "int8"):
        once(precision)
        seconds = sorted(once(precision) for _ in range(max(runs, 5)))
        click.echo(f"{precision}: {statistics.median(seconds):.2f} s ({seconds[0]:.2f}–{seconds[-1]:.2f})")


@main.command()
@click.pass_obj
def quality(settings: tuple[Path, int]) -> None:
    """Compare precisions of ours and of llama.cpp with float32, on the bundled checkpoint's held-out text."""
    import quality as of

    from converter import convert, load
    from converter.data import CHECKPOINT

    work = settings[0] / "quality"
    out, source = work / "onnx", work / "source"
    convert(CHECKPOINT, out, precision=ALL_PRECISIONS, force=True)
    models = {name: load(out, precision=name) for name in ALL_PRECISIONS.split(",")}
    ids = of.windows(models["fp32"])
    exact = models["fp32"].logits(ids)
    found = {f"ours {name}": model.logits(ids) for name, model in models.items() if name != "fp32"}
    found |= {f"llama.cpp {name}": llama_logits(settings[0], CHECKPOINT, source, name, ids) for name in LLAMA}
    click.echo(f"{'':16} perplexity ratio   mean KL   same top-1")
    for name, logits in found.items():
        row = of.quality(exact, logits, ids)
        click.echo(f"{name:16} {row.ratio:16.4f} {row.kl:9.1e} {row.top_1:12.3f}")


@main.command()
@click.argument("sizes", nargs=-1, type=click.Choice(SIZES))
@click.option("--provider", default="cuda", show_default=True)
@click.pass_obj
def provider(settings: tuple[Path, int], sizes: tuple[str, ...], provider: str) -> None:
    """Measure the speed of every precision on a GPU, and show which nodes run where."""
    from placement import placements

    work, _ = settings
    for size in sizes or SIZES[:1]:
        out = work / f"{size}-onnx"
        remove(out)
        measure([*GPT2ONNX, "convert", str(checkpoint(work, size)), str(out), "-q", "--precision", ALL_PRECISIONS])
        for name in ALL_PRECISIONS.split(","):
            click.echo(f"\n{size} {name}, nodes by provider")
            places: dict[str, list[str]] = {}
            for (where, op), count in sorted(placements(out, name, provider).items()):
                places.setdefault(where, []).append(f"{op} × {count}")
            for where, found in places.items():
                click.echo(f"  {where}: {', '.join(found)}")
        command = [*GPT2ONNX, "bench", str(out), "--provider", provider, "--batch-sizes", "1,8,32", "--rounds", "2"]
        click.echo(measure(command).output)
        remove(out)


@main.command()
@click.option("--only", default="", help="Candidates whose names begin like this: ours,transformers")
@click.option("--rounds", default=3, show_default=True, help="Measurements of each figure.")
@click.pass_obj
def gpu(settings: tuple[Path, int], only: str, rounds: int) -> None:
    """Measure fp16 on a GPU beside genai and transformers, with the packages of this Python."""
    work = settings[0].resolve()
    candidates = chosen(only, ON_GPU)
    found = measure_on_gpu(work, checkpoint(work, "gpt2"), candidates, rounds)
    click.echo(tables(found))


@main.command()
@click.pass_obj
def prove(settings: tuple[Path, int]) -> None:
    """Measure the check of seeded defects in the bundled checkpoint."""
    _, runs = settings
    command = [*GPT2ONNX, "check", "--prove", "--json"]
    done = [measure(command) for _ in range(runs)]
    proof = json.loads(done[0].output)
    caught = sum(trial["caught"] and trial["caught_by_logits"] for trial in proof["trials"])
    named = sum(trial["named"] and trial["named_by_logits"] for trial in proof["trials"])
    click.echo(f"{len(proof['trials'])} defects: {caught} caught twice, {named} named twice")
    click.echo(f"smallest change of {proof['matrix']} that is caught: {proof['smallest']:.1e}")
    click.echo(f"check --prove: {figures(done)}")


if __name__ == "__main__":
    main()
