"""Training state by parameter, cut into pieces: one checkpoint for every engine, ZeRO stage and world size.

A rank writes its pieces, each under a key ("weight", "average", or an optimizer's "exp_avg", ...), the first element
that the piece covers of the flattened parameter, and the parameter's name. A reader asks for any range of elements,
whatever the pieces. The pieces are safetensors, the rest is JSON: nothing is ever unpickled.

    shard-00000-of-00002.safetensors    one-dimensional tensors "key:start:name"; numbers as "key:scalar:name"
    parameters.json                     the shape of every parameter, and which names are tied

This is not DeepSpeed's format: its pickles need trust, and its universal checkpoints reach neither stage 0 nor every
other stage.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch
from safetensors import safe_open
from torch import Tensor, nn

from cluster.state_files import read_tensors

PARAMETERS = "parameters.json"
WEIGHT = "weight"
AVERAGE = "average"
SCALAR = "scalar"


@dataclass(frozen=True, kw_only=True)
class ParameterSlice:
    """Elements start .. start + size of a flattened parameter, held by this rank.

    owner: the tensor of which they are elements owner_start .. owner_start + size, flattened, and by which the
        optimizer knows its state: the parameter itself, or a flat buffer of many parameters.
    written: whether this rank saves them; if not, another rank that holds the same does.
    """

    name: str
    owner: Tensor
    owner_start: int
    start: int
    size: int
    written: bool

    @staticmethod
    def whole(name: str, parameter: Tensor, *, written: bool) -> ParameterSlice:
        return ParameterSlice(
            name=name, owner=parameter, owner_start=0, start=0, size=parameter.numel(), written=written
        )

    def view(self, of: Tensor) -> Tensor:
        """The fragment's elements of the owner, or of a tensor shaped like it."""
        return of.detach().reshape(-1)[self.owner_start : self.owner_start + self.size]

    def assign(self, to: Tensor, values: Tensor) -> None:
        """Overwrite the fragment's elements of the owner, or of a tensor shaped like it."""
        with torch.no_grad():
            if self.size == to.numel():  # a whole parameter, whatever its memory format
                to.copy_(values.view(to.shape))
            else:
                self.view(to).copy_(values)


