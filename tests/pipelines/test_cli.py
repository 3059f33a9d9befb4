"""Bad input on the real command line: exit code 2, one sentence with the remedy, no traceback, nothing half-written."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from pipelines.catalogue import load_recipe, recipe_names
from pipelines.cli import COMMANDS, Once, main
from pipelines.config.serialization import from_plain, to_plain
from pipelines.terminal.full_disk import full_disk
from pipelines.train import parse_arguments

SAMPLE = Path(__file__).resolve().parents[2] / "examples/metaworld_sample/1.0.0"


def sentence(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a failing command prints: exactly one line on stderr."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and "Traceback" not in captured.err, captured.err
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ["no command 'trian'", "did you mean 'train'?"]),
        (["train"], ["name a recipe first", "rt1_metaworld"]),
        (["train", "rt1_metawrld", "--data", "x", "--output", "y"], ["did you mean 'rt1_metaworld'?"]),
        (["train", "rt1_metaworld", "--output", "y"], ["--data"]),
        (["train", "rt1_metaworld", "--data", "x", "--output", ""], ["--output is empty: give a value"]),
        (["train", "rt1_tiny", "--data", "x", "--output", "y", "--name="], ["name is empty"]),
        (["register", "x", "--name", ""], ["rtp register: --name is empty: give a value, or leave it out"]),
        (["registry", "show", " "], ["an argument is empty"]),
        (["submit", "--status", ""], ["--status is empty"]),
        (
            ["train", "rt1_metaworld", "--data", "x", "--output", "y", "--optimizer.lrr", "1"],
            ["no option --optimizer.lrr", "did you mean '--optimizer.lr'?"],
        ),
        (["train", "rt1_metaworld", "--data", "x", "--output", "y", "--loop.steps", "many"], ["--loop.steps", "many"]),
        (["train", "rt1_metaworld", "--data", "x", "--output", "y", "--engine", "Torch"], ["no config class 'Torch'"]),
        (
            ["train", "rt1_metaworld", "--data", "x", "--output", "y", "--engine.precision", "fp16"],
            ["--engine.precision", "fp16", "fp32", "bf16"],
        ),
        (["train", "rt1_metaworld", "--data", "x", "--output", "y", "--config", "no.yaml"], ["no.yaml"]),
        (["evaluate", "nowhere", "--data", "x"], ["x does not exist: give a folder that rtp preprocess wrote"]),
        (["export", "nowhere", "y"], ["nowhere is not there: give a run's output folder"]),
        (["list", "extra"], ["takes no arguments"]),
        (["export"], ["rtp export: MODEL and OUT are missing; --help"]),
        (["register", "x"], ["rtp register: --name is missing; --help"]),
        (["export", "--wieghts", "last"], ["no option --wieghts: did you mean '--weights'?"]),
        (["evaluate", "x", "--foo"], ["no option --foo; --help lists them"]),
        (["preprocess", "a", "b", "c"], ["'c' is one word too many"]),
        (["train", "rt1_tiny", "--output"], ["--output needs a value"]),
        (["registry", "sho", "x"], ["action cannot be 'sho': give one of show, rollback"]),
    ],
)
def test_one_sentence_for_a_mistake(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = sentence(capsys, *arguments)
    assert all(word in printed for word in words), printed
    assert list(tmp_path.iterdir()) == []


def test_a_missing_store_is_named_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = sentence(capsys, "train", "rt1_metaworld", "--data", "stores/none", "--output", "run")
    assert "stores/none" in printed and "rtp preprocess" in printed
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_does_not_divide_prints_the_whole_equation(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--data", "x", "--output", "y", "--loop.global_batch", "30"]
    printed = sentence(capsys, "train", "rt1_metaworld", *flags)
    assert "loop.global_batch 30 = loop.micro_batch 16 x accumulation x 2 workers" in printed


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code in (0, None)
        assert "usage: rtp" in capsys.readouterr().out


def test_json_is_the_last_line() -> None:
    command = [sys.executable, "-m", "pipelines", "list", "--json"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert json.loads(printed.splitlines()[-1])["recipes"] == recipe_names()


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_survive_the_way_into_a_checkpoint_and_back(name: str) -> None:
    experiment = load_recipe(name)
    assert experiment.name == name
    assert from_plain(type(experiment), json.loads(json.dumps(to_plain(experiment)))) == experiment
    experiment.accumulation(experiment.launch.most)


def test_flags_lie_over_the_overlay_which_lies_over_the_recipe(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("optimizer: {lr: 0.5, weight_decay: 0.25}\nengine: {type: TorchEngineConfig}\n")
    flags = ["--config", str(overlay), "--optimizer.lr", "0.125", "--engine.precision", "bf16"]
    given = parse_arguments(["rt1_metaworld", "--data", "a", "b", "--output", "c", *flags]).experiment
    assert (given.optimizer.lr, given.optimizer.weight_decay) == (0.125, 0.25)  # type: ignore[union-attr]
    assert type(given.engine).__name__ == "TorchEngineConfig" and given.engine.precision == "bf16"


def test_an_overlay_with_an_unknown_setting_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("loop: {step: 3}\n")
    flags = ["--data", "x", "--output", str(tmp_path / "y"), "--config", str(overlay)]
    printed = sentence(capsys, "train", "rt1_metaworld", *flags)
    assert "loop.step is not a setting of LoopConfig: did you mean 'steps'?" in printed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[1, 2]", "expected a mapping of fields, got [1, 2]"),
        (b"false", "expected a mapping of fields, got False"),
        (b"loop: !!python/object/apply:os.getcwd []", "is not YAML of plain data"),
        (b"loop: {steps: 3}\nloop: {steps: 4}", "loop is given twice"),
        (b"loop: {steps: 3, steps: 4}", "steps is given twice"),
        (b"loop: {steps: 3}\n---\nloop: {steps: 4}", "is not YAML of plain data"),
        (b"{1: 2}", "1 is not a setting of Experiment"),
        (b"? [1]\n: 2", "is not YAML of plain data"),
        (b"[" * 5000, "is not YAML of plain data"),
        (b"\xff\xfe\x00", "is not YAML of plain data"),
        (b"loop:\n\tsteps: 1", "is not YAML of plain data"),
        (b"name: ' '", "name is empty: leave it out"),
        (b"freeze: tokenizer", "freeze: expected a list, got 'tokenizer'"),
        (b"\xff\xfe", "is not YAML of plain data: it is no text in UTF-8"),
        (b"loop: null", "loop: expected LoopConfig, got None"),
        (b"loop: {steps: 1e3}", "loop.steps: expected a whole number, got 1000.0"),
        (b"engine: {type: [1]}", "engine: no config class [1]"),
        (b"optimizer: {lr: .nan}", "optimizer.lr must be finite and at least 0, got nan"),
        (b"optimizer: {betas: [1.5, 0.9]}", "optimizer.betas must be at least 0 and below 1"),
        (b"schedule: {warmup_steps: -1}", "schedule.warmup_steps must be at least 0, got -1"),
        (b"loop: {evaluate_windows: 0}", "loop.evaluate_windows must be at least 1, got 0"),
        (b"loop: {seed: -1}", "loop.seed must be at least 0, got -1"),
        (b"launch: {type: RayLaunch, hang_timeout_s: 0}", "hang_timeout_s = 0.0: must be finite and at least 1 second"),
        (b"launch: {type: RayLaunch, max_failures: -2}", "max_failures = -2: must be at least 0, or -1"),
    ],
)
def test_a_config_that_cannot_be_meant_is_one_sentence_that_names_the_file(
    text: bytes, words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    overlay = tmp_path / "mine.yaml"
    overlay.write_bytes(text)
    flags = ["--data", "x", "--output", str(tmp_path / "y"), "--config", str(overlay)]
    printed = sentence(capsys, "train", "rt1_metaworld", *flags)
    assert words in printed and "mine.yaml" in printed, printed
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_a_config_may_write_numbers_as_yaml_1_2_has_them_and_flags_may_be_written_with_an_equals_sign(
    tmp_path: Path,
) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("optimizer: {lr: 1e-3}\nname: 2e\nloop: {<<: {seed: 5}, steps: 7}\n")
    flags = ["--data=a", "--output=c", f"--config={overlay}", "--engine=TorchEngineConfig"]
    given = parse_arguments(["rt1_metaworld", *flags]).experiment
    assert (given.optimizer.lr, given.name, given.loop.seed, given.loop.steps) == (1e-3, "2e", 5, 7)
    assert type(given.engine).__name__ == "TorchEngineConfig"


@pytest.mark.parametrize(
    "flags", [["--config"], ["--config", "a", "--config=b"], ["--engine", "--resume"], ["--engine="]]
)
def test_a_flag_without_its_one_value_is_named(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    printed = sentence(capsys, "train", "rt1_metaworld", "--data", "x", "--output", "y", *flags)
    assert f"{flags[0].rstrip('=')} needs one value" in printed


def test_a_model_that_the_registry_does_not_know_is_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    printed = sentence(capsys, "serve", "models:/nobody@champion")
    assert "nobody" in printed and "runs/mlflow.db" in printed
    assert "nobody" in sentence(capsys, "registry", "show", "nobody")
    assert not any(tmp_path.iterdir())  # what is only read makes no database


def test_an_object_store_without_credentials_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    said = sentence(capsys, "import-weights", "s3://no-such-bucket/x", str(tmp_path / "out"))
    assert "cannot be reached" in said and "check the address and the credentials" in said


# --- Help, and what is shown at once ---

HEAVY = ("torch", "ray", "mlflow", "deepspeed", "pandas", "transformers", "tensorflow")


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["list"], ["list", "--help"], ["train", "--help"], ["tune", "--help"], ["train"]],
    ids=" ".join,
)
def test_what_is_only_looked_up_imports_no_framework(arguments: list[str]) -> None:
    """torch alone takes two seconds; a list or a page of help is read before it would have been imported."""
    code = (
        "import sys; from pipelines.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit: pass\n"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules], sep=',')"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[-1] == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_a_page_of_help_names_its_positionals_has_an_example_and_fits_80_columns(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    first = {"train": ["rt1_tiny"], "tune": ["rt1_lr_wd"]}.get(command, [])
    with pytest.raises(SystemExit):
        main([command, *first, "--help"])
    page = capsys.readouterr().out
    assert max(map(len, page.splitlines())) <= 80
    assert "Example:\n  rtp " + command in page and " STR" not in page.partition("\n\n")[0]


def test_the_example_can_be_copied_and_its_flags_exist() -> None:
    for command in COMMANDS.values():
        assert max(map(len, command.summary.splitlines())) <= 80 - 18
        assert shlex.split(command.example)[0] == "rtp"


def test_the_flags_of_train_that_matter_come_first(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "rt1_metaworld", "--help"])
    page = capsys.readouterr().out
    first, rest = page.split("kinds of component")
    assert first.count("\n  --") == 10 and all(flag in first for flag in ("--data", "--resume", "--optimizer.lr"))
    assert "--engine CLASS" in rest and "TorchEngineConfig or DeepSpeedEngineConfig" in " ".join(rest.split())


def test_the_help_of_a_sweep_says_what_is_swept(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["tune", "rt1_lr_wd", "--help"])
    page = " ".join(capsys.readouterr().out.split())
    assert "optimizer.lr between 0.0001 and 0.02, on a log scale" in page and "validation_loss (min)" in page


@pytest.mark.parametrize("arguments", [["help"], ["help", "export"], ["help", "list"], ["--version"]])
def test_help_and_version_are_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        assert main(arguments) == 0
    assert re.match(r"usage: rtp|rtp \d", capsys.readouterr().out)


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    shell = f"{shlex.quote(sys.executable)} -m pipelines list | true"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    code = "import os, sys; from pipelines.cli import main; read, write = os.pipe(); os.close(read)\n"
    code += "os.dup2(write, 1); sys.exit(main(['list']))"
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_warning_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    log, handler = logging.Logger("told"), logging.StreamHandler(sys.stderr)
    handler.addFilter(Once())
    log.addHandler(handler)
    for store in ("a", "a", "b", "a"):
        log.warning("%s is old", store)
    assert capsys.readouterr().err == "a is old\nb is old\n"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: No space left on device"),
        ChildProcessError("(sqlite3.OperationalError) database or disk is full"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_full_disk_names_the_path(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def usage(path: Any) -> Any:
        return types.SimpleNamespace(free=10**6 if str(path).startswith(str(tmp_path)) else 10**12)

    monkeypatch.setattr("shutil.disk_usage", usage)
    said = full_disk(error, ["runs/first", f"--output={tmp_path}/new/run", "s3://bucket/x"])
    assert said is not None and f"{tmp_path}/new/run (1 MB are free)" in said
    assert full_disk(ValueError("loop.steps must be at least 1"), [str(tmp_path)]) is None


def test_a_name_that_is_taken_for_two_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """fsspec opens /a where one says /a::b."""
    assert main(["inspect", str(tmp_path / "a::b")]) == 2
    assert "a::b has '::' in it" in capsys.readouterr().err
    assert main(["inspect", "shard", f"--split={tmp_path / 'a::b'}"]) == 2
    assert "a::b has '::' in it" in capsys.readouterr().err
    (tmp_path / "c::d").mkdir()
    monkeypatch.chdir(tmp_path / "c::d")
    assert main(["inspect", "store"]) == 2
    assert "c::d has '::' in it" in capsys.readouterr().err


def test_a_name_in_aws_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flag, profile = "--instance-profile", "arn:aws:iam::123456789012:instance-profile/robots"
    for words in ([flag, profile], [f"{flag}={profile}"]):
        render = ["cluster", "render", "aws", "--gpu-nodes", "1", "--image", "a/b:1", *words, "--output", "ray.yaml"]
        assert main(render) == 0
        assert profile in Path("ray.yaml").read_text()
        Path("ray.yaml").unlink()
