"""Files of many texts, computed by workers of Ray: each opens the model once and is given one task after another.

What is computed, and in which batches, is as without Ray; so are the answers.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.data
from ray.exceptions import RayError

from converter.errors import ClusterError
from converter.runtime import generation, scoring
from converter.runtime.generation import Copies, Generation
from converter.runtime.opening import load
from converter.runtime.options import GenerationOptions
from converter.runtime.session import Model
from converter.serving import cluster

# Prompts of a task, for each text that runs at once: enough that a task ends with few free places, few enough that
# what is lost with a worker is soon done again.
PROMPTS = 8

Job = Callable[[Model, Any], Any]


@dataclass(frozen=True)
class Workers:
    """Workers of the cluster that has been joined.

    Attributes:
        count: how many.
        threads: of each.
        options: how each opens the model; see ``converter.load``.
    """

    count: int
    threads: int
    options: Mapping[str, Any]

    def __post_init__(self) -> None:
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)

    def each(self, model: Model, job: Job, tasks: Iterable[Any]) -> Iterator[Any]:
        """Do a job with each task; yield what it returns, in the order of the tasks.

        Args:
            model: that the workers open, too. Its folder must be at the same path on every machine.

        Raises:
            ClusterError: a task has failed.
        """
        packed = [{"task": pickle.dumps(task)} for task in tasks]
        if not packed:
            return
        found = ray.data.from_items(packed, override_num_blocks=len(packed)).map(
            Worker,
            fn_constructor_args=(job, model.folder.resolve(), self.threads, dict(self.options)),
            compute=ray.data.ActorPoolStrategy(size=min(self.count, len(packed))),
            num_cpus=self.threads,
        )
        try:
            for row in found.iter_rows():
                yield pickle.loads(row["answer"])  # noqa: S301 - of a worker of ours
        except RayError as error:
            raise ClusterError(f"a worker of Ray has failed: {cluster.sentence_of(error)}") from error

    def generate_each(
        self, model: Model, prompts: Sequence[list[int]], asked: GenerationOptions, side_by_side: int, copies: Copies
    ) -> Iterator[Generation]:
        """Continue many prompts; see ``converter.runtime.generation.generate_each``."""
        size = PROMPTS * side_by_side

        def tasks() -> Iterator[Any]:
            for at in range(0, len(prompts), size):
                part = prompts[at : at + size]
                yield part, asked, side_by_side, copies.of(part)
                for ids in part:
                    copies.skip(ids, asked.best)

        for done in self.each(model, continued, tasks()):
            yield from done

    def log_probs(self, model: Model, batches: Iterable[scoring.Batch]) -> Iterator[list[list[float | None]]]:
        """Return the log-probabilities of tokens; see ``converter.runtime.scoring.log_probs``."""
        return self.each(model, scoring.log_probs, batches)


class Worker:
    """An actor of Ray: opens the model, and does a job with each task."""

    def __init__(self, job: Job, folder: Path, threads: int, options: Mapping[str, Any]) -> None:
        self._job, self._model = job, load(folder, threads=threads, **options)

    def __call__(self, row: Mapping[str, bytes]) -> dict[str, bytes]:
        """Do the job."""
        task = pickle.loads(row["task"])  # noqa: S301 - of the command that has started this worker
        return {"answer": pickle.dumps(self._job(self._model, task))}


def continued(model: Model, task: Any) -> list[Generation]:
    """Continue the prompts of a task."""
    return list(generation.generate_each(model, *task))
