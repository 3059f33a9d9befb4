"""Whether a dataset has what a spec reads, before anything is written."""

from __future__ import annotations

from preprocessing import dataset_spec
from preprocessing.dataset_spec import DatasetSpec
from preprocessing.episode_source import EpisodeSource


def require_fit(dataset: EpisodeSource, spec: DatasetSpec, cameras: tuple[str, ...]) -> None:
    """Raise ValueError unless the dataset has what the spec reads, and has it in a form that fits."""
    unrecorded = [role for role in cameras if spec.all_cameras[role] not in dataset.step_paths]
    if unrecorded and unrecorded[0] in spec.optional_cameras:
        raise ValueError(
            f"{dataset.folder} was recorded without the camera {unrecorded[0]}: leave it out of --cameras, or record it"
        )
    wrong = f"spec {spec.name} does not fit {dataset.folder}"
    absent = [path for path in spec.paths(cameras) if path not in {*dataset.step_paths, *dataset.episode_paths}]
    if absent:
        raise ValueError(f"{wrong}, which has no field {absent[0]!r}: give another --dataset")
    once = [path for path in spec.step_paths(cameras) if path not in dataset.step_paths]
    if once:
        raise ValueError(f"{wrong}, which has {once[0]!r} once per episode: name a field of the steps")
    if isinstance(spec.control_hz, str) and spec.control_hz in dataset.step_paths:
        raise ValueError(f"{wrong}, which has {spec.control_hz!r} at every step: name a field of the episode")
    recorded_hz = dataset.control_hz
    if recorded_hz is not None and not isinstance(spec.control_hz, str) and spec.control_hz != recorded_hz:
        raise ValueError(
            f"{wrong}: control_hz is {spec.control_hz:g}, and the dataset records {recorded_hz:g} frames a second"
        )
    for path in (spec.all_cameras[role] for role in cameras):
        if not dataset.feature(path).is_picture:
            raise ValueError(f"{wrong}: {path!r} holds no colour pictures of 8 bits: name another camera")
    refused = [refusal for path in spec.paths(cameras) if (refusal := dataset.feature(path).refusal)]
    if refused:
        raise ValueError(f"{wrong}: {refused[0]}: name another field")
    texts = [path for path in spec.number_paths() if dataset.feature(path).is_bytes]
    if texts:
        raise ValueError(f"{wrong}: {texts[0]!r} holds no numbers: name another field")
    text = spec.instruction
    if isinstance(text, dataset_spec.Text) and not dataset.feature(text.path).is_text:
        raise ValueError(f"{wrong}: {text.path!r} holds no text: name another field for the instruction")
