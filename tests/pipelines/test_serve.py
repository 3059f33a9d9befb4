"""What a served policy takes, what it refuses and in which words, and how long it remembers."""

from __future__ import annotations

import base64
import contextlib
import io
import socket
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from command_line import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pipelines import mlflow_policy
from pipelines.bundle import TrainedModel
from pipelines.catalogue import load_recipe
from pipelines.cli import main
from pipelines.co_fine_tuning import CoFineTuningConfig, with_tokenizer
from pipelines.mlflow_policy import RobotPolicy
from pipelines.register import _bundle
from pipelines.request_values import camera_frame
from pipelines.training_data import training_contract
from preprocessing.episode_store import EpisodeStore
from preprocessing.images import decode_image, encode_jpeg
from rt_models.rt2 import RT2, RT2Config
from rt_models.rt2_policy import RT2Policy
from rt_models.rt2_vlm import RT2VLMConfig
from rt_models.spec import ImageRecipe


@pytest.fixture(scope="module")
def opened(store: str) -> EpisodeStore:
    return EpisodeStore.open(store)


@pytest.fixture(scope="module")
def folder(opened: EpisodeStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a registered model carries, of a model that was never trained."""
    experiment = load_recipe("rt1_tiny")
    trained = TrainedModel(
        model=experiment.model.build().eval(),
        contract=training_contract(experiment, [opened]),
        step=0,
        source="here",
        metadata={"git_revision": "none"},
    )
    return _bundle(trained, [opened], tmp_path_factory.mktemp("policy"))


@pytest.fixture
def policy(folder: Path) -> RobotPolicy:
    policy = RobotPolicy()
    policy.load_context(SimpleNamespace(artifacts={"policy": str(folder)}))
    return policy


def ask(policy: RobotPolicy, *rows: dict[str, Any], **params: str) -> np.ndarray:
    return policy.predict(None, pd.DataFrame(list(rows)), params).to_numpy()


@pytest.fixture(scope="module")
def frames(opened: EpisodeStore) -> list[bytes]:
    return opened.read_rows(0, 0, ["image"])["image"].to_pylist()[:4]


@pytest.fixture(scope="module")
def text(opened: EpisodeStore) -> str:
    return opened.instruction_texts[0]


def png(pixels_HWC: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels_HWC).save(file, "PNG")
    return file.getvalue()


@given(seed=st.integers(0, 2**31), height=st.integers(1, 20), width=st.integers(1, 20))
def test_every_form_of_a_frame_is_the_same_frame(seed: int, height: int, width: int) -> None:
    pixels_HWC = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    recipe = ImageRecipe(camera="image", height=height, width=width)
    raw, encoded = pixels_HWC.tobytes(), png(pixels_HWC)
    rows = np.empty(height, dtype=object)  # as a data frame may hold nested sequences
    rows[:] = [row.tolist() for row in pixels_HWC]
    text = base64.b64encode(encoded).decode()
    for form in (pixels_HWC, pixels_HWC.astype(np.int64), pixels_HWC.tolist(), rows, encoded, raw, text):
        np.testing.assert_array_equal(camera_frame(form, recipe), pixels_HWC)


NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
RECIPE = ImageRecipe(camera="image", height=8, width=6)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (None, "got nothing"),
        (7, "got int"),
        (np.zeros((8, 6, 3)), r"got float64 \(8, 6, 3\)"),
        (np.zeros((8, 6, 4), np.uint8), r"got uint8 \(8, 6, 4\)"),
        (np.zeros((8, 6), np.uint8), r"got uint8 \(8, 6\)"),
        (np.full((8, 6, 3), 256), r"got int64 \(8, 6, 3\)"),
        ([[1, 2], [3]], "unequal length"),
        (b"no picture", "10 bytes that are no image"),
        ("no base64!", "not base64"),
        (png(NOISE)[: len(png(NOISE)) // 2], "cannot be decoded"),
        (png(np.zeros((8, 6), np.uint16)), "mode I;16, as depth images have"),
        (np.zeros((9, 6, 3), np.uint8), "the camera frame is 9x6, this policy was trained on 8x6"),
    ],
)
def test_what_is_no_frame_is_refused_in_words(image: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        camera_frame(image, RECIPE)


def test_a_picture_too_large_for_any_camera_is_refused_by_its_header() -> None:
    encoded = encode_jpeg(NOISE)
    place = encoded.index(b"\xff\xc0") + 5
    lying = encoded[:place] + (17_000).to_bytes(2, "big") + (30_000).to_bytes(2, "big") + encoded[place + 4 :]
    tracemalloc.start()
    with pytest.raises(ValueError, match="image cannot be decoded: the image claims 17000x30000, 510000000 pixels"):
        camera_frame(base64.b64encode(lying).decode(), RECIPE)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_frame_that_was_taken_turned_is_seen_upright(orientation: int) -> None:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(NOISE[:8, :6] if orientation == 3 else NOISE[:6, :8]).save(file, "PNG", exif=exif)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(file)))
    np.testing.assert_array_equal(camera_frame(file.getvalue(), RECIPE), shown)


@given(
    picture=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]),
    places=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=4),
    length=st.floats(0, 1),
)
def test_a_damaged_picture_is_a_frame_or_refused_in_words(
    picture: str, places: list[tuple[float, int]], length: float
) -> None:
    file = io.BytesIO()
    Image.fromarray(NOISE[:8, :6]).save(file, picture)
    content = bytearray(file.getvalue())
    for place, value in places:
        content[int(place * len(content))] = value
    with contextlib.suppress(ValueError):
        assert camera_frame(bytes(content[: round(length * len(content))]), RECIPE).shape == (8, 6, 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["runs/first"], "runs/first is no registered model: give models:/NAME@ALIAS"),
        (["models:/arm@champion", "--port", "70000"], "a TCP port is from 1 to 65535"),
        (["models:/arm@champion", "--port", "0"], "a TCP port is from 1 to 65535"),
        (["models:/arm@champion", "--port", "{busy}"], "cannot listen on 127.0.0.1 port"),
        (["models:/arm@champion", "--host", "203.0.113.1"], "cannot listen on 203.0.113.1 port 5001"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as busy:
        assert main(["serve", *(word.format(busy=busy.getsockname()[1]) for word in arguments)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line and list(tmp_path.iterdir()) == []


def test_an_embedding_stands_for_its_instruction(
    policy: RobotPolicy, opened: EpisodeStore, frames: list[bytes], text: str
) -> None:
    vector = opened.embeddings[0]
    by_text, by_vector, by_list = ask(
        policy,
        {"image": frames[0], "instruction": text},
        {"image": frames[0], "embedding": vector},
        {"image": frames[0], "embedding": vector.tolist()},
    )
    np.testing.assert_array_equal(by_text, by_vector)
    np.testing.assert_array_equal(by_text, by_list)


@pytest.mark.parametrize("row", [{}, {"instruction": None}, {"instruction": " "}, {"instruction": float("nan")}])
def test_a_missing_instruction_is_refused(policy: RobotPolicy, frames: list[bytes], row: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="row 0: there is no instruction: give a text"):
        ask(policy, {"image": frames[0], **row})


def test_an_embedding_of_another_width_is_refused(policy: RobotPolicy, frames: list[bytes]) -> None:
    with pytest.raises(ValueError, match=r"must be 512 finite numbers, got float64 \(3,\)"):
        ask(policy, {"image": frames[0], "embedding": [0.0, 0.0, 0.0]})


def test_an_unseen_instruction_goes_through_the_encoder_or_says_what_is_missing(
    policy: RobotPolicy, frames: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(policy, {"image": frames[0], "instruction": "never heard of"})  # hash encoder: runs anywhere

    def lacking(encoder: str, texts: list[str]) -> np.ndarray:
        raise ValueError("the `use` encoder needs TensorFlow")

    monkeypatch.setattr(mlflow_policy, "embed_texts", lacking)
    with pytest.raises(ValueError, match=r"'sing' is not one of the \d+ .*needs TensorFlow.*or an embedding"):
        ask(policy, {"image": frames[0], "instruction": "sing"})


def test_a_robot_has_a_history_until_it_is_reset(policy: RobotPolicy, frames: list[bytes], text: str) -> None:
    rows = [{"image": frame, "instruction": text, "robot": "a"} for frame in frames[:3]]
    first, _, third = ask(policy, *rows)
    again = ask(policy, rows[0] | {"reset": True})[0]
    np.testing.assert_array_equal(again, first)
    after = ask(policy, *rows[1:])[-1]
    np.testing.assert_array_equal(after, third)


@pytest.mark.parametrize("reset", ["false", 0, [True]])
def test_a_reset_that_is_neither_true_nor_false_is_refused(
    policy: RobotPolicy, frames: list[bytes], text: str, reset: Any
) -> None:
    with pytest.raises(ValueError, match="row 0: reset must be true or false, got"):
        ask(policy, {"image": frames[0], "instruction": text, "robot": "a", "reset": reset})


def test_another_robot_does_not_disturb(policy: RobotPolicy, frames: list[bytes], text: str) -> None:
    alone = [ask(policy, {"image": frame, "instruction": text, "robot": "a"})[0] for frame in frames]
    mixed = []
    for frame, other in zip(frames, reversed(frames), strict=True):
        rows = ({"image": image, "instruction": text, "robot": name} for image, name in ((frame, "b"), (other, "c")))
        mixed.append(ask(policy, *rows)[0])
    np.testing.assert_array_equal(alone, mixed)


def test_a_bad_row_leaves_every_history_as_it_was(policy: RobotPolicy, frames: list[bytes], text: str) -> None:
    rows = [{"image": frame, "instruction": text, "robot": "a"} for frame in frames[:2]]
    expected = ask(policy, *rows, {"image": frames[2], "instruction": text, "robot": "a"})[-1]
    policy._robots.clear()
    ask(policy, rows[0])
    with pytest.raises(ValueError, match="row 1: "):
        ask(policy, rows[1], {"image": b"", "instruction": text, "robot": "a"})
    repeated = ask(policy, rows[1], {"image": frames[2], "instruction": text, "robot": "a"})[-1]
    np.testing.assert_array_equal(repeated, expected)


def test_histories_are_bounded_and_the_stalest_goes_first(
    policy: RobotPolicy, frames: list[bytes], text: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(mlflow_policy, "MAX_ROBOTS", 2)
    for robot in ("a", "b", "a", "c"):
        ask(policy, {"image": frames[0], "instruction": text, "robot": robot})
    assert [robot for robot, _ in policy._robots] == ["a", "c"]
    assert "the history of 'b' is forgotten" in caplog.text


def test_a_caller_that_was_built_for_another_contract_is_refused(
    policy: RobotPolicy, frames: list[bytes], text: str
) -> None:
    row = {"image": frames[0], "instruction": text}
    ask(policy, row, contract=policy._contract.id)
    with pytest.raises(
        ValueError, match=f"contract 0123456789abcdef was asked for, this policy has {policy._contract.id}"
    ):
        ask(policy, row, contract="0123456789abcdef")
    with pytest.raises(ValueError, match="dataset 'kuka' is not in this contract: name one of metaworld_sample"):
        ask(policy, row, dataset="kuka")


def test_jpeg_frames_are_decoded_as_in_training(frames: list[bytes], opened: EpisodeStore) -> None:
    recipe = opened.contract.image
    np.testing.assert_array_equal(camera_frame(frames[0], recipe), decode_image(frames[0]))
    assert camera_frame(encode_jpeg(decode_image(frames[0])), recipe).shape == (recipe.height, recipe.width, 3)


# --- RT-2 ---


@pytest.fixture(scope="module")
def trained_rt2(opened: EpisodeStore) -> TrainedModel:
    experiment = replace(load_recipe("rt2_tiny"), co_fine_tuning=CoFineTuningConfig(robot_share=1))
    assert isinstance(experiment.model, RT2Config)
    model = with_tokenizer(experiment.model, [opened]).build().eval()
    contract = training_contract(experiment, [opened])
    return TrainedModel(model=model, contract=contract, step=0, source="here", metadata={"git_revision": "none"})


def test_rt2_is_served_alike_and_reads_any_text(
    trained_rt2: TrainedModel, opened: EpisodeStore, frames: list[bytes], text: str, tmp_path: Path
) -> None:
    served = RobotPolicy()
    folder = _bundle(trained_rt2, [opened], tmp_path)
    served.load_context(SimpleNamespace(artifacts={"policy": str(folder)}))
    rows = [{"image": frames[0], "instruction": words, "robot": "a"} for words in (text, "never heard of")]
    side, model = trained_rt2.contract.datasets[0], trained_rt2.model
    assert isinstance(model, RT2)
    policy = RT2Policy(model, model.config.build_text(), transform=side.transform, action_mask=side.action_mask)
    expected = [side.completed(policy.act(decode_image(frames[0]), row["instruction"]).values) for row in rows]
    np.testing.assert_allclose(ask(served, *rows), expected, atol=1e-6)
    with pytest.raises(ValueError, match="row 0: this policy reads instructions as text"):
        ask(served, {"image": frames[0], "embedding": opened.embeddings[0]})


def test_a_pretrained_model_carries_what_it_was_built_from(
    opened: EpisodeStore, frames: list[bytes], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(str(REPOSITORY / "tests/rt_models"))
    from rt2_folders import save_paligemma

    config = RT2VLMConfig(path=str(save_paligemma(tmp_path / "base")))
    experiment = replace(load_recipe("rt2_tiny"), model=config, co_fine_tuning=CoFineTuningConfig(robot_share=1))
    model, contract = config.build().eval(), training_contract(experiment, [opened])
    trained = TrainedModel(model=model, contract=contract, step=0, source="here", metadata={"git_revision": "none"})
    (tmp_path / "bundle").mkdir()
    folder = _bundle(trained, [opened], tmp_path / "bundle")
    side = contract.datasets[0]
    policy = RT2Policy(model, config.build_text(), transform=side.transform, action_mask=side.action_mask)
    expected = side.completed(policy.act(decode_image(frames[0]), text).values)
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    served = RobotPolicy()
    served.load_context(SimpleNamespace(artifacts={"policy": str(folder)}))
    np.testing.assert_allclose(ask(served, {"image": frames[0], "instruction": text})[0], expected, atol=1e-6)
    assert [file for file in folder.rglob("*") if file.is_file() and str(tmp_path).encode() in file.read_bytes()] == []
