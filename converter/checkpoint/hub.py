"""A model on the Hugging Face Hub: downloads the files a conversion needs into the Hub's own cache.

``HF_ENDPOINT``, ``HF_HUB_OFFLINE``, ``HF_HOME`` and ``HF_TOKEN`` mean what they mean to huggingface_hub.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from converter.checkpoint.folder import COMPANIONS, choose_weight_file, shards
from converter.errors import HubError

HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w][\w./-]*))?", re.ASCII)


def is_hub_id(source: str) -> bool:
    """Whether ``source`` reads as ``user/model`` or ``user/model@revision``."""
    return HUB_ID.fullmatch(source) is not None


def fetch(source: str) -> tuple[Path, str]:
    """The cached folder of a Hub model and its name with the commit it stands for, ``user/model@commit``.

    Raises:
        HubError: the model, the revision or the network is not there, or the model holds no weights.
    """
    import huggingface_hub
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
    download = partial(huggingface_hub.hf_hub_download, repo, library_name="gpt2onnx")
    try:
        if constants.HF_HUB_OFFLINE:
            folder = Path(download("config.json", revision=revision, local_files_only=True)).parent
            return folder, f"{repo}@{folder.name}"
        info = huggingface_hub.HfApi(library_name="gpt2onnx").model_info(repo, revision=revision)
        names = {sibling.rfilename for sibling in info.siblings or ()}
        weights = choose_weight_file(names)
        if "config.json" not in names or weights is None:
            raise HubError(f"{source} on the Hub has no {'weights' if 'config.json' in names else 'config.json'}")
        config = Path(download("config.json", revision=info.sha))
        file = Path(download(weights, revision=info.sha))
        wanted = shards(file) if weights.endswith(".index.json") else []
        wanted += sorted(name for name in names if any(fnmatchcase(name, pattern) for pattern in COMPANIONS))
        for name in wanted:
            download(name, revision=info.sha)
    except LocalEntryNotFoundError as error:
        raise HubError(
            f"there is no folder {source}, and the Hub model of that name is not in the cache and cannot be "
            f"downloaded; unset HF_HUB_OFFLINE or check the network"
        ) from error
    except GatedRepoError as error:
        raise HubError(f"{source} is gated on the Hub: accept its terms there and set HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise HubError(f"{repo} on the Hub has no revision {revision}") from error
    except RepositoryNotFoundError as error:
        raise HubError(
            f"there is neither a folder {source} nor a Hub model of that name; for a private one set HF_TOKEN"
        ) from error
    except HFValidationError as error:
        raise HubError(f"{source} is neither a folder nor a valid Hub id ({error})") from error
    except (HfHubHTTPError, HTTPError, OSError) as error:
        raise HubError(
            f"there is no folder {source}, and the Hub cannot be asked for it "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no answer'})"
        ) from error
    return config.parent, f"{repo}@{info.sha}"
