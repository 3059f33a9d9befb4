"""`rtp cluster render`: every kind takes the same numbers; bad input is one sentence, and nothing is overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.cluster_files import KINDS

NUMBERS = ("--gpu-nodes", "2", "--gpus", "8", "--cpu-nodes", "4", "--image", "registry/rt-pipelines:0.1.0")
COMMAND = ("--", "train", "rt1_fractal", "--resume")


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_written_into_a_folder(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = COMMAND if kind == "kuberay-job" else ()
    assert main(["cluster", "render", kind, *NUMBERS, "--json", "--output", str(tmp_path), *command]) == 0
    (file,) = tmp_path.iterdir()
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"kind": kind, "file": str(file)}
    assert main(["cluster", "render", kind, *NUMBERS, *command]) == 0
    assert capsys.readouterr().out == file.read_text()


def test_a_file_that_says_something_else_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("mine\n")
    assert main(["cluster", "render", "kuberay", "--output", str(file)]) == 2
    assert file.read_text() == "mine\n" and "says something else" in capsys.readouterr().err
    file.unlink()
    assert main(["cluster", "render", "kuberay", "--output", str(file)]) == 0
    assert main(["cluster", "render", "kuberay", "--output", str(file)]) == 0  # the same text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "the one thing it does is render KIND"),
        (["rendr"], "the one thing it does is render KIND"),
        (["render"], "name a kind first, one of kuberay"),
        (["render", "kubray"], "there is no kind 'kubray': did you mean 'kuberay'?"),
        (["render", "kuberay", "--gpu-node", "2"], "no option --gpu-node"),
        (["render", "kuberay", "--gpus", "many"], "--gpus"),
        (["render", "kuberay", "--gpus", "0"], "--gpus must be at least 1"),
        (["render", "slurm", "--output", "s3://bucket/x"], "no local file or folder"),
        (["render", "slurm", "--", "train"], "takes no command after --"),
        (["render", "kuberay-job", *NUMBERS], "give it after --"),
        (["render", "kuberay-job", *NUMBERS, "--", "trian", "rt1_tiny"], "no command 'trian': did you mean 'train'?"),
        (["render", "kuberay-job", *NUMBERS, "--", "rtp"], "rtp has no command ''"),
        (["render", "kuberay-job", *NUMBERS, "--", "train", '{"secret": "hunter2"}'], "use --secret"),
        (["render", "kuberay-job", *NUMBERS, "--", "train", "--data=https://host/x?sig=abc"], "use --secret"),
        (["render", "kuberay-job", *NUMBERS, "--", "train", "--data", "https://TOKEN@host"], "use --secret"),
    ],
)
def test_bad_input_is_one_sentence(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", *words]) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err and captured.err.count("\n") == 1 and captured.out == ""


@pytest.mark.parametrize("words", [[], ["render"], ["render", "slurm"]])
def test_help_is_shown(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["cluster", *words, "--help"])
    assert stop.value.code == 0 and "rtp cluster render" in capsys.readouterr().out
