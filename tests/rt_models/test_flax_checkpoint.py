"""What flax or Orbax wrote comes back, in every layout; what is damaged or no checkpoint is named."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import ml_dtypes
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rt_models.flax_checkpoint import find_flax, read_flax
from tests.support.flax_files import LAYOUTS, flax_file, orbax_folder

DTYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.float64), np.dtype(ml_dtypes.bfloat16))


def array(shape: tuple[int, ...], dtype: np.dtype, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


arrays = st.builds(array, hnp.array_shapes(max_dims=4, max_side=4), st.sampled_from(DTYPES), st.integers(0, 99))
paths = st.lists(st.sampled_from(["Dense_0", "kernel", "BatchNorm_1", "x"]), min_size=1, max_size=3).map("/".join)


@st.composite
def trees(draw: st.DrawFn) -> dict[str, np.ndarray]:
    """Leaves under params and batch_stats, no path the beginning of another."""
    leaves = draw(st.dictionaries(st.tuples(st.sampled_from(["params", "batch_stats"]), paths), arrays, min_size=1))
    return {f"{collection}/{path}/leaf": value for (collection, path), value in leaves.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=12, deadline=None)
@given(leaves=trees())
def test_every_layout_returns_the_weights_and_nothing_of_the_optimizer(
    layout: str, leaves: dict[str, np.ndarray]
) -> None:
    state = {"opt_state/0/mu/kernel": np.ones((2, 3), np.float32), "step": np.array(7, np.int32)}
    with tempfile.TemporaryDirectory() as scratch:
        LAYOUTS[layout](Path(scratch, "run", "checkpoint_7"), leaves | state)
        found = read_flax(find_flax(Path(scratch, "run")))
    assert set(found) == set(leaves)
    for path, value in leaves.items():
        assert found[path].dtype == np.float32
        np.testing.assert_array_equal(found[path], value.astype(np.float32))


@pytest.fixture
def leaves() -> dict[str, np.ndarray]:
    return {"params/a/kernel": array((4, 5), np.dtype(np.float32), 0), "batch_stats/a/mean": np.zeros(5, np.float32)}


def test_the_newest_finished_checkpoint_is_taken(tmp_path: Path, leaves: dict[str, np.ndarray]) -> None:
    for step in (9, 10, 2):
        flax_file(tmp_path / f"checkpoint_{step}", leaves)
    flax_file(tmp_path / "checkpoint_11.orbax-checkpoint-tmp-5/checkpoint", leaves)
    assert find_flax(tmp_path) == tmp_path / "checkpoint_10"
    assert find_flax(tmp_path / "checkpoint_9") == tmp_path / "checkpoint_9"


def test_the_folders_of_a_checkpoint_manager_are_looked_through(tmp_path: Path, leaves: dict[str, np.ndarray]) -> None:
    for step in (3, 12):
        orbax_folder(tmp_path / str(step) / "default", leaves, driver="zarr", database=True)
    assert find_flax(tmp_path) == tmp_path / "12/default"


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such"):
        find_flax(tmp_path / "nowhere")
    (tmp_path / "variables.index").touch()
    with pytest.raises(FileNotFoundError, match="no flax or Orbax checkpoint in"):
        find_flax(tmp_path)


def test_a_checkpoint_of_tensorflow_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "ckpt-2272480"\n')
    with pytest.raises(ValueError, match="checkpoint is no flax checkpoint"):
        read_flax(find_flax(tmp_path))


@pytest.mark.parametrize("kept", [0, 1, 40, -1])
def test_a_cut_msgpack_file_is_refused(tmp_path: Path, leaves: dict[str, np.ndarray], kept: int) -> None:
    flax_file(tmp_path / "checkpoint", leaves)
    data = (tmp_path / "checkpoint").read_bytes()
    (tmp_path / "checkpoint").write_bytes(data[:kept])
    with pytest.raises(ValueError, match="checkpoint is no flax checkpoint: its msgpack cannot be read"):
        read_flax(tmp_path)


def test_a_file_of_another_kind_is_refused_without_being_printed(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"# A page of text\n" * 10_000)
    with pytest.raises(ValueError, match="weights is no flax checkpoint") as refused:
        read_flax(tmp_path / "weights")
    assert len(str(refused.value)) < len(str(tmp_path)) + 150


@pytest.mark.parametrize("chunked", [{}, {"shape": {"0": 4}, "chunks": {"0": "x"}}, {"shape": 4, "chunks": 4}])
def test_chunks_that_make_no_array_are_refused(tmp_path: Path, chunked: dict[str, object]) -> None:
    tree = {"params": {"kernel": {"__msgpack_chunked_array__": True, **chunked}}}
    (tmp_path / "checkpoint").write_bytes(msgpack.packb(tree))
    with pytest.raises(ValueError, match="checkpoint is no flax checkpoint: its msgpack cannot be read"):
        read_flax(tmp_path)


@pytest.mark.parametrize("dtype", ["complex64", "U4", "f4,f4"])
def test_what_is_no_real_number_is_refused(tmp_path: Path, dtype: str) -> None:
    content = msgpack.packb(([1], dtype, bytes(np.dtype(dtype).itemsize)))
    (tmp_path / "checkpoint").write_bytes(msgpack.packb({"params": {"kernel": msgpack.ExtType(1, content)}}))
    with pytest.raises(ValueError, match=r"params/kernel in .*checkpoint.* holds .*, no real numbers"):
        read_flax(tmp_path / "checkpoint")


@pytest.mark.parametrize("layout", ["orbax zarr", "orbax ocdbt"])
def test_a_file_missing_from_the_copy_is_no_zeros(tmp_path: Path, leaves: dict[str, np.ndarray], layout: str) -> None:
    LAYOUTS[layout](tmp_path, leaves)
    if layout == "orbax zarr":
        (tmp_path / "params.a.kernel/0.0").unlink()
    else:
        shutil.rmtree(tmp_path / "d")
    with pytest.raises(ValueError, match="cannot be read as an Orbax checkpoint"):
        read_flax(tmp_path)


def test_a_checkpoint_without_weights_is_refused(tmp_path: Path) -> None:
    orbax_folder(tmp_path, {"opt_state/mu": np.ones(3, np.float32)}, driver="zarr", database=True)
    with pytest.raises(ValueError, match="holds no 'params' and 'batch_stats'"):
        read_flax(tmp_path)


@pytest.mark.parametrize(("layout", "library"), [("flax", "msgpack"), ("orbax ocdbt", "tensorstore")])
def test_without_its_library_the_extra_is_named(
    tmp_path: Path, leaves: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch, layout: str, library: str
) -> None:
    LAYOUTS[layout](tmp_path / "checkpoint_1", leaves)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"needs {library}: pip install 'rt-pipelines\[jax\]'"):
        read_flax(find_flax(tmp_path))
