"""benchmarks/reproduce.py: what it says of stages that end well, differ, fail or lack something; and, slow, the whole.

The whole runs every stage against stand-ins: an RT-1 release of a few episodes on a server that speaks Google Cloud
Storage's protocol, a small RT-1-X in the official layout, a PaliGemma of a few thousand parameters, two CPU ranks, and
a client that speaks the vla-eval harness's protocol.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import REPOSITORY, environment
from tests.support.html_tags import read_page

SCHEMA = REPOSITORY / "tests/data/openx_metadata/fractal20220817_data/0.1.0/features.json"
RELEASE = "gresearch/robotics/fractal20220817_data/0.1.0"
WEIGHTS = "gdm-robotics-open-x-embodiment/open_x_embodiment_and_rt_x_oss/rt_1_x_jax"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import reproduce

    return reproduce


def run_stages(script: Any, monkeypatch: pytest.MonkeyPatch, root: Path, stages: Sequence[Any], *flags: str) -> int:
    monkeypatch.setattr(script, "STAGES", {stage.name: stage for stage in stages})
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "--root", str(root), *flags])
    return script.main()


def reports(root: Path) -> dict[str, dict[str, Any]]:
    return {stage["stage"]: stage for stage in json.loads((root / "report.json").read_text())["stages"]}


def test_a_stage_that_fails_or_lacks_something_stops_no_other_and_is_tried_again(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reproduction.lab import Need, Stage, expect, noted

    runs: list[str] = []

    def stage(name: str, checks: list[Any] | None, *, there: bool = True) -> Any:
        def run(lab: Any) -> list[Any]:
            runs.append(name)
            if checks is None:
                raise OSError("no <route> to host")
            return checks

        need = Need(what="a thing", is_there=lambda lab: there)
        return Stage(name=name, question=f"{name}?", needs=(need,), run=run)

    good = stage("good", [expect("sum", "2", 2, True), noted("beside", 3, "published 4")])
    wrong = stage("wrong", [expect("sum", "2", 3, False)])
    stages = [stage("broken", None), good, wrong, stage("absent", [], there=False)]
    assert run_stages(script, monkeypatch, tmp_path, stages) == 1
    found = reports(tmp_path)
    outcomes = {name: found[name]["outcome"] for name in found}
    assert outcomes == {"broken": "failed", "good": "as expected", "wrong": "differs", "absent": "needs more"}
    assert found["broken"]["error"] == "OSError: no <route> to host" and found["absent"]["missing"] == ["a thing"]
    page = (tmp_path / "report.html").read_text()
    assert "no &lt;route&gt; to host" in page
    read_page(page)

    runs.clear()
    mended = [stage("broken", [noted("a", 1)]), good, wrong, stage("absent", [])]
    assert run_stages(script, monkeypatch, tmp_path, mended) == 1
    assert runs == ["broken", "absent"]  # the others had ended
    assert run_stages(script, monkeypatch, tmp_path, mended, "--only", "good", "--again", "good") == 0
    assert run_stages(script, monkeypatch, tmp_path, mended, "--only", "good", "--trials", "3") == 0
    assert runs[2:] == ["good", "good"]  # asked for, and under other settings


def test_what_any_stage_lacks_is_looked_for_before_the_first_begins(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also the weights, which the stage itself reads after the data have come."""
    from reproduction.data import FRACTAL, RT1X
    from reproduction.lab import Need, Stage, noted

    order: list[str] = []
    seen = Need(what="a disk", is_there=lambda lab: not order.append("looked"))
    first = Stage(name="first", question="?", needs=(seen,), run=lambda lab: [noted("x", order.append("ran"))])
    second = Stage(name="second", question="?", needs=(seen, FRACTAL, RT1X), run=lambda lab: [])
    (tmp_path / "data").mkdir()
    (tmp_path / "data/dataset_info.json").touch()
    flags = ("--fractal", str(tmp_path / "data"), "--rt1x", str(tmp_path / "nowhere"))
    assert run_stages(script, monkeypatch, tmp_path / "root", [first, second], *flags) == 1
    assert order == ["looked", "looked", "ran"]
    said = capsys.readouterr().out
    assert said.index("second: needs --rt1x with the released weights") < said.index("first: ?")
    assert reports(tmp_path / "root")["second"]["missing"] == ["--rt1x with the released weights, or the internet"]


def test_a_command_that_ended_well_is_kept_and_one_that_failed_is_named(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reproduction import lab as module

    lab = module.Lab(module.Settings(root=str(tmp_path)))
    answers = iter(['a line\n{"store": 1}', '{"store": 2}'])
    monkeypatch.setattr(module.Lab, "run", lambda self, label, command: next(answers))
    assert [lab.rtp("made", "inspect", "a") for _ in range(2)] == [{"store": 1}, {"store": 1}]
    assert lab.rtp("made", "inspect", "b") == {"store": 2}  # other words
    monkeypatch.undo()
    command = [sys.executable, "-c", "import sys; print('rtp: it is full', file=sys.stderr); sys.exit(2)"]
    with pytest.raises(module.CommandFailed, match=r"made ended with exit code 2: rtp: it is full \(log: .*made.log"):
        lab.run("made", command)


@pytest.mark.slow
def test_every_stage_against_stand_ins(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow", reason="needs the extra use")
    pytest.importorskip("gcsfs", reason="needs the extra gcs")
    from tests.support.flax_files import mixed_folder
    from tests.support.gcs_server import gcs_server
    from tests.support.rt2_folders import save_paligemma
    from tests.support.tiny_fractal import save_encoder, write_fractal
    from tests.support.tiny_rt1x import as_flax, tiny_rt1x

    buckets = tmp_path / "buckets"
    vectors = save_encoder(tmp_path / "use")
    write_fractal(buckets / RELEASE, SCHEMA, vectors, episodes=12)
    mixed_folder(buckets / WEIGHTS / "checkpoint_848600", as_flax(tiny_rt1x()))
    client = f"{sys.executable} {REPOSITORY}/tests/support/simpler_client.py {{config}} {{out}}"
    flags = ["--root", tmp_path / "root", "--toy", "--train", "train[:8]", "--held-out", "train[-3:]"]
    flags += ["--texts", "train[:4]", "--use-model", tmp_path / "use", "--vlm", save_paligemma(tmp_path / "paligemma")]
    flags += ["--vlm-steps", 8, "--zero-steps", 3, "--trials", 3, "--client", client]
    command = [sys.executable, str(REPOSITORY / "benchmarks/reproduce.py"), *map(str, flags)]
    with gcs_server(buckets) as address:
        variables = environment() | {"STORAGE_EMULATOR_HOST": address}
        done = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = reports(tmp_path / "root")
    assert {stage["outcome"] for stage in found.values()} == {"as expected"} and len(found) == 5
    cosine = next(check for check in found["fractal"]["checks"] if check["what"].startswith("cosine"))
    assert cosine["holds"] and "3 texts" in cosine["what"]
    assert [check["holds"] for check in found["zero"]["checks"]] == [None, True, True, True]
    assert len([check for check in found["simpler"]["checks"] if "/3 = " in check["found"]]) == 4
    read_page((tmp_path / "root/report.html").read_text())
