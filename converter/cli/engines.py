"""What computes the texts of a file: this process, or workers of Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from converter.cli.options import standard_input
from converter.errors import ClusterError
from converter.texts import PromptLine, prompts_in, read_prompts, read_texts

if TYPE_CHECKING:
    from converter.runtime.generation import Copies, Generation
    from converter.runtime.options import GenerationOptions
    from converter.runtime.scoring import Rows
    from converter.runtime.session import Model


class Engine(Protocol):
    """Reads files and computes what is asked of their texts, in their order."""

    def prompts(self, file: Path) -> list[PromptLine]:
        """Return the prompts in a file."""

    def texts(self, file: Path) -> list[str]:
        """Return the texts in a file."""

    def generate_each(
        self, model: Model, prompts: Sequence[list[int]], asked: GenerationOptions, side_by_side: int, copies: Copies
    ) -> Iterator[Generation]:
        """Continue prompts; see ``converter.runtime.generation.generate_each``."""

    def log_probs(self, model: Model, batches: Iterable[Rows]) -> Iterator[list[list[float | None]]]:
        """Return the log-probabilities of tokens; see ``converter.runtime.scoring.log_probs``."""


class Here:
    """This process."""

    def prompts(self, file: Path) -> list[PromptLine]:
        """Return the prompts in a file, or on standard input if it is ``-``."""
        piped = str(file) == "-"
        return prompts_in(standard_input("--prompts FILE"), "standard input") if piped else read_prompts(file)

    def texts(self, file: Path) -> list[str]:
        """Return the texts in a file, or on standard input if it is ``-``."""
        return [standard_input("a FILE")] if str(file) == "-" else read_texts(file)

    def generate_each(
        self, model: Model, prompts: Sequence[list[int]], asked: GenerationOptions, side_by_side: int, copies: Copies
    ) -> Iterator[Generation]:
        """Continue prompts."""
        from converter.runtime.generation import generate_each

        return generate_each(model, prompts, asked, side_by_side, copies)

    def log_probs(self, model: Model, batches: Iterable[Rows]) -> Iterator[list[list[float | None]]]:
        """Return the log-probabilities of tokens."""
        from converter.runtime.scoring import log_probs

        return (log_probs(model, rows) for rows in batches)


@dataclass(frozen=True)
class Choice:
    """What is to compute.

    Attributes:
        name: ``local`` or ``ray``.
        workers: of Ray; None for one on each machine.
    """

    name: str
    workers: int | None

    @contextmanager
    def opened(self, threads: int | None, options: Mapping[str, Any]) -> Iterator[Engine]:
        """Yield what computes.

        Args:
            threads: of ONNX Runtime, in this process or in each worker.
            options: how the model is opened; see ``converter.load``.

        Raises:
            ClusterError: it is Ray, which is not there or has no room.
        """
        if self.name == "local":
            yield Here()
            return
        try:
            from converter.serving import cluster, workers
        except ImportError as error:
            raise ClusterError(f"--engine ray needs {error.name}: pip install 'gpt2onnx[ray]'") from error
        with cluster.joined():
            yield workers.Workers(*cluster.share(self.workers, threads), options)


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of what computes the texts of a file; the command gets them as ``choice``."""

    @wraps(command)
    def gathered(*, engine: str, workers: int | None, **others: Any) -> Any:
        if workers is not None and engine == "local":
            raise click.UsageError("--workers are Ray's: add --engine ray")
        return command(choice=Choice(engine, workers), **others)

    workers_option = click.option(
        "--workers", metavar="N", type=click.IntRange(1), help="Of Ray, each with the model; by default one a machine."
    )
    engine_option = click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="What computes the texts of FILE: this process, or workers of Ray, which read Parquet, too.",
    )
    return engine_option(workers_option(gathered))