def pieces(fragments: Iterable[ParameterSlice], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """This rank's tensors to save, by "key:start:name"; views of the live state where possible."""
    result: dict[str, Tensor] = {}
    elementwise = _elementwise_keys(optimizer)
    for fragment in fragments:
        if not fragment.written or fragment.size == 0:
            continue
        result[f"{WEIGHT}:{fragment.start}:{fragment.name}"] = fragment.view(fragment.owner)
        for key, value in optimizer.state.get(fragment.owner, {}).items():
            if key in elementwise:
                result[f"{key}:{fragment.start}:{fragment.name}"] = fragment.view(value)
            else:
                result[f"{key}:{SCALAR}:{fragment.name}"] = torch.as_tensor(value, dtype=torch.float64).reshape(1)
    return result


def _elementwise_keys(optimizer: torch.optim.Optimizer) -> set[str]:
    """The optimizer's keys with a value per element, as Adam's moments; its others must be numbers, as Adam's step."""
    values = [(key, value, owner) for owner, state in optimizer.state.items() for key, value in state.items()]
    scalar = {key for key, value, owner in values if not isinstance(value, Tensor) or value.shape != owner.shape}
    for key, value, owner in values:
        if key in scalar and isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(
                f"{type(optimizer).__name__} keeps {key!r} of shape {tuple(value.shape)} for a parameter of shape "
                f"{tuple(owner.shape)}: only optimizers with a value per element, as Adam, can be checkpointed"
            )
    return {key for key, _, _ in values} - scalar


class ParametersFile(TypedDict):
    """The content of parameters.json: shapes by parameter, and the names under which tied parameters come again."""

    shapes: dict[str, list[int]]
    tied: dict[str, str]


def describe(model: nn.Module, shapes: Mapping[str, torch.Size]) -> ParametersFile:
    """The content of parameters.json."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    every = model.named_parameters(remove_duplicate=False)
    tied = {name: first[id(parameter)] for name, parameter in every if first[id(parameter)] != name}
    return {"shapes": {name: list(shape) for name, shape in shapes.items()}, "tied": tied}


class ShardReader:
    """Reads any range of any parameter from a folder with the shards of all ranks, whatever wrote them.

    Raises ValueError if the folder holds no such state or not all of it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        if not (folder / PARAMETERS).is_file():
            raise ValueError(f"{folder} holds no training state: {PARAMETERS} is missing")
        described: ParametersFile = json.loads((folder / PARAMETERS).read_text())
        self.shapes = {name: torch.Size(shape) for name, shape in described["shapes"].items()}
        self.tied = described["tied"]
        self._pieces: dict[tuple[str, str], list[tuple[int, int, safe_open, str]]] = {}
        self._scalars: dict[str, dict[str, float]] = {}
        for path in sorted(folder.glob("shard-*.safetensors")):
            self._index(path)

    def _index(self, path: Path) -> None:
        file = safe_open(path, framework="pt")
        for piece in file.keys():  # noqa: SIM118 (not a dictionary)
            key, start, name = piece.split(":", 2)
            if start == SCALAR:
                self._scalars.setdefault(name, {})[key] = file.get_tensor(piece).item()
                continue
            size = file.get_slice(piece).get_shape()[0]
            self._pieces.setdefault((name, key), []).append((int(start), size, file, piece))

    def keys(self, name: str) -> list[str]:
        """The optimizer's elementwise keys for this parameter."""
        return sorted(key for owner, key in self._pieces if owner == name and key != WEIGHT)

    def scalars(self, name: str) -> dict[str, float]:
        """The optimizer's numbers for this parameter."""
        return self._scalars.get(name, {})

    def read(self, name: str, key: str, start: int, size: int) -> Tensor:
        """Elements start .. start + size of the flattened parameter, on the CPU."""
        parts = []
        at = start
        for piece_start, piece_size, file, piece in sorted(self._pieces.get((name, key), []), key=lambda p: p[0]):
            stop = min(piece_start + piece_size, start + size)
            if piece_start <= at < stop:
                parts.append(file.get_slice(piece)[at - piece_start : stop - piece_start])
                at = stop
        if at != start + size:
            raise ValueError(f"{self._folder} lacks elements {at} to {start + size} of {key} of {name}")
        return torch.cat(parts) if parts else torch.empty(0)

    def whole(self, name: str, key: str = WEIGHT) -> Tensor:
        """The parameter's weight or optimizer state in its shape, on the CPU."""
        shape = self.shapes[name]
        return self.read(name, key, 0, shape.numel()).view(shape)


def require_same_shapes(saved: Mapping[str, torch.Size], here: Mapping[str, torch.Size], folder: Path | str) -> None:
    """Raise ValueError unless the saved model and this one have the same tensors."""
    wrong = sorted(name for name in saved.keys() | here.keys() if saved.get(name) != here.get(name))
    if wrong:
        there, ours = (tuple(side[wrong[0]]) if wrong[0] in side else "absent" for side in (saved, here))
        raise ValueError(
            f"{folder} is of another model: {len(wrong)} tensors differ, such as {wrong[0]}, {there} there and "
            f"{ours} here"
        )


def restore(
    fragments: Iterable[ParameterSlice],
    optimizer: torch.optim.Optimizer,
    reader: ShardReader,
    without: Container[str] = (),
) -> None:
    """Overwrite the fragments' weights and their optimizer state, except the keys in `without`."""
    on_device = optimizer.defaults.get("fused") or optimizer.defaults.get("capturable")
    for fragment in fragments:
        fragment.assign(fragment.owner, reader.read(fragment.name, WEIGHT, fragment.start, fragment.size))
        keys = [key for key in reader.keys(fragment.name) if key not in without]
        scalars = reader.scalars(fragment.name)
        if keys or scalars:
            # The optimizer creates its state at the first step; a new one has none to overwrite.
            state = optimizer.state[fragment.owner]
            for key in keys:
                value = state.setdefault(key, torch.zeros_like(fragment.owner, requires_grad=False))
                fragment.assign(value, reader.read(fragment.name, key, fragment.start, fragment.size))
            for key, value in scalars.items():
                device = fragment.owner.device if on_device else "cpu"
                state[key] = torch.tensor(value, dtype=torch.float32, device=device)


def each_weight(folder: Path, *, averaged: bool = False) -> Iterator[tuple[str, Tensor]]:
    """The model's state dictionary, parameters and buffers, one after the other, from a checkpoint of any engine and
    world size.

    averaged: the running average, of the weights that have one. Raises ValueError if none has.
    """
    reader = ShardReader(folder)
    averages = {name for name in reader.shapes if averaged and AVERAGE in reader.keys(name)}
    if averaged and not averages:
        raise ValueError(f"{folder} holds no averaged weights: the training had ema_decay 0")
    for name in reader.shapes:
        weight = reader.whole(name, AVERAGE if name in averages else WEIGHT)
        yield name, weight
        yield from ((other, weight) for other, first in reader.tied.items() if first == name)
    buffers = folder / buffer_file(0)
    yield from (read_tensors(buffers) if buffers.exists() else {}).items()


def shard_file(rank: int, world_size: int) -> str:
    return f"shard-{rank:05d}-of-{world_size:05d}.safetensors"


def buffer_file(rank: int) -> str:
    return f"buffers-{rank:05d}.safetensors"
