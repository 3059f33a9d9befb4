"""YAML specs: drafted from every released schema, refused until filled in, then good for a conversion."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from preprocessing import dataset_spec
from preprocessing.convert import ConvertConfig, convert
from preprocessing.dataset_spec import Always, Equals, FirstActionZero
from preprocessing.rlds import open_dataset
from preprocessing.spec_file import _roles, draft, read_spec
from rt_models.spec import require_cameras
from tests.support.tiny_rlds import released_schemas, write_source

BRIDGE = """
name: bridge_dataset
cameras: {image: observation/image_0, "1": observation/image_1, "2": observation/image_2, "3": observation/image_3}
instruction: language_instruction
embedding: language_embedding
embedding_encoder: universal-sentence-encoder-large/5
control_hz: 5
gripper: absolute
action:
  world_vector: {path: action, unit: m}
  rotation_delta: {path: action, first: 3, unit: rad}
  gripper_closedness_action: {path: action, first: 6, scale: -2, offset: 1, unit: closedness}
proprio:
  - path: observation/state
    names: [x, y, z, roll, pitch, yaw, gripper]
    units: [m, m, m, rad, rad, rad, openness]
flags:
  first_zero_action: {path: action, first_zero: 6}
"""


def test_a_file_can_say_what_a_python_spec_says(tmp_path: Path) -> None:
    (tmp_path / "bridge.yaml").write_text(BRIDGE)
    found = read_spec(tmp_path / "bridge.yaml")
    expected = dataset_spec.load("bridge_dataset")
    assert [p.values({"action": [[1, 2, 3, 4, 5, 6, 7]]}).tolist() for p in found.action] == [
        p.values({"action": [[1, 2, 3, 4, 5, 6, 7]]}).tolist() for p in expected.action
    ]
    assert replace(found, action=expected.action, notes=expected.notes) == expected


def test_the_kinds_of_flags(tmp_path: Path) -> None:
    flags = {"flags": {"a": "always", "b": {"path": "success", "equals": False}, "c": {"path": "x", "first_zero": 2}}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(yaml.safe_load(BRIDGE) | flags))
    assert read_spec(tmp_path / "s.yaml").flags == (
        Always(name="a"),
        Equals(name="b", path="success", value=0),
        FirstActionZero(name="c", path="x", width=2),
    )


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("gripper: absolute", "gripper: '?'", r"gripper of the file is still '\?': fill it in"),
        ("gripper: absolute", "gripper: sideways", "gripper must be one of absolute, relative, none"),
        ("unit: m}", "units: m}", "action.world_vector lacks unit"),
        ("world_vector:", "world_vectr:", "action has an unknown 'world_vectr'"),
        ("control_hz: 5", "", "the file lacks control_hz"),
        ("action:", "action: 7", "mapping values are not allowed here"),
        ("units: [m,", "units: [", "names for 6 units"),
        ("control_hz: 5", "control_hz: 0", "control_hz is 0, and must be a number of steps a second above 0"),
        ("control_hz: 5", "control_hz: .nan", "control_hz is nan"),
        ("control_hz: 5", "control_hz: yes", "control_hz must be steps a second"),
        ("control_hz: 5", "control_hz: 5\ncontrol_hz: 6", "'control_hz' is given twice: leave one"),
        ("name: ", "name: ../", "cannot be the name of a folder"),
        ("unit: m}", "unit: m, first: -1}", "world_vector: first -1 must be at least 0"),
        ("unit: m}", "unit: m, width: 4}", "world_vector: first 0 must be at least 0, width 4 at most 3"),
        ("unit: m}", "unit: m, first: one}", "first of action.world_vector must be a number, got 'one'"),
        ("unit: m}", "unit: m, scale: .inf}", "scale inf and offset 0.0 must be finite"),
        ("units: [m,", "units: words #", "units of proprio .* must be a list of words, got 'words'"),
        ("path: action, first_zero: 6", "path: action", "flags.first_zero_action must be `always`, or hold a path"),
        ("cameras:", "cameras: [image]\nnotes:", "cameras must be a mapping"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(BRIDGE.replace(old, new, 1))
    with pytest.raises(ValueError, match=rf"dataset spec {path}: .*{sentence}"):
        read_spec(path)


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--draft-spec"):
        read_spec(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("cameras", "roles"),
    [
        (["observation/wrist_image", "observation/left_rgb"], ["wrist", "left"]),
        (["observation/wrist_image", "observation/eye_in_hand_rgb"], ["wrist_image", "eye_in_hand_rgb"]),
        (["a/left/rgb", "a/right/rgb"], ["a_left_rgb", "a_right_rgb"]),
        (["observation/other/image"], ["observation_other_image"]),
        (["observation/image_1", "observation/image_2"], ["1", "2"]),
        (["observation/side_image", "observation/primary"], ["side_image", "observation_primary"]),
    ],
)
def test_a_draft_calls_each_camera_by_a_role_of_its_own(cameras: list[str], roles: list[str]) -> None:
    assert _roles(cameras) == dict(zip(roles, cameras, strict=True))
    require_cameras(("image", *roles))


def test_drafts_of_every_released_schema(data_dir: Path, tmp_path: Path) -> None:
    for name, schema in released_schemas(data_dir).items():
        source = str(write_source(tmp_path / name, name, schema, {}))
        if name == "tidybot":
            with pytest.raises(ValueError, match="has no numeric action"):
                draft(open_dataset(source))
            continue
        path = tmp_path / f"{name}.yaml"
        path.write_text(draft(open_dataset(source)))
        with pytest.raises(ValueError, match="is still"):
            read_spec(path)
        data = yaml.safe_load(path.read_text()) | {"control_hz": 5, "gripper": "absolute"}
        for group, part in data["action"].items():
            if group != "terminate_episode":
                part["unit"] = "unitless"
        path.write_text(yaml.safe_dump(data))
        summary = convert(source, str(tmp_path / "out"), ConvertConfig(workers=0, dataset=str(path), encoder="hash"))
        assert (summary.episodes_out, summary.steps) == (1, 3), name
