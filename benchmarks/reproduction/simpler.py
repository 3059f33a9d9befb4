"""SIMPLER's Google robot by the policy server: RT-1-X acts in simulated scenes, beside SIMPLER's own figures.

The client is the vla-eval harness (its SimplerEnv benchmark, in Docker by default); another may be given that reads the
same configuration and writes the same NAME_aggregate.json files.
"""

from __future__ import annotations

import json
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from reproduction.data import FRACTAL, GCS, RT1X, rt1x
from reproduction.lab import Check, CommandFailed, Lab, Need, Stage, expect

from pipelines.evaluation.success_rates import wilson

PUBLISHED = {
    "google_robot_pick_coke_can": 0.567,
    "google_robot_move_near": 0.317,
    "google_robot_open_drawer": 0.296,
    "google_robot_close_drawer": 0.891,
}
"""Success of RT-1-X, visual matching (SIMPLER, arXiv 2405.05941; SimplerEnv 4ab7178, tools/calc_metrics.py)."""
BENCHMARK = "vla_eval.benchmarks.simpler.benchmark:SimplerEnvBenchmark"
IMAGE = "ghcr.io/allenai/vla-evaluation-harness/simpler:latest"
GRACE_S, START_S = 30, 600


def _simpler(lab: Lab) -> list[Check]:
    folder = lab.root / "simpler"
    folder.mkdir(parents=True, exist_ok=True)
    model, port = str(rt1x(lab)["output"]), _free_port()
    (folder / "google_robot.yaml").write_text("type: GoogleRobot\ngripper: vla_eval\n")
    config, out = folder / "config.yaml", folder / "results"
    config.write_text(yaml.safe_dump(_config(port, lab.settings.trials), sort_keys=False))
    shutil.rmtree(out, ignore_errors=True)
    words = [part.format(config=config.absolute(), out=out.absolute()) for part in shlex.split(lab.settings.client)]
    with _served(lab, model, port, folder / "google_robot.yaml"):
        lab.ran["client"] = shlex.join(words)
        lab.run("simpler-client", words)
    return [_against_published(task, results, lab) for task, results in _results(out).items()]


def _config(port: int, trials: int) -> dict[str, object]:
    """Of the harness. Its sticky gripper holds a command for 15 steps; SIMPLER's own RT-1 wrapper does not."""
    return {
        "server": {"url": f"ws://127.0.0.1:{port}/vla"},
        "docker": {
            "image": IMAGE,
            "env": ["NVIDIA_DRIVER_CAPABILITIES=all"],
            "volumes": ["/usr/share/vulkan/icd.d:/usr/share/vulkan/icd.d:ro"],
        },
        "benchmarks": [
            {
                "benchmark": BENCHMARK,
                "subname": task,
                "mode": "sync",
                "episodes_per_task": trials,
                "params": {"task_name": task, "gripper_mode": "sticky", "success_mode": "truncation", "seed": 0},
            }
            for task in PUBLISHED
        ],
    }


def _results(out: Path) -> dict[str, tuple[int, int]]:
    """(successes, episodes) by task. Raises CommandFailed if the client left none."""
    found: dict[str, tuple[int, int]] = {}
    for path in sorted(out.rglob("*_aggregate.json")):
        for task in json.loads(path.read_text())["tasks"]:
            successes = sum(bool(episode["metrics"].get("success")) for episode in task["episodes"])
            found[task["task"]] = (successes, len(task["episodes"]))
    missing = [task for task in PUBLISHED if task not in found]
    if missing:
        raise CommandFailed(f"the client has written no result of {', '.join(missing)} below {out}")
    return found


def _against_published(task: str, results: tuple[int, int], lab: Lab) -> Check:
    successes, trials = results
    ours, published = wilson(successes, trials), PUBLISHED.get(task)
    found = f"{successes}/{trials} = {ours.mean:.2f} [{ours.low:.2f}, {ours.high:.2f}]"
    if published is None:
        return Check(what=f"success, {task}", expected="nothing published", found=found)
    return expect(
        f"success, {task}",
        f"{published} (RT-1-X, visual matching) within the interval",
        found,
        ours.low <= published <= ours.high,
        applies=lab.settings.is_released_model,
    )


@contextmanager
def _served(lab: Lab, model: str, port: int, adapter: Path) -> Iterator[None]:
    """`rtp serve`, ready, and ended afterwards."""
    words = ["serve", model, "--port", str(port), "--adapter", str(adapter.absolute())]
    lab.ran["server"] = shlex.join(["rtp", *words])
    log = lab.root / "logs" / "simpler-server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as said:
        server = subprocess.Popen(
            [sys.executable, "-m", "pipelines", *words],
            stdout=said,
            stderr=subprocess.STDOUT,
            env=lab.environment(),
            cwd=lab.root,
        )
        try:
            _wait_until_ready(server, port, log)
            yield
        finally:
            server.terminate()
            try:
                server.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _wait_until_ready(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    ends = time.monotonic() + START_S
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            if server.poll() is not None or time.monotonic() > ends:
                said = log.read_text().strip().splitlines() or ["it said nothing"]
                raise CommandFailed(f"the server did not start: {said[-1]} (log: {log})") from None
            time.sleep(0.5)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def _has_client(lab: Lab) -> bool:
    return shutil.which(shlex.split(lab.settings.client)[0]) is not None


STAGES = (
    Stage(
        name="simpler",
        question="RT-1-X in SIMPLER through `rtp serve`: does it succeed as often as SIMPLER's authors found?",
        needs=(
            FRACTAL,
            RT1X,
            GCS,
            Need(what="vla-eval (pip install vla-eval==0.8.0) and Docker, or another --client", is_there=_has_client),
            Need(
                what="an NVIDIA GPU with Vulkan: SAPIEN does not draw without one",
                is_there=lambda lab: lab.settings.toy or lab.gpus >= 1,
            ),
            Need(
                what="for instructions that the slice does not hold: the extra use, and the Universal Sentence Encoder "
                "from tfhub.dev (TFHUB_CACHE_DIR keeps it)",
                is_there=lambda lab: True,
            ),
        ),
        run=_simpler,
    ),
)
