"""Files from the Hugging Face Hub, or from its local cache; every failure told in words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


def download(
    name: str, patterns: Sequence[str], *, what: str, otherwise: str, revision: str | None = None
) -> Path:
    """The folder with a repository's files of these patterns, and no others of it.

    Raises FileNotFoundError, which says `what` was looked for, and what to do `otherwise` where the
    hub cannot be reached.
    """
    at = f"{name!r}" if revision is None else f"{name!r} at {revision!r}"
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise FileNotFoundError(
            f"Expected {what}={at} on the hub, found none; is it private, or misspelt?"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(
            f"Expected {what}={at} to be here or on the hub, which cannot be reached; {otherwise}, "
            "or try again with a network."
        ) from error
