"""The scripts that measure a GPU run at toy size on a CPU, so that they work on the day when a GPU is at hand."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import REPOSITORY, environment

Line = dict[str, Any]
NOT_EVERYWHERE = (
    *("ray", "deepspeed", "pyarrow", "transformers", "mlflow", "simplejpeg", "torchvision"),
    *("tyro", "rich", "psutil", "fsspec", "cachetools", "PIL", "tensorflow_datasets"),
)
NEEDS = {"loop": "fsspec", "zero": "deepspeed", "vlm": "transformers", "loader": "fsspec", "ray": "ray"}


def run(words: list[str]) -> str:
    command = [sys.executable, *words]
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=580)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def lines_of(text: str) -> list[Line]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import gpu

    return gpu


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file with the results of all stages, run in one process."""
    file = tmp_path_factory.mktemp("gpu") / "results.jsonl"
    run(["benchmarks/gpu.py", "--toy", "--only", "all", "--out", str(file)])
    return file


def test_every_stage_runs_to_its_end(gpu: Any, out: Path) -> None:
    lines = lines_of(out.read_text())
    assert {line["stage"] for line in lines if line.get("ended") == 0} == set(gpu.STAGES) - {"port"}
    assert [line["skipped"] for line in lines if line["stage"] == "port" and "skipped" in line] == [
        "needs --rt1-pytorch CHECKOUT (and --packages FOLDER of what it imports): see benchmarks/README.md"
    ]


def test_all_sides_are_measured(out: Path) -> None:
    lines = lines_of(out.read_text())

    def said(stage: str, key: str, *names: str) -> set[tuple[object, ...]]:
        return {tuple(line[name] for name in names) for line in lines if line["stage"] == stage and key in line}

    cases = {(case, side) for case in ("segments", "plain") for side in ("ours", "graph")}
    assert said("train", "windows_per_s", "case", "side") == cases
    cudnn = "ours, depthwise by cuDNN"
    assert said("sides", "windows_per_s", "side") == {(cudnn,), (f"{cudnn}, graph",), ("torch",), ("compiled",)}
    assert said("control", "median_ms", "robots", "side") == {(1, "eager"), (2, "eager")}
    assert said("loop", "samples_per_s", "side") == {("rtp train",), ("bare",)}
    assert said("zero", "step_s", "side", "waits_per_step") == {
        (side, None) for side in ("plain", "plain, graphs", "zero-1", "zero-3")
    }
    assert said("vlm", "step_s", "case", "utilisation") == {("full", None), ("lora", None)}


def test_sides_of_zero_train_alike(out: Path) -> None:
    measured = [line for line in lines_of(out.read_text()) if line["stage"] == "zero" and "step_s" in line]
    for key in ("first_loss", "last_loss"):
        assert [line[key] for line in measured] == pytest.approx([measured[0][key]] * 6, rel=1e-4)
    assert measured[0]["last_loss"] < measured[0]["first_loss"]


def test_what_has_ended_is_not_measured_again(out: Path, tmp_path: Path) -> None:
    copy = tmp_path / "results.jsonl"
    copy.write_text(out.read_text())
    said = run(["benchmarks/gpu.py", "--toy", "--only", "train", "zero", "--out", str(copy)])
    assert lines_of(said) == [] and said.startswith(f"train: its results are in {copy}")
    assert copy.read_text() == out.read_text()


def test_stages_need_torch_alone_or_say_what_else() -> None:
    """As on a machine where nothing can be installed."""
    words = ["gpu.py", "--inside", "--toy", "--only", "train", "control", "parity", *NEEDS]
    program = f"""
import runpy, sys  # a module that is None cannot be imported
sys.modules |= dict.fromkeys({NOT_EVERYWHERE})
sys.argv = {words}
sys.path.insert(0, "benchmarks")
runpy.run_path("benchmarks/gpu.py", run_name="__main__")
"""
    lines = lines_of(run(["-c", program]))
    assert [line["stage"] for line in lines if line.get("ended") == 0] == ["train", "control", "parity"]
    skipped = {line["stage"]: line["skipped"] for line in lines if "skipped" in line and line["stage"] in NEEDS}
    assert skipped == {stage: f"needs {name}" for stage, name in NEEDS.items()}


def test_a_stage_is_cut_off_at_its_limit(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "STAGES", {"train": gpu.Stage(module="training", limit_s=1)})
    out = tmp_path / "results.jsonl"
    out.write_text('{"stage": "loop", "toy": true, "ended": 0}\n{"stage": "loop", "to')  # killed while it wrote
    arguments = argparse.Namespace(toy=True, out=out, rt1_pytorch=None, packages=None)
    gpu._run_apart(arguments, ["train"])
    assert [line["ended"] for line in gpu._lines(arguments) if "ended" in line] == [0, "cut off after 1 s"]


