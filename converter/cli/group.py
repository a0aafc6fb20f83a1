"""The group of all commands: quiet success, errors of one sentence, exit codes."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import traceback
from typing import Any

import click

from converter.version import VERSION
from reference.errors import GPT2Error

MISMATCH, BAD_INPUT, INTERNAL_ERROR, INTERRUPTED, TERMINATED = 1, 2, 3, 130, 143

BROKEN_PIPE = 141  # as a shell says of a process that SIGPIPE ended


class Commands(click.Group):
    """The group that turns errors into sentences and exit codes."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; whatever it raises becomes a sentence and an exit code."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # a terminal without Unicode still gets its verdict
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # so that half-written folders are removed
        try:
            return super().invoke(ctx)
        except GPT2Error as error:
            self.fail(ctx, str(error), BAD_INPUT)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:  # the last resort: whatever it is, it is our fault
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - what is left unwritten has no reader any more
                ctx.exit(BROKEN_PIPE)
            self.fail(ctx, f"internal error: {type(error).__name__}: {error} (--debug shows where)", INTERNAL_ERROR)

    def fail(self, ctx: click.Context, sentence: str, code: int) -> None:
        """Say the sentence, and with ``--debug`` where it comes from."""
        if ctx.meta.get("debug"):
            traceback.print_exc()
        click.echo(f"gpt2onnx: {sentence}", err=True)
        ctx.exit(code)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(VERSION, prog_name="gpt2onnx")
def cli() -> None:
    """Convert GPT-2 checkpoints to ONNX, prove the conversion, and run it.

    \b
    gpt2onnx demo                                    the whole way, on a small model that ships with the tool
    gpt2onnx convert openai-community/gpt2 OUT       checkpoint → model folder
    gpt2onnx check openai-community/gpt2 OUT         is it the same model?
    gpt2onnx generate OUT "Once upon a time"         run it in ONNX Runtime

    Exit codes: 0 done or match, 1 mismatch, 2 bad input, 3 internal error.
    """
