"""The group of all commands: little output on success, errors of one sentence, exit codes."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click

from converter.cli import terminal
from converter.texts import one_line
from converter.version import VERSION
from reference.errors import GPT2Error

MISMATCH, BAD_INPUT, INTERNAL_ERROR, INTERRUPTED, TERMINATED = 1, 2, 3, 130, 143

BROKEN_PIPE = 141  # as a shell says of a process that SIGPIPE ended

EXIT_CODES = {
    0: "done; of check and verify: it is the same model",
    MISMATCH: "mismatch: check or verify found a difference",
    BAD_INPUT: "bad input or usage: the message says what to do",
    INTERNAL_ERROR: "internal error, which is ours: --debug shows where",
    INTERRUPTED: "interrupted by Ctrl-C; nothing half-written is left behind",
    BROKEN_PIPE: "whoever read the output is gone, as in gpt2onnx … | head",
    TERMINATED: "ended by SIGTERM; nothing half-written is left behind",
}

# Headings of the help → the commands below them, in the order in which a newcomer meets them.
SECTIONS = {
    "Begin": ("demo", "completion"),
    "Convert": ("convert", "check", "verify", "inspect"),
    "Run": ("generate", "run", "score", "serve", "bench"),
}

# What huggingface_hub and others read as they are imported: a user's own choice wins.
QUIET = {"DO_NOT_TRACK": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

Groups = Mapping[str, Sequence[str]]  # headings of options → the names of their parameters


class Command(click.Command):
    """A command whose help shows its options in groups and ends with examples.

    Args:
        groups: options that stand under a heading of their own; all others come first.
        examples: lines for a shell. The tests run every one.
    """

    def __init__(self, *args: Any, groups: Groups | None = None, examples: Sequence[str] = (), **options: Any) -> None:
        super().__init__(*args, **options)
        self.groups, self.examples = dict(groups or {}), tuple(examples)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options, group by group, their descriptions below each other."""
        shown = {
            "help" if param is self.get_help_option(ctx) else param.name: param.get_help_record(ctx)
            for param in self.get_params(ctx)
            if isinstance(param, click.Option)
        }
        grouped = {name for names in self.groups.values() for name in names}
        headings = {"Options": [name for name in shown if name not in grouped], **self.groups}
        rows = {
            heading: [record for name in names if (record := shown.get(name)) is not None]
            for heading, names in headings.items()
        }
        write_sections(formatter, rows)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The examples, as they are: a line that is broken cannot be copied."""
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples:
                    formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


def write_sections(formatter: click.HelpFormatter, sections: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    """Write headings with rows of two columns. The first column has the same width everywhere."""
    terms = [term for rows in sections.values() for term, _ in rows]
    width = max((len(term) for term in terms if len(term) <= TERM_WIDTH), default=0)
    for heading, rows in sections.items():
        if rows:
            with formatter.section(heading):
                formatter.write_dl([(term.ljust(width), text) for term, text in rows], col_max=TERM_WIDTH)


TERM_WIDTH = 26  # what is longer stands in a line of its own


class Commands(Command, click.Group):
    """The group that turns errors into sentences and exit codes."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click passes it
        """Return the commands in the order of the help."""
        return [name for names in SECTIONS.values() for name in names]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands, then the few options."""

        def rows(names: Iterable[str]) -> list[tuple[str, str]]:
            return [(name, self.commands[name].short_help or "") for name in names]

        write_sections(formatter, {heading: rows(names) for heading, names in SECTIONS.items()})
        super().format_options(ctx, formatter)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Examples and exit codes."""
        super().format_epilog(ctx, formatter)
        write_sections(formatter, {"Exit codes": [(str(code), text) for code, text in EXIT_CODES.items()]})

    def main(self, *args: Any, standalone_mode: bool = True, **options: Any) -> Any:
        """Run as a program, which ends here, or as a function."""
        run: Callable[..., Any] = super().main
        if not standalone_mode:
            return run(*args, standalone_mode=False, **options)
        fill_closed_streams()
        try:
            code = run(*args, standalone_mode=False, **options) or 0
        except click.ClickException as error:  # a mistake in the command line
            with terminal.standard_error():
                error.show()
            code = error.exit_code
        except click.Abort:
            code = INTERRUPTED
        sys.exit(code)

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        """Read the command line. This is where --help is printed."""
        try:
            return super().make_context(*args, **options)
        except OSError as error:
            raise click.exceptions.Exit(without_output(error)) from error

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; turn what it raises into a sentence and an exit code."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # a terminal without Unicode still gets its verdict
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # so that half-written folders are removed
        end_when_a_file_is_cut()
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, SystemExit):
            raise
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)
        except BaseException as error:  # what a library in Rust raises is no Exception
            if isinstance(error, OSError) and error.errno in NO_OUTPUT:
                ctx.exit(without_output(error))
            self.fail(ctx, *said_of(error))

    def fail(self, ctx: click.Context, sentence: str, code: int) -> None:
        """Print the sentence, and with ``--debug`` the traceback."""
        if ctx.meta.get("debug"):
            terminal.say(traceback.format_exc().rstrip())
        terminal.say(f"gpt2onnx: {one_line(sentence)}")
        ctx.exit(code)