def test_real_sizes_need_a_gpu(gpu: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu._machine(argparse.Namespace(toy=False, out=None))
    assert capsys.readouterr().out == "torch sees no GPU here: --toy runs the stages at small sizes on the CPU\n"


def test_results_of_two_cards_are_kept_apart(gpu: Any, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    out.write_text('{"stage": "train", "device": "another card", "toy": true}\n')
    with pytest.raises(SystemExit):
        gpu._machine(argparse.Namespace(toy=True, out=out))


def test_kernels_that_fail_leave_the_other_sides_to_be_measured(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpu_stages import training
    from gpu_stages.settings import Settings

    def trained(settings: Any, shape: Any, *, kernels: str, graph: bool) -> Any:
        if kernels == "ours":
            raise ZeroDivisionError("no such\ncard")
        yield {"side": kernels}

    monkeypatch.setattr(training, "trained", trained)
    lines = [line for line in training.train(Settings(toy=True)) if line["case"] != "backbone"]
    assert [line.get("failed", line["side"]) for line in lines] == ["no such card", training.CUDNN] * 2


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        ("silu_reduce", "our kernels"),
        ("frames_to_images", "our kernels"),
        ("depthwise_backward_weight", "depthwise"),
        ("void cudnn::ops::nchwToNhwcKernel<__nv_bfloat16, float>", "copy, cast, layout"),
        (
            "sm90_xmma_fprop_implicit_gemm_bf16bf16_f32_nhwckrsc_nhwc_tilesize128x64",
            "matrix product, convolution",
        ),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::silu_kernel>", "pointwise"),
        ("void at::native::reduce_kernel<512, 1>", "reduction"),
    ],
)
def test_kernels_are_told_apart_by_their_names(gpu: Any, kernel: str, expected: str) -> None:
    from gpu_stages.kernels import kernel_class

    assert kernel_class(kernel) == expected


def test_aims_are_ratios_of_the_newest_results(gpu: Any) -> None:
    from gpu_stages.aims import aims, table

    lines: list[Line] = [
        {"stage": "train", "case": "segments", "side": "graph", "windows_per_s": 300.0},
        {"stage": "train", "case": "segments", "side": "graph", "windows_per_s": 1200.0},
        {"stage": "train", "case": "segments", "side": "ours", "windows_per_s": 600.0},
        {"stage": "train", "case": "plain", "side": "graph", "windows_per_s": 250.0, "step_s": 0.125},
        {"stage": "train", "case": "backbone", "side": "torchvision", "step_s": 0.1},
        {"stage": "port", "case": "as published", "windows_per_s": 100.0},
        {"stage": "loop", "case": "segments", "side": "rtp train", "samples_per_s": 960.0, "waiting_share": 0.01},
        {"stage": "loop", "case": "segments", "side": "bare", "samples_per_s": 500.0},
        {"stage": "loop", "case": "segments", "side": "bare, graph", "samples_per_s": 1000.0},
        {"stage": "control", "robots": 1, "side": "graph", "median_ms": 6.0},
        {"stage": "zero", "side": "zero-3", "of_plain": 0.8, "of_plain_with_graphs": 0.5},
    ]
    found = {aim.what: (aim.found, aim.is_met) for aim in aims(lines) if aim.found is not None}
    assert found == {
        "segments of 12, windows/s over rt1-pytorch's": (12, True),
        "plain windows, windows/s over rt1-pytorch's": (2.5, True),
        "32 plain windows, time over the bare backbone's": (1.25, False),
        "rtp train over the bare loop": (0.96, True),
        "rtp train, share of time waiting for data": (0.01, True),
        "control step of one robot, ms": (6, False),
        "ZeRO-3 over plain": (0.8, False),
        "ZeRO-3 over plain with CUDA graphs": (0.5, False),
    }
    page = table(aims(lines), judged=True)
    assert "at least 0.85  0.8   NOT met (zero)" in page and "not measured (vlm)" in page
    assert "met" not in table(aims(lines[:6]), judged=False).replace("not measured", "")


def test_a_step_is_counted() -> None:
    lines = lines_of(run(["benchmarks/step_counts.py", "--toy"]))
    sides = {side: [line for line in lines if line["side"] == side] for side in ("torch", "ours")}
    assert [line["tflop"] for line in sides["torch"]] == [line["tflop"] for line in sides["ours"]]
    for before, after in zip(sides["torch"], sides["ours"], strict=True):
        assert 0 < after["launches"] < 0.6 * before["launches"] and 0 < after["gigabytes"] < before["gigabytes"]
