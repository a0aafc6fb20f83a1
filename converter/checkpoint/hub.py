"""Download a model or adapter from the Hugging Face Hub.

Only the files that a conversion needs are downloaded, into the Hub's own cache. ``HF_ENDPOINT``, ``HF_HUB_OFFLINE``,
``HF_HOME`` and ``HF_TOKEN`` work as in huggingface_hub.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from converter.checkpoint import adapter_file
from converter.checkpoint.adapter_base import NO_TOKENIZER
from converter.checkpoint.folder import COMPANIONS, WEIGHT_FILES, choose_weight_file, shards
from converter.checkpoint.source import ADAPTER_CONFIG
from converter.errors import CheckpointError, HubError

HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w][\w./-]*))?", re.ASCII)

BAR_DELAY = 2.0  # seconds before a download shows its progress

# The errors that follow when something else answers in place of the Hub, such as a captive portal.
NO_ANSWER_OF_THE_HUB = (ValueError, KeyError, TypeError)


class Repository(NamedTuple):
    """The files of a repository: its config, its weights (the first that exists counts), and companions."""

    name: str
    config: str
    weights: tuple[str, ...]
    companions: tuple[str, ...] = ()


MODEL = Repository("model", "config.json", tuple(file for file, _ in WEIGHT_FILES), COMPANIONS)
TOKENIZERS = tuple(name for name in COMPANIONS if not name.startswith(NO_TOKENIZER))  # an adapter may have new tokens
ADAPTER = Repository("adapter", ADAPTER_CONFIG, tuple(file for file, _ in adapter_file.WEIGHT_FILES), TOKENIZERS)


def go_offline() -> None:
    """Let nothing in this process ask the Hub again, transformers included."""
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = True  # read at each request; the variable alone is read once
    os.environ["HF_HUB_OFFLINE"] = "1"


def is_hub_id(source: str) -> bool:
    """Tell whether ``source`` has the form ``user/model`` or ``user/model@revision``."""
    return HUB_ID.fullmatch(source) is not None


def fetch(source: str, bars: bool = False, kind: Repository = MODEL) -> tuple[Path, str]:
    """Download a Hub repository; return its folder in the cache, and its name with the commit, ``user/model@commit``.

    Raises:
        HubError: the repository, revision or network cannot be reached, or there are no weights of this kind.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: of httpx or httpx2
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    match = HUB_ID.fullmatch(source)
    assert match is not None, source
    repo, revision = match["repo"], match["revision"]
    offline = constants.HF_HUB_OFFLINE
    try:
        names: set[str] = set()
        if not offline:
            try:
                names = _list_files(repo, revision)  # first: it fails at once, a download only after retries
            except HfHubHTTPError:
                raise
            except HTTPError:  # no network: use the cache
                offline = True
        if kind is MODEL and ADAPTER.config in names and choose_weight_file(names) is None:
            raise adapter_file.as_source(Path(_download(repo, kind, ADAPTER.config, revision, bars)), source)
        # The config is asked for by the revision's name, so that the cache remembers that name; all else by the commit.
        config = Path(_download(repo, kind, kind.config, revision, bars, local_files_only=offline))
        if not offline:
            _fetch_weights(repo, kind, config.parent.name, names, bars)
    except LocalEntryNotFoundError as error:
        forbidden = constants.HF_HUB_OFFLINE
        mend = "unset HF_HUB_OFFLINE to download it" if forbidden else "it cannot be downloaded now, check the network"
        raise HubError(
            f"there is no folder {source}, and the Hub {kind.name} of that name is not in the cache; {mend}"
        ) from error
    except GatedRepoError as error:
        raise HubError(f"{source} is gated on the Hub: accept its terms there and set HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise HubError(f"{repo} on the Hub has no revision {revision}") from error
    except RepositoryNotFoundError as error:
        raise HubError(
            f"there is neither a folder {source} nor a Hub {kind.name} of that name; for a private one set HF_TOKEN"
        ) from error
    except HFValidationError as error:
        raise HubError(f"{source} is neither a folder nor a valid Hub id ({error})") from error
    except CheckpointError:
        raise
    except (HfHubHTTPError, HTTPError, OSError, *NO_ANSWER_OF_THE_HUB) as error:
        raise HubError(
            f"there is no folder {source}, and the Hub cannot be asked for it "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no answer'})"
        ) from error
    return config.parent, f"{repo}@{config.parent.name}"


def _list_files(repo: str, revision: str | None) -> set[str]:
    from huggingface_hub import HfApi

    info = HfApi(library_name="gpt2onnx").model_info(repo, revision=revision)
    return {sibling.rfilename for sibling in info.siblings or ()}


def _fetch_weights(repo: str, kind: Repository, commit: str, names: Collection[str], bars: bool) -> None:
    """Download the weights, and the files that go with them."""
    weights = next((file for file in kind.weights if file in names), None)
    if weights is None:
        raise HubError(f"{repo} on the Hub has no weights; expected one of {', '.join(kind.weights)}")
    file = Path(_download(repo, kind, weights, commit, bars))
    wanted = shards(file) if weights.endswith(".index.json") else []
    wanted += sorted(name for name in names if any(fnmatchcase(name, pattern) for pattern in kind.companions))
    for name in wanted:
        _download(repo, kind, name, commit, bars)


def _download(
    repo: str, kind: Repository, name: str, revision: str | None, bars: bool, local_files_only: bool = False
) -> str:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class Bar(tqdm):
        """The Hub's own progress bar. It is shown only if it was asked for and the download takes long."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options | ({"delay": BAR_DELAY, "leave": False} if bars else {"disable": True}))

    try:
        return hf_hub_download(
            repo,
            name,
            revision=revision,
            library_name="gpt2onnx",
            local_files_only=local_files_only,
            tqdm_class=Bar,
        )
    except RemoteEntryNotFoundError as error:
        raise HubError(f"{repo} on the Hub has no {name}; expected a complete {kind.name}") from error
