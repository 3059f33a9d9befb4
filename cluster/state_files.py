"""A rank's part of a checkpoint as a dictionary from file name to content: safetensors, or JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

Files = Mapping[str, Mapping[str, Any]]


def write_files(folder: Path, files: Files) -> None:
    """Write each content under its name into the folder, in the format of the name's ending."""
    for name, content in files.items():
        if name.endswith(".safetensors"):
            save_tensors(_unshared(content), folder / name)
        else:
            (folder / name).write_text(json.dumps(content, indent=1))


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors that share no memory; who may read the folder may read them (safetensors: the owner alone)."""
    save_file(dict(tensors), path)
    path.chmod(path.parent.stat().st_mode & 0o666)


def read_tensors(path: Path) -> dict[str, Tensor]:
    return load_file(path)


def host_copy(files: Files) -> Files:
    """The same with every tensor copied to host memory, so that training can go on while they are written."""
    return {
        name: {key: tensor.detach().to("cpu", copy=True) for key, tensor in content.items()}
        if name.endswith(".safetensors")
        else content
        for name, content in files.items()
    }


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors, each with memory of its own: safetensors refuses views of one buffer."""
    result: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        host = tensor.detach().cpu().contiguous()
        storage = host.untyped_storage()
        shared = storage.data_ptr() in seen or storage.nbytes() != host.nbytes
        result[name] = host.clone() if shared else host
        seen.add(storage.data_ptr())
    return result