def said_of(error: BaseException) -> tuple[str, int]:
    """Return a sentence on what a command raised, and the exit code."""
    if is_out_of_memory(error):
        return "there is not enough memory for this: end other programs, or raise the limit", BAD_INPUT
    if isinstance(error, GPT2Error):
        return str(error), BAD_INPUT
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"there is no {error.filename}: the name is too long for this system", BAD_INPUT
    if type(error).__name__ == PANIC:
        return f"a library gave up on the tokenizer or the text that it was given ({error}): mend one", BAD_INPUT
    return f"internal error: {type(error).__name__}: {error} (--debug shows where)", INTERNAL_ERROR


# How libraries say so in C++ and C: ONNX Runtime, torch, and the loader of a library.
OUT_OF_MEMORY = ("bad_alloc", "not enough memory", "Failed to allocate memory", "failed to map segment")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory was missing, by whatever name, also behind an error of ours."""
    if isinstance(error, GPT2Error):
        return error.__cause__ is not None and is_out_of_memory(error.__cause__)
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return any(words in str(error) for words in OUT_OF_MEMORY)


PANIC = "PanicException"  # of pyo3, which tokenizers is built with: a pattern that takes too many steps, for example

# What is said where output cannot be written. Files that are written have names, and sentences of their own.
NO_OUTPUT = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


def without_output(error: OSError) -> int:
    """Return the exit code where standard output takes no more. What is left unwritten is dropped."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if error.errno == errno.EPIPE:
        return BROKEN_PIPE
    terminal.say(f"gpt2onnx: the output cannot be written: {error.strerror}")
    return BAD_INPUT


def end_when_a_file_is_cut() -> None:
    """End with a sentence if a file becomes shorter while it is mapped; the system's own signal would only kill."""
    if not hasattr(signal, "SIGBUS"):
        return
    import ctypes

    def end(_number: int) -> None:
        os.write(2, f"gpt2onnx: {CUT}\n".encode())
        os._exit(BAD_INPUT)  # nothing may return to what cannot go on; the next command removes what is half-written

    KEPT.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(end))
    ctypes.CDLL(None).signal(signal.SIGBUS, KEPT[-1])


CUT = "a file became shorter while it was read, or its disk failed: run the command again"
KEPT: list[Any] = []  # the system calls it by its address, which lives as long as the object


def fill_closed_streams() -> None:
    """Open as nothing what is closed of standard input, output and error.

    Otherwise the next file that is opened would take the place, and get what libraries write to these streams.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it takes the lowest number that is free


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    examples=[
        "gpt2onnx demo",
        "gpt2onnx convert openai-community/gpt2 gpt2-onnx",
        "gpt2onnx check openai-community/gpt2 gpt2-onnx",
        'gpt2onnx generate gpt2-onnx "Once upon a time"',
    ],
)
@click.version_option(VERSION, prog_name="gpt2onnx")
def cli() -> None:
    """Convert GPT-2 checkpoints to ONNX, prove the conversion, and run it.

    demo shows the whole way on a small model that ships with the tool. gpt2onnx COMMAND --help says what each command
    takes.
    """
