from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cluster.context import LocalContext
from pipelines.training.run_files import METRICS, MetricsLog, SampleLog, final_samples, read_metrics, read_samples
from pipelines.training.run_logger import known_run


def losses(output: str) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_metrics(f"{output}/{METRICS}")]


def test_a_resumed_log_drops_what_is_trained_again(tmp_path: Path) -> None:
    first = MetricsLog(str(tmp_path), 0)
    for step in (1, 2, 3):
        first.append(step, {"loss": float(step)})
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    MetricsLog(str(tmp_path), 2).append(3, {"loss": 30.0})
    assert losses(str(tmp_path)) == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_a_kill_while_a_log_is_rewritten_loses_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MetricsLog(str(tmp_path), 0)
    log.append(1, {"loss": 1.0})

    def killed(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        MetricsLog(str(tmp_path), 1)
    assert [line["step"] for line in read_metrics(tmp_path / METRICS)] == [1]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null"])
def test_a_record_that_names_no_run_is_one_sentence(text: str, tmp_path: Path) -> None:
    assert known_run(str(tmp_path)) is None
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json names no MLflow run: remove it"):
        known_run(str(tmp_path))


def test_a_remote_log_appears_at_checkpoints() -> None:
    output = "memory://run-of-metrics"
    log = MetricsLog(output, 0)
    log.append(1, {"loss": 1.0})
    assert losses(output) == []
    log.publish()
    log.append(2, {"loss": 2.0})
    assert losses(output) == [(1, 1.0)]
    again = MetricsLog(output, 1)
    again.append(2, {"loss": 20.0})
    again.publish()
    assert losses(output) == [(1, 1.0), (2, 20.0)]
    fsspec.filesystem("memory").rm("/run-of-metrics", recursive=True)


def batch_of(ids: list[int]) -> dict[str, torch.Tensor]:
    column = torch.tensor(ids)
    return {"sample_id": column, "store": column * 0, "episode": column + 7, "step": column % 3}


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 3), st.booleans()), max_size=5))
def test_the_attempt_that_counts_has_every_sample_once(tmp_path_factory, crashes: list[tuple[int, int, bool]]) -> None:
    """Whenever a run is killed and from whatever earlier checkpoint it goes on, its final samples are 0, 1, 2, ..."""
    output, batch, total, done = tmp_path_factory.mktemp("run"), 4, 10, 0

    def train(first: int, steps: int) -> None:
        log = SampleLog(str(output), LocalContext("cpu"))
        for step in range(first + 1, first + steps + 1):
            log.add(batch_of(list(range((step - 1) * batch, step * batch - 2))))
            log.add(batch_of(list(range(step * batch - 2, step * batch))))
            log.end_step(step)

    for steps, lost, mid_line in crashes:
        steps = min(steps, total - done)
        train(done, steps)
        done = max(0, done + steps - lost)
        if mid_line:
            with (output / "samples/rank-00000.jsonl").open("a") as file:
                file.write('{"attempt": 9, "step')
    train(done, total - done)
    counted = final_samples(output)
    assert list(counted) == list(range(1, total + 1))
    assert [sample[0] for samples in counted.values() for sample in samples] == list(range(total * batch))
    assert counted[1][0] == [0, 0, 7, 0] and all(line["world"] == 1 for line in read_samples(output))


def test_on_an_object_store_the_samples_are_those_up_to_the_checkpoint_and_of_every_attempt() -> None:
    output = "memory://run-of-samples"
    for first, published, last in ((1, 3, 5), (4, 6, 6)):  # killed after step 5, with a checkpoint of step 3
        log = SampleLog(output, LocalContext("cpu"))
        for step in range(first, last + 1):
            log.add(batch_of([step]))
            log.end_step(step)
            if step == published:
                log.publish()
    files = fsspec.filesystem("memory")
    lines = [json.loads(line) for line in files.cat_file("/run-of-samples/samples/rank-00000.jsonl").splitlines()]
    assert [(line["attempt"], line["step"]) for line in lines] == [(1, 1), (1, 2), (1, 3), (2, 4), (2, 5), (2, 6)]
    files.rm("/run-of-samples", recursive=True)
