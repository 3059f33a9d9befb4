"""Cameras beside the main one, and the robot's state, on their way into a store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipelines.reports.store_page import page
from preprocessing.convert import ConvertConfig, convert
from preprocessing.dataset_spec import DatasetSpec
from preprocessing.openx.metaworld_sample import SPEC as METAWORLD
from preprocessing.rlds import open_dataset
from preprocessing.spec_file import draft
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.images import image_size
from preprocessing.store.robot_inputs import INPUTS, store_inputs
from preprocessing.store.summary import summary, text
from rt_models.spec import ImageRecipe
from tests.support import two_cameras
from tests.support.tiny_rlds import jpeg


def pictures(store: EpisodeStore, column: str) -> list[bytes]:
    return [frame for n in range(len(store.shards)) for frame in store.read_shard(n, [column])[column].to_pylist()]


def changed_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_every_camera_keeps_its_own_size_and_the_manifest_says_so(tmp_path: Path) -> None:
    store = two_cameras.store(tmp_path)
    assert store.manifest.cameras == {"image": "observation/image", "hand": "observation/hand_image"}
    assert store.manifest.camera_recipes == {"hand": ImageRecipe(camera="hand", height=8, width=8)}
    assert {image_size(frame) for frame in pictures(store, "image_hand")} == {(8, 8)}
    alone = two_cameras.store(tmp_path / "alone", cameras=("image",))
    assert store.contract.id == alone.contract.id, "what no model reads is no part of the contract"
    assert pictures(alone, "image") == pictures(store, "image")
    assert '"camera_recipes"' not in Path(alone.root, "manifest.json").read_text()


def test_each_camera_may_be_brought_to_a_size_of_its_own(tmp_path: Path) -> None:
    store = two_cameras.store(tmp_path, image_size="10x12,wrist=4x6")
    (recipe,) = store_inputs(store, cameras=("image", "wrist"), state=False).cameras
    assert (recipe.height, recipe.width, recipe.resize) == (4, 6, "pad")
    assert {image_size(frame) for frame in pictures(store, "image_hand")} == {(4, 6)}
    assert (store.contract.image.height, store.contract.image.width) == (10, 12)
    only_hand = two_cameras.store(tmp_path / "hand", image_size="hand=4x6")
    assert only_hand.contract.image.resize == "none" and only_hand.contract.image.height == 16


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"image_size": "8x8,wrist=4x4,wrist=6x6"}, "gives wrist two sizes"),
        ({"image_size": "8x8,9x9"}, "gives all cameras two sizes"),
        ({"image_size": "wrist=8"}, "must be HEIGHTxWIDTH"),
        ({"image_size": "left=8x8"}, "two_cameras has no camera 'left': choose of image, hand"),
        ({"image_size": "8x8,hand=4x4", "cameras": ("image",)}, "names hand, which is not stored: add it to --cameras"),
        ({"cameras": ("hand",)}, "--cameras must name image"),
        ({"cameras": ("image", "top")}, "two_cameras has no camera 'top': choose of image, hand"),
    ],
)
def test_wrong_cameras_and_sizes_are_refused(tmp_path: Path, settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        two_cameras.store(tmp_path, **settings)


def test_cameras_may_be_named_by_role_and_in_one_word(tmp_path: Path) -> None:
    store = two_cameras.store(tmp_path, cameras=("image,wrist",))
    assert list(store.manifest.cameras) == ["image", "hand"]
    assert store.manifest.settings["cameras"] == ["image", "hand"]


def test_frames_of_another_camera_that_differ_in_size_are_refused_with_its_flag(tmp_path: Path) -> None:
    first = two_cameras.source(tmp_path / "first")
    other = two_cameras.source(tmp_path / "other", hand_size=(6, 6))
    names = sorted(path.name for path in first.glob("*.tfrecord*"))
    (first / names[1]).write_bytes((other / names[1]).read_bytes())
    config = ConvertConfig(
        dataset=str(two_cameras.spec(tmp_path / "robot.yaml")), cameras=("image", "hand"), encoder="hash", workers=0
    )
    with pytest.raises(ValueError, match=r"frames of camera hand .* 6x6 and 8x8: give --image-size hand=HxW"):
        convert(str(first), str(tmp_path / "out"), config)


def test_a_broken_frame_of_another_camera_costs_its_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def cut(random: np.random.Generator, *size: int) -> bytes:
        made.append(size)
        whole = jpeg(random, *size)
        return whole[:-9] if size and len(made) == 4 else whole  # the hand's second frame

    monkeypatch.setattr(two_cameras, "jpeg", cut)
    store = two_cameras.store(tmp_path)
    assert (store.manifest.counts.quarantined, store.num_episodes) == (1, 2)
    assert "observation/hand_image of step 1" in Path(store.root, "quarantine.jsonl").read_text()


def test_the_state_s_statistics_are_those_of_its_values(tmp_path: Path) -> None:
    store = two_cameras.store(tmp_path)
    state_NP = np.concatenate([np.stack(store.read_shard(n, ["proprio"])["proprio"].to_pylist()) for n in range(2)])
    side = store_inputs(store, cameras=("image",), state=True).state
    assert side is not None and side.names == tuple(f"state/{name}" for name in two_cameras.STATE)
    assert side.units == ("m", "m", "m", "openness") and side.statistics.count == 19
    np.testing.assert_allclose(side.statistics.mean, state_NP.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(side.statistics.maximum, state_NP.max(axis=0), rtol=1e-6)
    assert np.abs(side.normalised(state_NP)).max() < 5
    assert store_inputs(two_cameras.store(tmp_path / "b", state=False), cameras=("image",), state=True).state is None


def test_stores_of_before_are_measured_once(tmp_path: Path) -> None:
    store = two_cameras.store(tmp_path)
    asked = store_inputs(store, cameras=("image", "wrist"), state=True)

    def older(manifest: dict) -> None:
        del manifest["camera_recipes"]
        del manifest["proprio"]["statistics"]

    changed_json(Path(store.root, "manifest.json"), older)
    old = EpisodeStore.open(store.root)
    assert store_inputs(old, cameras=("image", "wrist"), state=True) == asked
    kept = json.loads(Path(store.root, INPUTS).read_text())
    assert set(kept["camera_recipes"]) == {"hand"} and kept["state"]["count"] == 19
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EpisodeStore, "_read", lambda *_: pytest.fail("measured again"))
        assert store_inputs(old, cameras=("image", "wrist"), state=True) == asked
    changed_json(Path(store.root, "manifest.json"), lambda manifest: manifest.update(notes="another store"))
    assert store_inputs(EpisodeStore.open(store.root), cameras=("image", "wrist"), state=True) == asked


def test_a_camera_that_the_source_has_and_the_store_left_out_names_the_flag(tmp_path: Path) -> None:
    store = two_cameras.store(tmp_path, cameras=("image",))
    with pytest.raises(ValueError, match=r"camera wrist, which .* without: .* --cameras image hand"):
        store_inputs(store, cameras=("image", "wrist"), state=False)
    assert store_inputs(store, cameras=("image", "left"), state=False).cameras == (), "no camera by its spec"


# --- Specs ---


def test_an_optional_camera_is_none_of_the_hash_and_refused_where_it_was_not_recorded(tmp_path: Path) -> None:
    assert METAWORLD.optional_cameras == {"wrist": "observation/wrist_image"}
    data = two_cameras.spec(tmp_path / "robot.yaml", hand=None).read_text()
    (tmp_path / "robot.yaml").write_text(data + "optional_cameras: {wrist: observation/hand_image}\n")
    without = two_cameras.source(tmp_path / "without", hand=None)
    config = ConvertConfig(dataset=str(tmp_path / "robot.yaml"), encoder="hash", workers=0)
    store = EpisodeStore.open(convert(str(without), str(tmp_path / "a"), config).store)
    assert store.manifest.cameras_left_out == ()
    both = ConvertConfig(**{**vars(config), "cameras": ("image", "wrist")})
    with pytest.raises(ValueError, match="was recorded without the camera wrist: leave it out of --cameras"):
        convert(str(without), str(tmp_path / "b"), both)
    recorded = two_cameras.source(tmp_path / "with")
    store = EpisodeStore.open(convert(str(recorded), str(tmp_path / "c"), config).store)
    assert store.manifest.cameras_left_out == ("wrist",)
    store = EpisodeStore.open(convert(str(recorded), str(tmp_path / "d"), both).store)
    assert list(store.manifest.cameras) == ["image", "wrist"]


def test_two_cameras_of_one_role_are_refused() -> None:
    settings = {name: getattr(METAWORLD, name) for name in METAWORLD.__dataclass_fields__}
    for cameras in ({"image": "a", "hand": "b", "wrist": "c"}, {"image": "a", "gripper": "b", "hand": "c"}):
        with pytest.raises(ValueError, match="two cameras are wrist: rename one"):
            DatasetSpec(**{**settings, "cameras": cameras, "optional_cameras": {}})


# --- What is shown ---


def test_the_summary_and_the_page_show_cameras_with_their_sizes_and_the_state(tmp_path: Path) -> None:
    store = two_cameras.store(tmp_path)
    about = summary(store)
    hand = {"role": "wrist", "path": "observation/hand_image", "size": "8x8", "resize": "none"}
    assert about["cameras"]["hand"] == hand and about["cameras"]["image"]["size"] == "16x24"
    assert about["state"]["state/opening"]["unit"] == "openness"
    assert about["state"]["state/x"]["statistics"].keys() == {"mean", "std", "min", "q01", "q99", "max"}
    said = text(about)
    assert "cameras: image 16x24, hand (wrist) 8x8" in said and "state/opening (openness)" in said
    assert all(len(line) <= 80 for line in said.splitlines() if str(tmp_path) not in line)
    drawn = page(store, about, episodes=1)
    assert drawn.count('<div class="strip">') == 2 and "observation/hand_image" in drawn and "state/opening" in drawn

    alone = summary(two_cameras.store(tmp_path / "alone", cameras=("image",)))
    assert alone["cameras_left_out"] == ["hand"]
    assert "cameras left out (rtp preprocess --cameras): hand" in text(alone) and "cameras: " not in text(alone)


def test_a_draft_names_cameras_by_role(tmp_path: Path) -> None:
    drafted = yaml.safe_load(draft(open_dataset(str(two_cameras.source(tmp_path / "a")))))
    assert drafted["cameras"] == {"image": "observation/image", "wrist": "observation/hand_image"}
    assert drafted["proprio"][0]["path"] == "observation/state"
    odd = yaml.safe_load(draft(open_dataset(str(two_cameras.source(tmp_path / "b", hand="left")))))
    assert odd["cameras"]["left"] == "observation/left_image"
