"""``gpt2onnx serve``."""

from __future__ import annotations

import logging
import os
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

if TYPE_CHECKING:
    from converter.serving.served import Served

KEY_VARIABLE = "GPT2ONNX_API_KEY"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}


@cli.command(
    short_help="Serve a model folder as OpenAI's API, with a page.",
    examples=[
        "gpt2onnx serve gpt2-onnx",
        "gpt2onnx serve gpt2-onnx --require-certificate --port 8001",
        "gpt2onnx serve classifier-onnx --port 0 --name films",
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
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"Requests need the key in FILE; by default that in the variable {KEY_VARIABLE}, if it is set.",
)
@click.option(
    "--allow-origin", metavar="ORIGIN", multiple=True, help="Let pages of ORIGIN (https://example.org) ask. Repeatable."
)
@click.option(
    "--rows", default=16, show_default=True, type=click.IntRange(1, 1024), help="Texts that run side by side."
)
@click.option(
    "--queue", default=128, show_default=True, type=click.IntRange(0), help="Texts that may wait for a place."
)
@click.option("--max-prompt-tokens", metavar="N", type=click.IntRange(1), help="By default the model's positions.")
@click.option("--max-new-tokens", metavar="N", type=click.IntRange(1), help="Likewise, of each text.")
@click.option(
    "--max-body", metavar="BYTES", default=1 << 20, show_default=True, type=click.IntRange(1), help="Of a request."
)
@click.option("--timeout", metavar="SECONDS", default=600.0, show_default=True, help="For a whole answer.")
@click.option("--drain", metavar="SECONDS", default=30.0, show_default=True, help="For requests to end after SIGTERM.")
@threads_option
@layout_options
@precision_option
@provider_option
@click.option(
    "--log", type=click.Choice(list(LEVELS)), default="info", show_default=True, help="Lines on standard error."
)
@click.option("-q", "--quiet", is_flag=True, help="Do not say where the server is.")
@debug_option
def serve(
    out: Path,
    name: str | None,
    require_certificate: bool,
    host: str,
    port: int,
    api_key_file: Path | None,
    allow_origin: tuple[str, ...],
    rows: int,
    queue: int,
    max_prompt_tokens: int | None,
    max_new_tokens: int | None,
    max_body: int,
    timeout: float,
    drain: float,
    threads: int | None,
    layout: dict[str, Any],
    precision: str | None,
    provider: str,
    log: str,
    quiet: bool,
) -> None:
    """Serve the model folder OUT over HTTP, with OpenAI's addresses, until Ctrl-C or SIGTERM.

    /v1/completions and /v1/chat/completions continue texts, as they come if they are to stream; texts of many run side
    by side. /v1/embeddings and /v1/classify ask other heads. / is a page to try the model on. docs/how-to/serve.md
    says more.
    """
    key = key_of(api_key_file)
    if key is None and host not in LOOPBACK:
        raise ServeError(
            f"others can reach {host}, and there is no API key: give --api-key-file or set {KEY_VARIABLE}, or serve "
            f"127.0.0.1 alone"
        )
    try:
        from converter.serving import limits, server
        from converter.serving.served import open_folder
    except ImportError as error:
        raise ServeError(f"serve needs {error.name}: pip install 'gpt2onnx[serve]'") from error
    from converter.cli import progress

    listening = server.listen(host, port)
    with listening, terminal.warnings_as_lines():
        with progress.line(f"opening {out}", not quiet):
            served = open_folder(
                out,
                name=name,
                provider=provider,
                threads=threads,
                precision=precision,
                layout=layout,
                rows=rows,
                queue=queue,
                limits=limits.Limits(
                    max_prompt_tokens, max_new_tokens, body_bytes=max_body, seconds=timeout, drain_seconds=drain
                ),
                certified=require_certificate,
            )

        def say() -> None:
            if not quiet:
                click.echo(about(served, server.url_of(listening)), err=True)

        end_log = server.log_to_standard_error(LEVELS[log])
        try:
            server.Server(served, key, allow_origin, say).run_on(listening)
        finally:
            end_log()


def key_of(file: Path | None) -> str | None:
    """Return the API key, if there is one.

    Raises:
        ServeError: it cannot be read, or is empty.
    """
    try:
        key = os.environ.get(KEY_VARIABLE) if file is None else file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise ServeError(f"{file} cannot be read as an API key: {getattr(error, 'strerror', None) or error}") from error
    if key is not None and not (key.strip() and key.isascii() and key.isprintable()):
        raise ServeError(f"the API key in {file or KEY_VARIABLE} is empty, or not one line of ASCII characters")
    return key


def about(served: Served, url: str) -> str:
    """Return a line on what is served."""
    head = f", {served.head}" if served.engine is None else ""
    memory = (
        ""
        if served.engine is None
        else f", {served.engine.rows} rows in at most " + terminal.size(served.engine.stats.cache_bytes)
    )
    return f"{url} serves {served.name} ({served.precision}{head}{memory}); {served.certificate.sentence}"
