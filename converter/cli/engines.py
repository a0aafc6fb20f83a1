"""What computes the texts of a file: this process, or workers of Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from converter.errors import ClusterError

if TYPE_CHECKING:
    from converter.serving.workers import Workers


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
    def opened(self, threads: int | None, options: Mapping[str, Any]) -> Iterator[Workers | None]:
        """Yield workers; None if this process is to compute.

        Args:
            threads: of ONNX Runtime in each worker.
            options: how the model is opened; see ``converter.load``.

        Raises:
            ClusterError: it is Ray, which is not there or has no room.
        """
        if self.name == "local":
            yield None
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
        help="What computes the texts of FILE: this process, or workers of Ray.",
    )
    return engine_option(workers_option(gathered))
