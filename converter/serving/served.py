"""What a server serves: one model folder, opened, with what runs it and what is known of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from converter.errors import EngineFull, ModelFolderError
from converter.folder import certificate, manifest
from converter.folder.certificate import Verification
from converter.folder.staging import MANIFEST
from converter.runtime import heads, opening
from converter.runtime.heads import HeadModel
from converter.runtime.session import Model
from converter.serving.engine import Engine
from converter.serving.limits import Limits
from converter.serving.openai import Certificate, Figures, ModelCard
from converter.tokenizer.chat import templates

Result = TypeVar("Result")
NO_LAYOUT: Mapping[str, Any] = MappingProxyType({})


class Aside:
    """Runs what does not go through the engine, such as the heads of models, one job after another.

    Args:
        queue: jobs that may wait.
    """

    def __init__(self, queue: int) -> None:
        self.queue, self.jobs = queue, 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="aside")

    async def run(self, job: Callable[..., Result], *arguments: Any) -> Result:
        """Run a job and return what it returns.

        Raises:
            EngineFull: too many wait.
        """
        if self.jobs > self.queue:
            raise EngineFull(f"{self.queue} requests wait, and no more may; try again later")
        self.jobs += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, job, *arguments)
        finally:
            self.jobs -= 1

    def close(self) -> None:
        """Run nothing that has not begun."""
        self._thread.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class Served:
    """A model folder that is served.

    Attributes:
        name: that requests call it.
        model: what is opened: a language model, or another head.
        precision: which of the folder's it is.
        engine: what continues texts; None for other heads.
        aside: what runs everything else.
        limits: of requests.
        proof: the folder's certificate, held against its files; or a sentence that there is none.
    """

    name: str
    model: Model | HeadModel
    precision: str
    engine: Engine | None
    aside: Aside
    limits: Limits
    proof: Verification | str
    values: dict[str, Any] = field(repr=False)

    @property
    def folder(self) -> Path:
        """Return where the model lies."""
        return self.model.folder

    @property
    def head(self) -> str:
        """Return the name of the model's head."""
        return self.model.config.head

    def without_path(self, sentence: str) -> str:
        """Return a sentence that names the model instead of its folder."""
        return sentence.replace(str(self.folder), self.name)

    @cached_property
    def chats(self) -> bool:
        """Tell whether the model has a chat template."""
        return self.engine is not None and self.model.tokenizer is not None and bool(templates(self.folder))

    @cached_property
    def prompt_tokens(self) -> int:
        """Return how many tokens a prompt may have."""
        positions = self.model.config.n_positions
        return min(positions, self.limits.prompt_tokens or positions)

    @cached_property
    def new_tokens(self) -> int:
        """Return how many tokens may be asked for."""
        positions = self.model.config.n_positions
        return min(positions, self.limits.new_tokens or positions)

    @property
    def proven(self) -> bool:
        """Tell whether the folder's files are those that a check found to match."""
        return isinstance(self.proof, Verification) and self.proof.passed

    @cached_property
    def certificate(self) -> Certificate:
        """Return what is known of the folder's check."""
        if isinstance(self.proof, str):
            return Certificate(verified=False, sentence=self.without_path(self.proof))
        told = self.proof.certificate
        facts = {key: told[key] for key in ("date", "level") if isinstance(told.get(key), str)}
        sentence = self.without_path(self.proof.verdict)
        return Certificate(verified=self.proven, sentence=sentence, figures=self._figures, **facts)

    @property
    def _figures(self) -> Figures | None:
        found = self.values.get("precisions", {}).get(self.precision, {}).get("quality", {})
        figures = {key: found.get(key) for key in Figures.__struct_fields__}
        return Figures(**figures) if all(isinstance(value, float | int) for value in figures.values()) else None

    @cached_property
    def card(self) -> ModelCard:
        """Return what the model is."""
        file = self.folder / MANIFEST
        return ModelCard(
            id=self.name,
            created=int((file if file.is_file() else self.folder).stat().st_mtime),
            head=self.head,
            precision=self.precision,
            parameters=int(self.values.get("parameters", 0)),
            max_model_len=self.model.config.n_positions,
            max_tokens=self.new_tokens if self.engine else 0,
            chats=self.chats,
            certificate=self.certificate,
        )


def open_folder(
    folder: Path,
    *,
    name: str | None = None,
    provider: str = "cpu",
    threads: int | None = None,
    precision: str | None = None,
    layout: Mapping[str, Any] = NO_LAYOUT,
    rows: int,
    queue: int,
    limits: Limits,
    certified: bool = False,
) -> Served:
    """Open a model folder to serve it.

    Args:
        folder: what ``convert`` wrote, or the folder of another exporter.
        name: that requests call it; by default the folder's.
        provider, threads, precision: see ``converter.load``.
        layout: its ``prepack``, ``cache``, ``steady`` and ``cuda_graphs``, of a language model.
        rows: texts that run side by side.
        queue: texts, or requests to other heads, that may wait.
        limits: of requests.
        certified: refuse a folder whose files are not those that a check found to match.

    Raises:
        ModelFolderError: the folder is incomplete or cannot be opened; or is not proven, if it must be.
        ConfigError, TokenizerError, ProviderError: see ``converter.load``.
    """
    folder = folder.resolve()
    opening.model_file(folder, precision)
    proof = proof_of(folder)
    if certified and not (isinstance(proof, Verification) and proof.passed):
        told = proof if isinstance(proof, str) else proof.verdict
        raise ModelFolderError(f"{told}; serve it without --require-certificate, or check it again")
    values = manifest.read(folder)
    model: Model | HeadModel
    if opening.config_of(folder).head_spec.predicts:
        model = opening.load(folder, provider, threads, precision, large_pages=True, **layout)
        engine = Engine(model, rows=rows, queue=queue)
    else:
        model, engine = heads.load(folder, provider, threads, precision), None
    _read_once(model)
    chosen = precision or next(iter(values.get("precisions", {"fp32": {}})))
    return Served(name or folder.name, model, chosen, engine, Aside(queue), limits, proof, values)


def proof_of(folder: Path) -> Verification | str:
    """Return a folder's certificate, held against its files; or a sentence that it has none."""
    try:
        return certificate.verify(folder)
    except ModelFolderError as error:
        return str(error)


def _read_once(model: Model | HeadModel) -> None:
    """Read now what requests need, so that a damaged file is told at the start.

    Raises:
        TokenizerError, ConfigError: a file is damaged.
    """
    _ = model.tokenizer
    if isinstance(model, Model):
        _ = model.generation_config, model.token_ids
        templates(model.folder)
