"""An exported folder brought to where others fetch it: an object store (s3://, gs://), or the Hugging Face hub
(hf://OWNER/MODEL). Credentials are the store's own (AWS_*, HF_TOKEN); none is read, printed or kept here.
"""

from __future__ import annotations

import importlib
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.object_store import open_files
from pipelines.publishing.folder import DESCRIPTION, TrainedModel, write_portable
from pipelines.publishing.model_card import CARD

HUB = "hf://"
_SECRETS = (  # a signed URL, a header, a token of the hub, the user part of a URL
    (re.compile(r"\?\S+"), "?..."),
    (re.compile(r"(?i)\b(authorization\W*[:=]\W*)(?:(?:bearer|basic|token)\s+)?[^\s'\"]+"), r"\1..."),
    (re.compile(r"(?i)\b(bearer)\s+[^\s'\"]+"), r"\1 ..."),
    (re.compile(r"\bhf_[A-Za-z0-9]{8,}"), "hf_..."),
    (re.compile(r"://[^/\s@]+@"), "://...@"),
)
_FOLDER = re.compile(r"(s3|gs|memory)://[^/]+/.+")  # memory:// is fsspec's, for tests
_MODEL = re.compile(r"hf://(?:models/)?([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)/?")


def require_destination(url: str) -> None:
    """Raise ValueError, ImportError or OSError now for what could not be pushed to once the export is written."""
    if url.startswith(HUB):
        _model_of(url)
        with _hub_errors(url, "cannot be pushed to", "check the network and HF_TOKEN"):
            _hub().HfApi().whoami()
        return
    if not _FOLDER.fullmatch(url):
        wanted = "hf://OWNER/MODEL, s3://BUCKET/FOLDER or gs://BUCKET/FOLDER"
        raise ValueError(f"--push {url} is no place to push to: give {wanted}")
    files, root = open_files(url)
    if files.exists(root):
        raise FileExistsError(f"--push {url} exists: give a new folder")


def push(trained: TrainedModel, card: str, url: str, *, whole_in: str) -> str:
    """Bring the model to `url`; where it can be looked at. `whole_in` is the export, for whoever has to try again."""
    with tempfile.TemporaryDirectory(prefix="push-") as scratch:
        write_portable(trained, Path(scratch), source="rtp export")
        (Path(scratch) / CARD).write_text(card)
        if url.startswith(HUB):
            return _push_to_hub(scratch, _model_of(url), whole_in)
        files, root = open_files(url)
        inside = [path for path in Path(scratch).rglob("*") if path.is_file()]
        for path in sorted(inside, key=lambda path: path.name == DESCRIPTION):  # which makes it a bundle
            files.put_file(str(path), f"{root}/{path.relative_to(scratch)}")
        return url


def _push_to_hub(folder: str, model: str, whole_in: str) -> str:
    """One commit, which removes the files of an earlier one; a repository that is not there is made, private. Raises
    OSError in one sentence."""
    api = _hub().HfApi()
    remedy = f"check the name and HF_TOKEN; the export itself is whole in {whole_in}"
    with _hub_errors(f"{HUB}{model}", "could not be pushed to", remedy):
        api.create_repo(model, repo_type="model", private=True, exist_ok=True)
        # An instruction table or tokenizer of an earlier model would be loaded with this one.
        api.upload_folder(
            repo_id=model, repo_type="model", folder_path=folder, commit_message="rtp export", delete_patterns="*"
        )
    return f"{api.endpoint}/{model}"


@contextmanager
def _hub_errors(url: str, what: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except ImportError:
        raise
    except Exception as error:  # those of its HTTP client have no base in common with its own
        said = _without_secrets(" ".join(str(error).split()))[:300]
        raise OSError(f"{url} {what} ({type(error).__name__}: {said}): {remedy}") from None


def _without_secrets(text: str) -> str:
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def address_of(url: str) -> str:
    """What loads a model at `url` from anywhere; "" for a path of this machine."""
    if match := _MODEL.fullmatch(url):
        return HUB + match[1]
    return url.rstrip("/") if "://" in url and not url.startswith(("file://", "local://")) else ""


def _model_of(url: str) -> str:
    match = _MODEL.fullmatch(url)
    if match is None:
        raise ValueError(f"{url} names no model of the hub: give hf://OWNER/MODEL")
    return match[1]


def _hub() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError:
        raise ImportError("the Hugging Face hub needs: pip install 'rt-pipelines[hub]'") from None
