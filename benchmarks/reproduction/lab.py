"""What the stages of `reproduce.py` share: their settings, the commands they run, and what they say of the answers."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from preprocessing.rlds import open_folder

REPOSITORY = Path(__file__).resolve().parents[2]
RELEASED_FRACTAL = "gs://gresearch/robotics/fractal20220817_data/0.1.0"
RELEASED_RT1X = "gs://gdm-robotics-open-x-embodiment/open_x_embodiment_and_rt_x_oss/rt_1_x_jax"
RELEASED_VLM = "hub:google/paligemma-3b-pt-224"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is reproduced, from where, and how much of it."""

    root: str
    fractal: str = RELEASED_FRACTAL
    train: str = "train[:400]"
    held_out: str = "train[-40:]"
    texts: str = "train[:20]"
    encoder: str = "use"
    use_model: str | None = None
    rt1x: str = RELEASED_RT1X
    vlm: str = RELEASED_VLM
    vlm_steps: int = 400
    zero_steps: int = 20
    client: str = "vla-eval run --config {config} --output-dir {out} --yes"
    trials: int = 100
    toy: bool = False

    @property
    def is_released_data(self) -> bool:
        """Whether the published figures are those of the data asked for."""
        return self.fractal.rstrip("/") == RELEASED_FRACTAL and not self.toy

    @property
    def is_released_model(self) -> bool:
        return self.rt1x.rstrip("/") == RELEASED_RT1X and not self.toy


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was found. `holds` None: nothing was expected of it."""

    what: str
    expected: str
    found: str
    holds: bool | None = None


def noted(what: str, found: object, beside: str = "") -> Check:
    """A figure that nothing decides about; `beside` is what others have published."""
    return Check(what=what, expected=beside, found=str(found))


def expect(what: str, expected: str, found: object, holds: bool, *, applies: bool = True) -> Check:
    """A figure with an expectation, which on a stand-in (`applies` False) is no more than a note."""
    return Check(what=what, expected=expected, found=str(found), holds=bool(holds) if applies else None)


class CommandFailed(RuntimeError):
    """A command ended with an error; the text names it, its exit code and its last words."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """Something that a stage cannot do without; `is_there` looks for it without using it."""

    what: str
    is_there: Callable[[Lab], bool]


def is_there(url: str) -> bool:
    """Whether something lies at a path or URL; one that does not answer, or whose package is missing, has nothing."""
    try:
        files, root = open_folder(url.rstrip("/"))
        return files.exists(root)
    except Exception:  # object stores fail in the types of their own libraries
        return False


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One part of the reproduction. `run` says what it found; `question` and `needs` are for the report."""

    name: str
    question: str
    needs: tuple[Need, ...]
    run: Callable[[Lab], Sequence[Check]]

    def missing(self, lab: Lab) -> tuple[str, ...]:
        """What it needs and is not there."""
        return tuple(need.what for need in self.needs if not need.is_there(lab))


@dataclass(frozen=True)
class Lab:
    """Runs commands of rtp for the stages. A command that has ended well is not run again with the same words."""

    settings: Settings
    ran: dict[str, str] = field(default_factory=dict)
    """The commands of the present stage, by label."""

    @property
    def root(self) -> Path:
        return Path(self.settings.root)

    def path(self, name: str) -> str:
        return str(self.root / name)

    @cached_property
    def gpus(self) -> int:
        """GPUs that torch can use, asked in a process that ends, so that none is held."""
        asked = subprocess.run(
            [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"], capture_output=True, text=True
        )
        return int(asked.stdout.strip() or 0) if asked.returncode == 0 else 0

    def environment(self) -> dict[str, str]:
        known = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
        return {"MLFLOW_TRACKING_URI": f"sqlite:///{self.root.absolute()}/mlflow.db"} | known

    def rtp(self, label: str, *words: object) -> Mapping[str, Any]:
        """What `rtp WORDS --json` reports. Raises CommandFailed."""
        command = [str(word) for word in words]
        self.ran[label] = shlex.join(["rtp", *command])
        kept = self.root / "commands" / f"{label}.json"
        if kept.is_file() and (known := json.loads(kept.read_text()))["command"] == command:
            return known["result"]
        print(f"  {self.ran[label]}\n    log: {self._log(label)}", flush=True)
        began = time.time()
        out = self.run(label, [sys.executable, "-m", "pipelines", *command, "--json"])
        result = json.loads(out.splitlines()[-1])
        kept.parent.mkdir(parents=True, exist_ok=True)
        seconds = round(time.time() - began, 1)
        kept.write_text(json.dumps({"command": command, "seconds": seconds, "result": result}, indent=1))
        return result

    def run(self, label: str, command: Sequence[str]) -> str:
        """The standard output of a command that ended well; all it says is in the log. Raises CommandFailed."""
        log = self._log(label)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as errors, log.with_suffix(".out").open("w+") as out:
            before = errors.tell()
            code = subprocess.run(
                command, stdout=out, stderr=errors, env=self.environment(), cwd=self.root, check=False
            ).returncode
            out.seek(0)
            text = out.read()
        if code != 0:
            said = log.read_text()[before:].strip().splitlines() or text.strip().splitlines() or ["it said nothing"]
            raise CommandFailed(f"{label} ended with exit code {code}: {said[-1]} (log: {log})")
        return text

    def _log(self, label: str) -> Path:
        return self.root / "logs" / f"{label}.log"

    def fingerprint(self) -> str:
        """Of the settings: a stage that has ended under others is run again."""
        known = {key: value for key, value in asdict(self.settings).items() if key != "root"}
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]
