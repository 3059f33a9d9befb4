"""Objects marked beside a store, and the batches that models with masks read."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from preprocessing.changes.store_changes import delete
from preprocessing.convert import ConvertConfig, convert
from preprocessing.loading.masked_reader import MaskedWindowReader
from preprocessing.loading.reader import LoaderConfig
from preprocessing.loading.window_reader import WindowReader
from preprocessing.masks import mask_store as module
from preprocessing.masks.boxes import read_boxes
from preprocessing.masks.mask_store import MaskConfig, MaskSummary, mask_store
from preprocessing.masks.overlay import read_overlay
from preprocessing.masks.owl import Detection, OwlDetector
from preprocessing.masks.phrases import Phrase, phrase_of
from preprocessing.store.episode_store import EpisodeStore
from rt_models.spec import check_batch, unscaled
from tests.support.tiny_owl import save_owl
from tests.support.tiny_rlds import bridge_episode, bridge_features, write_dataset

LENGTHS = [[3, 5], [4], [2, 6]]
HEIGHT, WIDTH = 16, 24


@pytest.fixture
def store(tmp_path: Path) -> EpisodeStore:
    """Five episodes in three shards, each to put the cup in the sink."""
    random = np.random.default_rng(0)
    episodes = [[bridge_episode(random, length) for length in shard] for shard in LENGTHS]
    for episode in (episode for shard in episodes for episode in shard):
        for step in episode["steps"]:
            step["language_instruction"] = "put the cup in the sink"
    source = write_dataset(tmp_path / "source", "bridge_dataset", bridge_features(), episodes)
    return EpisodeStore.open(
        convert(str(source), str(tmp_path / "out"), ConvertConfig(encoder="hash", workers=0)).store
    )


def box_file(folder: Path, lines: list[dict[str, Any]]) -> str:
    path = folder / "boxes.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return f"boxes:{path}"


def marked(store: EpisodeStore, detector: str, **settings: Any) -> MaskSummary:
    summary = mask_store(store.root, MaskConfig(detector=detector, workers=0, **settings))
    assert summary.episodes == summary.marked + sum(summary.not_marked.values()) == store.num_episodes
    return summary


def reader_of(store: EpisodeStore, **settings: Any) -> MaskedWindowReader:
    transforms = [unscaled(store.contract.action.size)]
    config = LoaderConfig(**settings)
    return MaskedWindowReader([store], transforms, overlays=[read_overlay(store)], num_steps=3, config=config)


@pytest.mark.parametrize("frames", ["distinct", "windows"])
def test_batches_carry_the_marks_and_the_verb_of_each_episode(store: EpisodeStore, tmp_path: Path, frames: Any) -> None:
    lines: list[dict[str, Any]] = [{"episode": n, "box": [2 * n, 4, 2 * n + 2, 6]} for n in (0, 1, 2, 4)]
    lines[1] |= {"second": [20, 12, 24, 16], "verb": "move near"}
    summary = marked(store, box_file(tmp_path, lines))
    assert summary.not_marked == {"the file has no box for it": 1} and summary.with_second == 1
    assert summary.verbs == {"put in": 3, "move near": 1}
    rows = np.arange(store.num_steps)
    with closing(reader_of(store, frames=frames)) as reader:
        batch = reader.read(rows, rows)
    plain = WindowReader([store], [unscaled(11)], num_steps=3, config=LoaderConfig(frames=frames)).read(rows, rows)
    check_batch(batch, action_size=11)
    same = ("frames", "frame_index", "step_mask", "action", "episode", "crop_key")
    assert all(torch.equal(batch[key], plain[key]) for key in same)
    overlay = read_overlay(store)
    vectors = dict(zip(overlay.verbs, overlay.vectors_VD, strict=True))
    for window in range(len(rows)):
        episode, real = int(batch["episode"][window]), batch["step_mask"][window]
        masks = batch["object_mask"][batch["frame_index"][window][real]]
        expected = torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
        if episode != 3:
            expected[5, 2 * episode + 1] = 255
            verb = "move near" if episode == 1 else "put in"
            assert all(torch.equal(row, torch.tensor(vectors[verb])) for row in batch["embedding"][window][real])
        if episode == 1:
            expected[14, 22] = 128
        assert (masks == expected).all()
        assert torch.equal(batch["loss_mask"][window], plain["loss_mask"][window] & (episode != 3))


def test_marks_are_of_one_manifest(store: EpisodeStore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no object masks: make them with rtp mask"):
        read_overlay(store)
    detector = box_file(tmp_path, [{"episode": n, "box": [0, 0, 4, 4]} for n in range(5)])
    marked(store, detector)
    Path(store.root, "masks.parquet").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="differs from its checksum"):
        read_overlay(store)
    marked(store, detector)
    delete(store.root, episodes=[0])
    with pytest.raises(ValueError, match="of an earlier manifest: run rtp mask again"):
        read_overlay(EpisodeStore.open(store.root))


def test_owl_vit_looks_for_what_the_instruction_names_and_goes_on_where_it_was_cut(
    store: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = f"owlvit:{save_owl(tmp_path / 'owl')}"
    whole = marked(store, detector, threshold=0.0)
    assert whole.marked == whole.with_second == 5 and whole.verbs == {"put in": 5}
    places = read_overlay(store).place_E4
    assert ((places >= 0) & (places <= 1)).all()
    seen: list[int] = []
    inner = module._mark_shard

    def cut(task: Any, index: int) -> Any:
        seen.append(index)
        if seen == [0, 1]:
            raise KeyboardInterrupt
        return inner(task, index)

    monkeypatch.setattr(module, "_mark_shard", cut)
    with pytest.raises(KeyboardInterrupt):
        marked(store, detector, threshold=0.0)
    marked(store, detector, threshold=0.0)
    assert seen == [0, 1, 1, 2]
    np.testing.assert_array_equal(read_overlay(store).place_E4, places)
    unsure = [Detection(centre=(0.5, 0.5), score=0.05)] * 2
    monkeypatch.setattr(OwlDetector, "detect", lambda *_: unsure)
    with pytest.raises(ValueError, match=r"not one of 5 episodes .*its object is not found"):
        marked(store, detector, threshold=0.06)
    assert not Path(store.root, module._WORK).exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"episode": 0}, "no 'box'"),
        ({"episode": 9, "box": [0, 0, 1, 1]}, "the store has 0 to 4"),
        ({"episode": "0", "box": [0, 0, 1, 1]}, "not a whole number"),
        ({"episode": 0, "box": [0, 0, 1]}, "a box is"),
        ({"episode": 0, "box": [3, 0, 1, 1]}, "x0 <= x1"),
        ({"episode": 0, "box": [30, 0, 40, 1]}, "outside of the frame of 16x24"),
        ({"episode": 0, "box": [0, 0, 1, float("nan")]}, "x0 <= x1"),
        ({"episode": 0, "box": [0, 0, 1, 1], "verb": 3}, "not a text"),
        ([1], "'.1.' is no JSON object"),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path: Path, line: Any, words: str) -> None:
    path = box_file(tmp_path, [{"episode": 1, "box": [0, 0, 1, 1]}, line]).removeprefix("boxes:")
    with pytest.raises(ValueError, match=words) as caught:
        read_boxes(path, height=HEIGHT, width=WIDTH, episodes=5)
    assert "boxes.jsonl:2" in str(caught.value)


def test_a_box_that_leaves_the_frame_is_marked_in_the_part_that_is_seen(tmp_path: Path) -> None:
    path = box_file(tmp_path, [{"episode": 0, "box": [20, -8, 40, 8]}]).removeprefix("boxes:")
    assert read_boxes(path, height=HEIGHT, width=WIDTH, episodes=1)[0].centre == (22 / 24, 4 / 16)


@pytest.mark.parametrize(
    ("instruction", "verb", "first", "second"),
    [
        ("pick up the red can", "pick up", "red can", None),
        ("move apple near the blue chip bag", "move near", "apple", "blue chip bag"),
        ("knock the water bottle over", "knock over", "water bottle", None),
        ("place coke can upright", "place upright", "coke can", None),
        ("Place the sponge into white bowl.", "place into", "sponge", "white bowl"),
        ("open the drawer", "open", "drawer", None),
    ],
)
def test_instructions_are_taken_apart(instruction: str, verb: str, first: str, second: str | None) -> None:
    assert phrase_of(instruction) == Phrase(verb=verb, object=first, second=second)


def test_what_names_no_object_is_none() -> None:
    assert phrase_of("") is phrase_of("wait") is None
    with pytest.raises(ValueError, match="is not one of owlvit:PATH"):
        MaskConfig(detector="yolo:x")
    with pytest.raises(ValueError, match="is not one of"):
        MaskConfig(detector="boxes:")
