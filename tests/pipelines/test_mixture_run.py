"""Weights of a mixture on the real command line: they are part of the run, and wrong ones end it before it starts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipelines.cli import main
from preprocessing.convert import ConvertConfig, convert
from preprocessing.loading.loader import LoaderConfig, WindowReader
from preprocessing.store.episode_store import EpisodeStore
from rt_models.spec import AffineTransform
from tests.support.command_line import SAMPLE

TRAIN = ["train", "rt1_tiny", "--output", "run", "--loop.steps", "1", "--loop.checkpoint_every", "1"]

SAME = AffineTransform(name="same", scale=(1.0,) * 11, offset=(0.0,) * 11)


pytestmark = pytest.mark.usefixtures("own_folder")


def test_weights_stand_in_the_run_and_hold_for_its_continuation(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [*TRAIN, "--data", store, "--mixture.weights", "metaworld_sample", "2"]
    assert main(asked) == 0
    assert yaml.safe_load(Path("run/experiment.yaml").read_text())["mixture"]["weights"] == {"metaworld_sample": 2.0}
    assert main([*asked[:-1], "3", "--resume"]) == 2
    assert "mixture.weights.metaworld_sample was 2.0 and is now 3.0" in capsys.readouterr().err
    assert main([*TRAIN, "--data", store, "--resume"]) == 2
    assert "mixture.weights.metaworld_sample was 2.0 and is now None" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--mixture.weights", "brigde", "1"], "mixture.weights names 'brigde', which no store holds"),
        (["--mixture.weights", "metaworld_sample", "0"], "every weight must be above 0 and finite"),
        (["--mixture.weights", "metaworld_sample", "-1"], "every weight must be above 0 and finite"),
        (["--mixture.weights", "metaworld_sample", "nan"], "every weight must be above 0 and finite"),
        (["--mixture.weights", "metaworld_sample", "inf"], "every weight must be above 0 and finite"),
        (["--mixture.name", "rt1y"], "there is no mixture 'rt1y': did you mean 'rt1x'"),
        (["--mixture.name", "rt1x"], "mixture rt1x has no weight for 'metaworld_sample'"),
    ],
)
def test_what_cannot_be_drawn_is_told_before_anything_starts(
    store: str, flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TRAIN, "--data", store, *flags]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert not Path("run").exists()


def test_a_damaged_shard_is_told_before_anything_starts(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    shard = next(Path(store).glob("shard-*.parquet"))
    whole = shard.read_bytes()
    try:
        shard.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
        assert main([*TRAIN, "--data", store]) == 2
    finally:
        shard.write_bytes(whole)
    assert f"{shard} differs from its checksum in the manifest" in capsys.readouterr().err
    assert not Path("run").exists()


# --- Several stores ---

OTHER_SPEC = """\
name: other_sample
cameras: {image: observation/image}
instruction: observation/natural_language_instruction
control_hz: 10
gripper: absolute
action:
  world_vector: {path: action/world_vector, unit: m}
  gripper_closedness_action: {path: action/gripper_closedness_action, unit: closedness}
flags:
  everywhere: always
"""


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """other(**settings): a store of another dataset, of four episodes."""
    folder = tmp_path_factory.mktemp("other")
    (folder / "other.yaml").write_text(OTHER_SPEC)

    def made(**settings: Any) -> str:
        config = {"split": "val[:4]", "encoder": "hash", "workers": 0, "dataset": str(folder / "other.yaml")}
        out = folder / "-".join(map(str, ["out", *settings.values()]))
        return convert(str(SAMPLE), str(out), ConvertConfig(**{**config, **settings})).store

    return made


def changed(store: str, folder: Path, change: Callable[[dict[str, Any]], object]) -> str:
    """A copy of `store` whose manifest was changed."""
    shutil.copytree(store, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return str(folder)


def refused(*stores: str, flags: tuple[str, ...] = (), capsys: pytest.CaptureFixture[str]) -> str:
    """What `rtp train` says on its way out, before anything is written."""
    capsys.readouterr()
    assert main([*TRAIN, "--data", *stores, *flags]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and not Path("run").exists()
    return said


def test_stores_that_cannot_be_mixed_are_told_apart(
    store: str, other: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(store, other(image_size="32x32"), capsys=capsys)
    assert "stores cannot be mixed: image is" in said and "32x32" in said and "the same --image-size" in said
    with_use = changed(other(), Path("use"), lambda m: m["contract"].update(encoder="universal-sentence-encoder/4"))
    said = refused(store, with_use, capsys=capsys)
    assert "encoder is hash-512 in metaworld_sample and universal-sentence-encoder/4 in other_sample" in said
    assert "metaworld_sample is given more than once" in refused(store, store, capsys=capsys)
    said = refused(store, other(), flags=("--mixture.weights", "metaworld_sample", "1"), capsys=capsys)
    assert "has no weight for 'other_sample'" in said


def test_what_is_no_whole_store_is_told(
    store: str, other: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(other(), "half")
    Path("half/manifest.json").unlink()
    Path("half/.progress").mkdir()
    assert "half holds an unfinished store: run the same command again" in refused(store, "half", capsys=capsys)

    def lies(manifest: dict[str, Any]) -> None:
        manifest["shards"][0]["rows"] += 1
        manifest["shards"][0]["episode_lengths"][0] += 1

    assert "its manifest says" in refused(store, changed(other(), Path("lying"), lies), capsys=capsys)
    for blob, words in ((b"{", "cannot be read as JSON"), (b"[]", "is not as it was written"), (b"\xff", "as text")):
        Path("lying/manifest.json").write_bytes(blob)
        assert words in refused(store, "lying", capsys=capsys)
    gone = changed(other(), Path("gone"), lambda manifest: manifest.pop("contract"))
    assert "gone/manifest.json is not as it was written (no 'contract')" in refused(store, gone, capsys=capsys)
    none = changed(other(), Path("none"), lambda m: m["contract"]["datasets"][0]["statistics"].update(count=0))
    assert "other_sample has no step to train on, all are terminal" in refused(store, none, capsys=capsys)
    shutil.copytree(other(), "table")
    Path("table/instructions.parquet").write_bytes(b"PAR1")
    assert "table/instructions.parquet cannot be read" in refused(store, "table", capsys=capsys)


def test_a_flag_that_one_store_has_is_masked_there(store: str, other: Callable[..., str]) -> None:
    flags = ["--loader.mask-flags", "everywhere"]
    assert main([*TRAIN, "--data", store, other(), "--validation", store, *flags]) == 0
    stores = [EpisodeStore.open(path) for path in (store, other())]
    reader = WindowReader(stores, [SAME] * 2, num_steps=2, config=LoaderConfig(mask_flags=("everywhere",)))
    rows = np.cumsum([0, reader.store_rows[0]]) + 1  # the second step of each store
    assert reader.read(rows, rows)["loss_mask"].tolist() == [[True, True], [False, False]]
