"""Every planted fault is found, alone, and sound data raise no alarm."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.cli import main
from pipelines.inspect import inspect
from preprocessing import dataset_spec
from preprocessing.audit.store_audit import _MOVES, Audit, _span_once_settled, audit, blocking, save, saved
from preprocessing.convert import ConvertConfig, convert
from preprocessing.store import summary
from preprocessing.store.episode_store import ROW_GROUP_ROWS, EpisodeStore, fixed_lists, instruction_id
from preprocessing.store.images import decode_image
from tests.support.tiny_rlds import bridge_episode, bridge_features, write_dataset

SAMPLE = Path(__file__).resolve().parents[3] / "examples/metaworld_sample/1.0.0"
Columns = dict[str, np.ndarray]
Change = Callable[[Columns], None]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample")
    for split in ("train", "val"):
        convert(str(SAMPLE), str(out), ConvertConfig(split=split, encoder="hash", workers=0))
    return out


@pytest.fixture
def plant(sample: Path, tmp_path: Path) -> Callable[[Change], EpisodeStore]:
    """plant(change) is the store of the training split with `change` done to the columns of every episode."""

    def planted(change: Change) -> EpisodeStore:
        shutil.rmtree(tmp_path / "planted", ignore_errors=True)
        shutil.copytree(sample / "metaworld_sample/1.0.0/train", tmp_path / "planted/train")
        (tmp_path / "planted/train/audit.json").unlink()
        for file in sorted((tmp_path / "planted/train").glob("shard-*.parquet")):
            table = pq.read_table(file)
            starts = np.flatnonzero(np.asarray(table["is_first"])).tolist()
            parts = [table.slice(a, b - a) for a, b in zip(starts, [*starts[1:], table.num_rows], strict=True)]
            changed = pa.concat_tables([_changed(part, change) for part in parts])
            pq.write_table(changed, file, row_group_size=ROW_GROUP_ROWS)
        return EpisodeStore.open(str(tmp_path / "planted"))

    return planted


def _changed(table: pa.Table, change: Change) -> pa.Table:
    columns = {name: np.stack(table[name].to_pylist()) for name in ("action", "proprio")}
    columns = {name: values.astype(np.float32) for name, values in columns.items()}
    columns["image"] = np.array([*table["image"].to_pylist(), None], object)[:-1]
    columns["instruction"] = np.asarray(table["instruction"]).copy()
    change(columns)
    arrays = {name: fixed_lists(columns[name]) for name in ("action", "proprio")}
    arrays["image"] = pa.array(list(columns["image"]), pa.binary())
    arrays["instruction"] = pa.array(columns["instruction"], pa.int64())
    for name, array in arrays.items():
        table = table.set_column(table.schema.get_field_index(name), name, array)
    return table


def findings(found: Audit, finding: str) -> list[str]:
    return [verdict.name for verdict in found.verdicts if verdict.finding == finding]


def inverted_gripper(columns: Columns) -> None:
    columns["action"][:, 7] *= -1


def absolute(columns: Columns) -> None:
    columns["action"][:-1, 1:4] = columns["proprio"][1:, :3]
    columns["action"][-1, 1:4] = columns["proprio"][-1, :3]


def absolute_target(columns: Columns) -> None:
    columns["action"][:, 1:4] += columns["proprio"][:, :3]


def millimetres(columns: Columns) -> None:
    columns["action"][:, 1:4] *= 1000


def early(columns: Columns) -> None:
    columns["action"][:, 1:8] = np.concatenate([columns["action"][2:, 1:8], np.zeros((2, 7), np.float32)])


def late(columns: Columns) -> None:
    columns["action"][:, 1:8] = np.concatenate([np.zeros((2, 7), np.float32), columns["action"][:-2, 1:8]])


def bgr(columns: Columns) -> None:
    swapped = [np.ascontiguousarray(decode_image(frame)[..., ::-1]) for frame in columns["image"]]
    columns["image"][:] = [simplejpeg.encode_jpeg(frame) for frame in swapped]


def repeated(columns: Columns) -> None:
    columns["image"][1::4] = columns["image"][:-1:4]


FAULTS: dict[Change, str] = {
    inverted_gripper: "gripper_sign",
    absolute: "world_vector_is_a_displacement",
    absolute_target: "world_vector_is_a_displacement",
    millimetres: "world_vector_unit",
    early: "action_to_state_lag",
    late: "action_to_state_lag",
    bgr: "colours_of_camera_image",
    repeated: "frames_follow_the_motion",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_found_and_nothing_else(plant: Callable[[Change], EpisodeStore], fault: Change) -> None:
    found = audit(plant(fault))
    assert findings(found, "contradicted") == [FAULTS[fault]]
    (sentence,) = blocking(found.verdicts)
    assert sentence.startswith(f"{FAULTS[fault]}: ") and blocking(found.verdicts, accepted=[FAULTS[fault]]) == []


def test_nothing_planted_nothing_found(plant: Callable[[Change], EpisodeStore]) -> None:
    assert findings(audit(plant(lambda columns: None)), "contradicted") == []


def test_a_lag_that_fits_no_better_than_a_plausible_one_is_no_fault(plant: Callable[[Change], EpisodeStore]) -> None:
    def central_difference(columns: Columns) -> None:
        place = np.pad(columns["proprio"][:, :3], ((1, 1), (0, 0)), "edge")
        columns["action"][:, 1:4] = (place[2:] - place[:-2]) / 2

    assert findings(audit(plant(central_difference)), "contradicted") == []


@pytest.mark.parametrize(("blank_every", "finding"), [(1, "contradicted"), (4, "contradicted"), (40, "unknown")])
def test_blank_texts(plant: Callable[[Change], EpisodeStore], blank_every: int, finding: str) -> None:
    episodes = iter(range(1000))

    def blank(columns: Columns) -> None:
        if next(episodes) % blank_every == 0:
            columns["instruction"][:] = instruction_id("")

    store = plant(blank)
    order = np.argsort([*store.instruction_ids, instruction_id("")])
    with_blank = replace(
        store,
        instruction_ids=np.append(store.instruction_ids, instruction_id(""))[order],
        instruction_texts=[[*store.instruction_texts, " \n"][i] for i in order],
    )
    assert "instructions_are_there" in findings(audit(with_blank), finding)


@pytest.mark.parametrize("split", ["train", "val"])
def test_no_false_alarm_on_the_sample(sample: Path, split: str) -> None:
    found = audit(EpisodeStore.open(str(sample), split=split))
    assert findings(found, "contradicted") == []
    unknown = ["rotation_delta_is_a_displacement", "rotation_delta_unit", "colours_of_camera_image"]
    assert findings(found, "unknown") == unknown


def test_no_false_alarm_on_bridge(data_dir: Path, tmp_path: Path) -> None:
    source = str(data_dir / "bridge_dataset/1.0.0")
    convert(source, str(tmp_path), ConvertConfig(workers=0, cameras=("image", "1", "2", "3")))
    found = audit(EpisodeStore.open(str(tmp_path)))
    assert findings(found, "contradicted") == []
    holds = findings(found, "holds")
    assert {"rotation_delta_is_a_displacement", "rotation_delta_unit", "gripper_sign", "action_to_state_lag"} < {*holds}
    marks = next(verdict for verdict in found.verdicts if verdict.name == "flags_are_set")
    assert (marks.finding, marks.sentence) == ("unknown", "never set: is_last, is_terminal")


def test_colours_against_a_reference(sample: Path, plant: Callable[[Change], EpisodeStore]) -> None:
    train, val = (EpisodeStore.open(str(sample), split=split) for split in ("train", "val"))
    assert "colours_of_camera_image" in findings(audit(train, reference=val), "holds")
    swapped = plant(bgr)
    assert "colours_of_camera_image" in findings(audit(swapped, reference=val), "contradicted")
    assert "colours_of_camera_image" in findings(audit(swapped, reference=swapped), "holds")


def test_noise_is_unknown(make_bridge: Callable[..., Path], tmp_path: Path) -> None:
    convert(str(make_bridge([60, 40], [50])), str(tmp_path / "out"), ConvertConfig(workers=0))
    found = audit(EpisodeStore.open(str(tmp_path / "out")))
    told = {"instructions_are_there", "instructions_differ", "declared_dimensions_vary", "frames_follow_the_motion"}
    told |= {"records_hold_one_episode", "few_steps_are_terminal", "state_is_finite"}
    assert {v.name for v in found.verdicts if v.finding != "unknown"} <= told


@pytest.mark.parametrize("state", [np.nan, np.inf])
def test_states_that_are_not_finite_tell_nothing(tmp_path: Path, state: float) -> None:
    episode = bridge_episode(np.random.default_rng(0), 70)
    for step in episode["steps"][30:]:
        step["observation"]["state"] = np.full(7, state, np.float32)
    source = write_dataset(tmp_path / "source", "bridge_dataset", bridge_features(), [[episode, episode]])
    convert(str(source), str(tmp_path / "out"), ConvertConfig(workers=0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = audit(EpisodeStore.open(str(tmp_path / "out")))
    json.dumps(found.to_json(), allow_nan=False)
    of_the_state = ("world_vector", "rotation_delta", "gripper", "action_to_state")
    assert {v.finding for v in found.verdicts if v.name.startswith(of_the_state)} == {"unknown"}
    (verdict,) = [v for v in found.verdicts if v.name == "state_is_finite"]
    assert verdict.sentence.startswith("the state is not finite at 80 steps of 2 of 2 episodes")


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scale=st.floats(-3, 3), shift=st.floats(-1, 1))
def test_a_right_convention_survives_another_origin_and_scale_of_the_world(
    plant: Callable[[Change], EpisodeStore], scale: float, shift: float
) -> None:
    def moved(columns: Columns) -> None:
        columns["proprio"][:, :3] = columns["proprio"][:, :3] * 10**scale + shift
        columns["action"][:, 1:4] *= 10**scale

    found = {verdict.name: verdict.finding for verdict in audit(plant(moved)).verdicts}
    names = ("world_vector_is_a_displacement", "world_vector_unit", "action_to_state_lag")
    assert [found[name] for name in names] == ["holds"] * 3


def _converted_with(spec: dataset_spec.DatasetSpec, out: Path, monkeypatch: pytest.MonkeyPatch) -> Audit:
    monkeypatch.setattr("preprocessing.dataset_spec.load", lambda name: spec)
    convert(str(SAMPLE), str(out), ConvertConfig(split="val", encoder="hash", workers=0))
    return audit(EpisodeStore.open(str(out)))


def test_a_dimension_that_never_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = dataset_spec.load("metaworld_sample")
    no_gripper = tuple(replace(p, scale=0.0) if p.group.startswith("gripper") else p for p in spec.action)  # type: ignore[call-arg]
    found = _converted_with(replace(spec, action=no_gripper), tmp_path / "gripper", monkeypatch)
    assert findings(found, "contradicted") == ["declared_dimensions_vary"]
    rotation = dataset_spec.Linear(group="rotation_delta", path="action/rotation_delta", unit="rad")
    found = _converted_with(replace(spec, action=(*spec.action, rotation)), tmp_path / "rotation", monkeypatch)
    assert findings(found, "contradicted") == [] and "declared_dimensions_vary" in findings(found, "unknown")


def test_a_gripper_that_is_always_told_the_same_goes_there_at_the_start() -> None:
    for still in ([1.0, 0.7, 0.3, 0.3, 0.3], [1.0, 1.0, 1.0], [1.0, 0.5], [0.5]):
        assert _span_once_settled(np.array(still, np.float32)) <= _MOVES
    for moved in ([1.0, 1.0, 0.7, 0.3], [1.0, 0.6, 0.6, 1.0]):
        assert _span_once_settled(np.array(moved, np.float32)) > _MOVES


def test_what_a_spec_declares_uninformative_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flag = dataset_spec.Always(name="uninformative_instruction")
    spec = replace(dataset_spec.load("metaworld_sample"), flags=(flag,), proprio=())
    found = _converted_with(spec, tmp_path, monkeypatch)
    assert {"instructions_are_there", "instructions_differ", "flags_are_set"} <= {*findings(found, "holds")}
    assert {"gripper_sign", "action_to_state_lag", "frames_follow_the_motion"} <= {*findings(found, "unknown")}


def test_a_relative_gripper(plant: Callable[[Change], EpisodeStore]) -> None:
    def closes(columns: Columns) -> None:
        opening = columns["proprio"][:, 3]
        columns["action"][:, 7] = np.sign(np.round(opening - np.append(opening[1:], opening[-1]), 2))

    def opens(columns: Columns) -> None:
        closes(columns)
        inverted_gripper(columns)

    for fault, finding in ((closes, "holds"), (opens, "contradicted")):
        store = plant(fault)
        store = replace(store, manifest=replace(store.manifest, gripper="relative"))
        assert "gripper_sign" in findings(audit(store), finding)


def test_saved_beside_the_store_and_forgotten_with_it(plant: Callable[[Change], EpisodeStore]) -> None:
    store = plant(millimetres)
    assert saved(store) is None
    found = audit(store)
    save(store, found)
    assert saved(store) == found
    manifest = Path(store.root, "manifest.json")
    manifest.write_text(manifest.read_text() + "\n")
    assert saved(EpisodeStore.open(store.root)) is None


def test_only_known_verdicts_can_be_accepted(plant: Callable[[Change], EpisodeStore]) -> None:
    found = audit(plant(millimetres))
    with pytest.raises(ValueError, match="no verdict 'gripper' to accept: its verdicts are world_vector_is_a"):
        blocking(found.verdicts, accepted=["gripper"])


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(30, "Read-only file system")])
def test_a_store_that_cannot_be_written_is_measured_and_shown(
    plant: Callable[[Change], EpisodeStore],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: OSError,
) -> None:
    store = plant(inverted_gripper)

    def refused(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("preprocessing.audit.store_audit.atomic_write", refused)
    assert main(["inspect", store.root, "--audit"]) == 0
    said = " ".join(capsys.readouterr().out.split())  # lines are folded
    assert "contradicted gripper_sign: a closing command correlates -0.98" in said
    assert f"remark: the verdicts are not saved in {store.root} ({error.strerror}): rtp train measures them" in said
    assert not Path(store.root, "audit.json").exists()


def test_the_command_audits_and_draws(plant: Callable[[Change], EpisodeStore], tmp_path: Path) -> None:
    store, page = plant(inverted_gripper), tmp_path / "page.html"
    assert "audit" not in inspect(store.root)
    found = inspect(store.root, audit=True, html=str(page))
    assert json.loads(json.dumps(found)) == found and found["audit"]["blocking"][0].startswith("gripper_sign: ")
    assert inspect(store.root)["audit"] == found["audit"]
    assert "contradicted gripper_sign: a closing command correlates -0.98" in summary.text(found)
    assert "measured on 72 episodes" in page.read_text()
    with pytest.raises(ValueError, match="--reference is for the audit's colours"):
        inspect(store.root, reference=store.root)
