"""Where a SavedModel lies: a folder, a .tar.gz, or a URL of one, downloaded once and unpacked."""

from __future__ import annotations

import hashlib
import os
import tarfile
import tempfile
import urllib.request
from pathlib import Path

TFHUB = "https://tfhub.dev/google/"


def cache_folder() -> Path:
    """Where models are kept: TFHUB_CACHE_DIR, or ~/.cache/rt-pipelines."""
    return Path(os.environ.get("TFHUB_CACHE_DIR", Path.home() / ".cache/rt-pipelines")).expanduser()


def saved_model_folder(model: str, flag: str) -> Path:
    """The SavedModel's folder, downloaded and unpacked first where needed. `flag` is named in errors."""
    if "://" in model:
        return _downloaded(model, flag)
    path = Path(model).expanduser()
    if path.is_file():
        return _unpacked(path, cache_folder() / hashlib.sha256(path.read_bytes()).hexdigest()[:16])
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give {flag} the folder or .tar.gz of a TF-Hub SavedModel")
    if not (path / "saved_model.pb").is_file():
        raise FileNotFoundError(f"{path} holds no saved_model.pb: give {flag} the folder of a TF-Hub SavedModel")
    return path


def _downloaded(url: str, flag: str) -> Path:
    folder = cache_folder() / hashlib.sha256(url.encode()).hexdigest()[:16]
    if folder.is_dir():
        return folder
    compressed = f"{url}?tf-hub-format=compressed" if url.startswith("https://tfhub.dev/") else url
    with tempfile.TemporaryDirectory() as temporary:
        archive = Path(temporary) / "model.tar.gz"
        try:
            urllib.request.urlretrieve(compressed, archive)
        except OSError as error:
            raise ValueError(f"cannot download {url} ({error}): give {flag} a local SavedModel folder") from None
        return _unpacked(archive, folder)


def _unpacked(archive: Path, folder: Path) -> Path:
    """Unpack into `folder`, which appears whole or not at all."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        inside = Path(temporary) / "model"
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(inside, filter="data")
        except tarfile.TarError as error:
            raise ValueError(f"{archive} is no tar archive of a SavedModel ({error})") from None
        if not (inside / "saved_model.pb").is_file():
            raise ValueError(f"{archive} holds no saved_model.pb: give an archive of a TF-Hub SavedModel")
        inside.rename(folder)
    return folder
