"""What a server is told: the options of ``gpt2onnx serve``, in one object that can be sent to another machine."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from converter.errors import ServeError
from converter.serving.limits import BODY_BYTES, DRAIN_SECONDS, QUEUE, ROWS, SECONDS, Limits

if TYPE_CHECKING:
    from converter.serving.served import Served

KEY_VARIABLE = "GPT2ONNX_API_KEY"
LEVELS = ("debug", "info", "warning")  # of the log


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is served, and how much may be asked. The names are those of the options of ``gpt2onnx serve``.

    Attributes:
        out: the model folder.
        prepack: see ``converter.load``; ``--no-prepack`` is False.
    """

    out: str
    name: str | None = None
    require_certificate: bool = False
    api_key_file: str | None = None
    allow_origin: tuple[str, ...] = ()
    rows: int = ROWS
    queue: int = QUEUE
    max_prompt_tokens: int | None = None
    max_new_tokens: int | None = None
    max_body: int = BODY_BYTES
    timeout: float = SECONDS
    drain: float = DRAIN_SECONDS
    threads: int | None = None
    prepack: bool = True
    cache: str | None = None
    steady: bool = False
    cuda_graphs: bool = False
    precision: str | None = None
    provider: str = "cpu"
    log: str = "info"

    def __post_init__(self) -> None:
        """Refuse times that are none.

        Raises:
            ServeError: there is one.
        """
        if not (math.isfinite(self.timeout) and self.timeout > 0):
            raise ServeError(f"--timeout is {self.timeout}; expected a number of seconds above 0")
        if not (math.isfinite(self.drain) and self.drain >= 0):
            raise ServeError(f"--drain is {self.drain}; expected a number of seconds, 0 or more")
        if self.name == "":
            raise ServeError("--name is empty; omit it for OUT's own name")

    def open(self, threads: int | None = None) -> Served:
        """Open the folder.

        Args:
            threads: for one operator, where the settings do not say how many.

        Raises:
            ModelFolderError, ConfigError, TokenizerError, ProviderError: see ``open_folder``.
        """
        from converter.serving.served import open_folder

        return open_folder(
            Path(self.out),
            name=self.name,
            provider=self.provider,
            threads=self.threads or threads,
            precision=self.precision,
            layout={
                "prepack": self.prepack,
                "cache": self.cache,
                "steady": self.steady,
                "cuda_graphs": self.cuda_graphs,
            },
            rows=self.rows,
            queue=self.queue,
            limits=Limits(
                self.max_prompt_tokens,
                self.max_new_tokens,
                body_bytes=self.max_body,
                seconds=self.timeout,
                drain_seconds=self.drain,
            ),
            certified=self.require_certificate,
        )

    def key(self) -> str | None:
        """Return the API key, if there is one.

        Raises:
            ServeError: it cannot be read, or is empty.
        """
        file = self.api_key_file
        try:
            key = os.environ.get(KEY_VARIABLE) if file is None else Path(file).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            told = getattr(error, "strerror", None) or error
            raise ServeError(f"{file} cannot be read as an API key: {told}") from error
        if key is not None and not (key.strip() and key.isascii() and key.isprintable()):
            raise ServeError(f"the API key in {file or KEY_VARIABLE} is empty, or not one line of ASCII characters")
        return key
