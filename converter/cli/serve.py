"""``gpt2onnx serve``."""

from __future__ import annotations

import importlib
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli import terminal
from converter.cli.group import cli
from converter.cli.options import (
    OUTPUT_GROUP,
    RUNTIME_GROUP,
    debug_option,
    layout_options,
    out_argument,
    precision_option,
    provider_option,
    threads_option,
)
from converter.errors import ServeError
from converter.serving.limits import BODY_BYTES, DRAIN_SECONDS, QUEUE, ROWS, SECONDS
from converter.serving.settings import KEY_VARIABLE, LEVELS, Settings

if TYPE_CHECKING:
    from converter.serving.served import Served

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@cli.command(
    short_help="Serve a model folder as OpenAI's API, with a page.",
    examples=[
        "gpt2onnx serve gpt2-onnx",
        "gpt2onnx serve gpt2-onnx --require-certificate --port 8001",
        "gpt2onnx serve classifier-onnx --port 0 --name films",
        "gpt2onnx serve gpt2-onnx --ray replicas.yaml",
    ],
    groups={
        "Who may ask": ("host", "port", "api_key_file", "allow_origin"),
        "How much may be asked": (
            "rows", "queue", "max_prompt_tokens", "max_new_tokens", "max_body", "timeout", "drain",
        ),
        **RUNTIME_GROUP,
        "Output": ("log", *OUTPUT_GROUP["Output"]),
    },
)  # fmt: skip
@out_argument
@click.option("--name", metavar="NAME", help="What requests call the model; by default OUT's own name.")
@click.option("--require-certificate", is_flag=True, help="Refuse OUT unless gpt2onnx verify would find a match.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="The address; others than this machine's need a key."
)
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0: any that is free.")
@click.option(
    "--api-key-file",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help=f"Requests need the key in FILE; by default that in the variable {KEY_VARIABLE}, if it is set.",
)
@click.option(
    "--allow-origin", metavar="ORIGIN", multiple=True, help="Let pages of ORIGIN (https://example.org) ask. Repeatable."
)
@click.option(
    "--rows", default=ROWS, show_default=True, type=click.IntRange(1, 1024), help="Texts that run side by side."
)
@click.option(
    "--queue", default=QUEUE, show_default=True, type=click.IntRange(0), help="Texts that may wait for a place."
)
@click.option("--max-prompt-tokens", metavar="N", type=click.IntRange(1), help="By default the model's positions.")
@click.option("--max-new-tokens", metavar="N", type=click.IntRange(1), help="Likewise, of each text.")
@click.option(
    "--max-body", metavar="BYTES", default=BODY_BYTES, show_default=True, type=click.IntRange(1), help="Of a request."
)
@click.option("--timeout", metavar="SECONDS", default=SECONDS, show_default=True, help="For a whole answer.")
@click.option(
    "--drain", metavar="SECONDS", default=DRAIN_SECONDS, show_default=True, help="For requests to end after SIGTERM."
)
@threads_option
@layout_options
@precision_option
@provider_option
@click.option(
    "--ray",
    "ray_file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Serve by replicas of Ray Serve, with its options for a deployment in FILE (YAML): num_replicas: 2, …",
)
@click.option("--log", type=click.Choice(LEVELS), default="info", show_default=True, help="Lines on standard error.")
@click.option("-q", "--quiet", is_flag=True, help="Do not say where the server is.")
@debug_option
def serve(
    out: Path, host: str, port: int, quiet: bool, ray_file: Path | None, layout: dict[str, Any], **options: Any
) -> None:
    """Serve the model folder OUT over HTTP, with OpenAI's addresses, until Ctrl-C or SIGTERM.

    /v1/completions and /v1/chat/completions continue texts, as they come if they are to stream; texts of many run side
    by side. /v1/embeddings and /v1/classify ask other heads. / is a page to try the model on. docs/how-to/serve.md
    says more.
    """
    from converter.cli import progress

    settings = Settings(out=str(out), **options, **layout)
    key = settings.key()
    if key is None and host not in LOOPBACK:
        raise ServeError(
            f"others can reach {host}, and there is no API key: give --api-key-file or set {KEY_VARIABLE}, or serve "
            f"127.0.0.1 alone"
        )

    def say(line: str) -> None:
        if not quiet:
            click.echo(line, err=True)

    if ray_file is not None:
        ray = needed("ray", "serve --ray", "ray")
        with ExitStack() as replicas:
            with progress.line(f"starting replicas of {out}", not quiet):
                url = replicas.enter_context(ray.running(settings, ray_file, host, port, key))
            ended = replicas.enter_context(ray.told_to_end())
            say(f"{url} serves {out} by replicas of Ray")
            ended.wait()
        return
    server = needed("server", "serve", "serve")
    listening = server.listen(host, port)
    with listening, terminal.warnings_as_lines():
        with progress.line(f"opening {out}", not quiet):
            served = settings.open()
        end_log = server.log_to_standard_error(settings.log)
        try:
            about_it = about(served, server.url_of(listening))
            server.Server(served, key, settings.allow_origin, lambda: say(about_it)).run_on(listening)
        finally:
            end_log()


def needed(module: str, command: str, extra: str) -> Any:
    """Return a module of the server, which needs packages that may not be there.

    Raises:
        ServeError: one is not.
    """
    try:
        return importlib.import_module(f"converter.serving.{module}")
    except ImportError as error:
        raise ServeError(f"{command} needs {error.name}: pip install 'gpt2onnx[{extra}]'") from error


def about(served: Served, url: str) -> str:
    """Return a line on what is served."""
    head = f", {served.head}" if served.engine is None else ""
    memory = (
        ""
        if served.engine is None
        else f", {served.engine.rows} rows in at most " + terminal.size(served.engine.stats.cache_bytes)
    )
    return f"{url} serves {served.name} ({served.precision}{head}{memory}); {served.certificate.sentence}"
