"""Training state in pieces: however it was cut when it was written, any range reads back as it was."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cluster.shards import (
    PARAMETERS,
    ParameterSlice,
    ShardReader,
    buffer_file,
    describe,
    each_weight,
    pieces,
    require_same_shapes,
    restore,
    shard_file,
)
from cluster.state_files import host_copy, write_files


class Tied(nn.Module):
    """Odd sizes, a scalar, and two names for one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 3)
        self.head = nn.Linear(3, 7, bias=False)
        self.head.weight = self.table.weight
        self.gain = nn.Parameter(torch.tensor(2.0))
        self.shift = nn.Parameter(torch.randn(5))


def stepped(model: Tied) -> torch.optim.Optimizer:
    """An optimizer with two steps of state."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(2):
        (model.head(model.table.weight).sum() * model.gain + model.shift.square().sum()).backward()
        optimizer.step()
    return optimizer


def cut(model: Tied, cuts: list[int], rank: int) -> list[ParameterSlice]:
    """The rank-th part of every parameter cut at the given elements."""
    fragments = []
    for name, parameter in model.named_parameters():
        edges = sorted({min(c, parameter.numel()) for c in cuts} | {0, parameter.numel()})
        for number, (start, stop) in enumerate(itertools.pairwise(edges)):
            where: dict[str, Any] = {"owner_start": start, "start": start, "size": stop - start}
            fragments.append(ParameterSlice(name=name, owner=parameter, written=number % 2 == rank, **where))
    return fragments


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 21), max_size=4), data=st.data())
def test_any_cut_reads_back(cuts: list[int], data: st.DataObject) -> None:
    model = Tied()
    optimizer = stepped(model)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for rank in range(2):
            files = {shard_file(rank, 2): pieces(cut(model, cuts, rank), optimizer)}
            write_files(folder, host_copy(files) if data.draw(st.booleans(), label="copied first") else files)
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        write_files(folder, {PARAMETERS: describe(model, shapes)})
        start = data.draw(st.integers(0, 21))
        size = data.draw(st.integers(0, 21 - start))
        reader = ShardReader(folder)
        moment = optimizer.state[model.table.weight]["exp_avg"]
        assert torch.equal(reader.read("table.weight", "exp_avg", start, size), moment.flatten()[start : start + size])

        loaded = Tied()
        loaded.load_state_dict(dict(each_weight(folder)))  # strict: the tied name is there too
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))

        other = Tied()
        fresh = torch.optim.AdamW(other.parameters(), lr=0.1)
        restore(cut(other, cuts[::-1], 0), fresh, reader)
        for (_, a), (_, b) in zip(sorted_state(model, optimizer), sorted_state(other, fresh), strict=True):
            assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))


def sorted_state(model: Tied, optimizer: torch.optim.Optimizer) -> list[tuple[str, Any]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    pairs = [(f"{names[id(p)]}.{key}", value) for p, state in optimizer.state.items() for key, value in state.items()]
    return sorted(pairs, key=lambda pair: pair[0])


def test_missing_piece_is_named(tmp_path: Path) -> None:
    model = Tied()
    optimizer = stepped(model)
    write_files(tmp_path, {shard_file(0, 2): pieces(cut(model, [4], 0), optimizer)})
    write_files(tmp_path, {PARAMETERS: describe(model, {n: p.shape for n, p in model.named_parameters()})})
    with pytest.raises(ValueError, match="lacks elements 4 to 5 of weight of shift"):
        dict(each_weight(tmp_path))


def test_optimizer_that_cannot_be_cut_is_refused() -> None:
    model = nn.Linear(4, 4)
    optimizer = torch.optim.Adafactor(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    fragments = [ParameterSlice.whole(name, parameter, written=True) for name, parameter in model.named_parameters()]
    with pytest.raises(ValueError, match="only optimizers with a value per element"):
        pieces(fragments, optimizer)


def saved(folder: Path, model: Tied) -> torch.optim.Optimizer:
    """A checkpoint of one rank."""
    optimizer = stepped(model)
    write_files(folder, {shard_file(0, 1): pieces(cut(model, [], 0), optimizer)})
    write_files(folder, {PARAMETERS: describe(model, {n: p.shape for n, p in model.named_parameters()})})
    return optimizer


def test_files_are_named_by_rank() -> None:
    assert shard_file(3, 16) == "shard-00003-of-00016.safetensors" and buffer_file(12) == "buffers-00012.safetensors"


def test_tied_names_stand_in_the_description(tmp_path: Path) -> None:
    saved(tmp_path, Tied())
    reader = ShardReader(tmp_path)
    assert reader.tied == {"head.weight": "table.weight"}
    assert reader.keys("table.weight") == ["exp_avg", "exp_avg_sq"] and reader.scalars("gain") == {"step": 2.0}
    assert reader.keys("nothing") == [] and reader.scalars("nothing") == {}


def test_a_folder_without_a_training_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no training state: parameters.json is missing"):
        ShardReader(tmp_path)


def test_what_is_left_out_keeps_its_state(tmp_path: Path) -> None:
    model = Tied()
    saved(tmp_path, model)
    other = Tied()
    fresh = torch.optim.AdamW(other.parameters(), lr=0.1)
    restore(cut(other, [], 0), fresh, ShardReader(tmp_path), without=("exp_avg",))
    assert set(fresh.state[other.shift]) == {"exp_avg_sq", "step"}
    assert fresh.state[other.shift]["step"].dtype == torch.float32 and not fresh.state[other.shift]["step"].shape
    assert torch.equal(other.shift, model.shift)


def test_another_model_is_refused_with_the_first_difference() -> None:
    there, here = {"a": torch.Size([2]), "b": torch.Size([3])}, {"b": torch.Size([4]), "a": torch.Size([2])}
    require_same_shapes(there, dict(there), "run")
    with pytest.raises(ValueError, match=r"run is of another model: 1 tensors differ, such as b, \(3,\) there"):
        require_same_shapes(there, here, "run")
    with pytest.raises(ValueError, match=r"2 tensors differ, such as b, \(3,\) there and absent here"):
        require_same_shapes(there, {"a": torch.Size([2]), "c": torch.Size([1])}, "run")


def test_averages_are_read_where_there_are_some(tmp_path: Path) -> None:
    model = Tied()
    saved(tmp_path, model)
    with pytest.raises(ValueError, match=r"holds no averaged weights: the training had ema_decay 0"):
        dict(each_weight(tmp_path, averaged=True))
    write_files(tmp_path, {"shard-00001-of-00001.safetensors": {"average:0:shift": torch.arange(5.0)}})
    averaged = dict(each_weight(tmp_path, averaged=True))
    assert averaged["shift"].tolist() == [0, 1, 2, 3, 4] and torch.equal(averaged["gain"], model.gain)
    assert torch.equal(dict(each_weight(tmp_path))["shift"], model.shift)
    write_files(tmp_path, {buffer_file(0): {"count": torch.tensor([7])}})
    assert dict(each_weight(tmp_path))["count"].tolist() == [7]


def test_a_piece_that_is_not_written_or_empty_is_not_saved() -> None:
    model = Tied()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    where: dict[str, Any] = {"owner": model.shift, "name": "shift"}
    parts = [
        ParameterSlice(owner_start=0, start=0, size=2, written=True, **where),
        ParameterSlice(owner_start=2, start=2, size=2, written=False, **where),
        ParameterSlice(owner_start=4, start=4, size=0, written=True, **where),
        ParameterSlice(owner_start=4, start=4, size=1, written=True, **where),
    ]
    assert {name: len(piece) for name, piece in pieces(parts, optimizer).items()} == {
        "weight:0:shift": 2,
        "weight:4:shift": 1,
    }


@pytest.mark.parametrize(("folder", "file"), [(0o755, 0o644), (0o750, 0o640), (0o700, 0o600)])
def test_who_may_read_the_folder_may_read_the_tensors(tmp_path: Path, folder: int, file: int) -> None:
    tmp_path.chmod(folder)
    write_files(tmp_path, {"state.safetensors": {"weight": torch.zeros(2)}})
    assert (tmp_path / "state.safetensors").stat().st_mode & 0o777 == file
