"""Bundles on the Hugging Face hub."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megaclass import __version__
from megaclass.errors import UserError, first_line
from megaclass.inference import bundle

SCHEME = "hf://"


def fetched(address: str) -> Path:
    """The local copy of ``hf://owner/name`` or ``hf://owner/name@revision``, of a bundle's files alone. What is there
    already is not fetched again; with HF_HUB_OFFLINE=1 nothing is asked."""
    found = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", address)
    if found is None:
        raise UserError(f"{address}: write hf://owner/name, or hf://owner/name@revision")
    with _asking(address) as hub:
        return Path(hub.snapshot_download(found[1], revision=found[2], allow_patterns=list(bundle.FILES)))


def push(directory: Path, repository: str, *, public: bool = False) -> str:
    """Upload a bundle; returns its address. A repository that is missing is made, private unless ``public``. The key is
    that of ``hf auth login``, or HF_TOKEN."""
    bundle.check(directory)
    with _asking(repository) as hub:
        api = hub.HfApi(library_name="megaclass", library_version=__version__)
        api.create_repo(repository, private=not public, exist_ok=True)
        what = {"folder_path": directory, "allow_patterns": list(bundle.FILES)}
        return str(api.upload_folder(repo_id=repository, **what).commit_url)


@contextlib.contextmanager
def _asking(what: str) -> Iterator[Any]:
    """Give the library, whose errors, and those of the network under it, are of many kinds."""
    try:
        import huggingface_hub

        yield huggingface_hub
    except ImportError as error:
        raise UserError(f"{what}: {error}; pip install 'megaclass[hub]'") from None
    except Exception as error:
        advice = "look at the name, the network, and the key (`hf auth login`, or HF_TOKEN)"
        raise UserError(f"{what}: {first_line(error)}; {advice}") from None
