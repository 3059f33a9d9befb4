"""What needs the internet, GPUs or a simulator, in one command that goes on where it stopped (docs/reproduce.md).

    python benchmarks/reproduce.py --root reproduction
    python benchmarks/reproduce.py --root reproduction --only rt1x simpler --again simpler

Stages: fractal (the public RT-1 data), rt1x (the released weights), paligemma (LoRA on 3B), zero (two GPUs against
one), simpler (RT-1-X acts by the server). A stage that needs what is not here says so, one that fails does not stop the
others. ROOT/report.json and ROOT/report.html say what each needed, expected and found. Exit code 0: all that was asked
for is as expected; 1: something differs, failed or could not be tried.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
import platform
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, where it is not installed

from reproduction import data, simpler, training
from reproduction.lab import CommandFailed, Lab, Settings, Stage
from reproduction.report import ENDED, StageReport, read, verdict, write

from pipelines.config.arguments import absolute
from pipelines.training.git_revision import git_revision
from rt_models.language.model_source import is_on_hub

STAGES: dict[str, Stage] = {stage.name: stage for stage in (*data.STAGES, *training.STAGES, *simpler.STAGES)}
_HELP = {
    "root": "folder of everything that is made (default: reproduction)",
    "fractal": "version folder of fractal20220817_data, local or a URL",
    "train": "slice to train on and to look into",
    "held_out": "slice to score on",
    "texts": "slice whose instructions are embedded and compared with the shipped vectors",
    "encoder": "instruction encoder to compare",
    "use_model": "local copy of the Universal Sentence Encoder, as for rtp preprocess",
    "rt1x": "folder of the released JAX weights, local or a URL",
    "vlm": "PaliGemma: a folder, or hub:OWNER/MODEL (its licence has to be accepted there, and HF_TOKEN set)",
    "vlm_steps": "optimizer steps of PaliGemma",
    "zero_steps": "optimizer steps on one and on two GPUs",
    "client": "command that runs SIMPLER, with absolute paths; {config} and {out} are filled in",
    "trials": "episodes of each task in SIMPLER",
    "toy": "small models on CPUs, to try the script out; published figures are then only noted",
}


def main() -> int:
    settings, only, again = _arguments()
    # The public buckets are flat. gcsfs asks by gRPC, for a minute where only HTTP gets through.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    root = Path(settings.root)
    root.mkdir(parents=True, exist_ok=True)
    reports = read(root)
    lab = Lab(settings)
    due = [name for name in only if name in again or not _has_ended(reports.get(name), lab)]
    missing = {name: STAGES[name].missing(lab) for name in due}  # of all of them, before the first downloads anything
    for name, lacks in missing.items():
        for lack in lacks:
            print(f"{name}: needs {lack}", flush=True)
    for name in only:
        known = reports.get(name)
        if known is not None and name not in due:
            print(f"{name}: {known.outcome} ({known.ended}); --again {name} looks again")
            continue
        print(f"{name}: {STAGES[name].question}", flush=True)
        reports[name] = _tried(STAGES[name], settings, missing[name])
        write(root, _machine(lab), [reports[name] for name in STAGES if name in reports])
        _say(reports[name])
    print(f"report: {root / 'report.html'}")
    return 0 if all(reports[name].outcome == "as expected" for name in only) else 1


def _has_ended(known: StageReport | None, lab: Lab) -> bool:
    return known is not None and known.outcome in ENDED and known.settings == lab.fingerprint()


def _tried(stage: Stage, settings: Settings, missing: tuple[str, ...]) -> StageReport:
    """The stage run to its end, or what it lacks, or why it stopped."""
    lab = Lab(settings)
    about = {"settings": lab.fingerprint(), "ended": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    if missing:
        return StageReport.of(stage, "needs more", missing=missing, **about)
    began = time.monotonic()
    try:
        checks = tuple(stage.run(lab))
        outcome = "differs" if any(check.holds is False for check in checks) else "as expected"
        found = {"checks": checks}
    except Exception as error:  # the others are tried all the same
        outcome = "failed"
        text = " ".join(str(error).split())
        found = {"error": text if isinstance(error, CommandFailed) else f"{type(error).__name__}: {text}"}
    about["ended"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    seconds = round(time.monotonic() - began, 1)
    return StageReport.of(stage, outcome, commands=tuple(lab.ran.values()), seconds=seconds, **found, **about)


def _say(report: StageReport) -> None:
    print(f"{report.stage}: {report.outcome}, {report.seconds:.0f} s")
    for lack in report.missing:
        print(f"  needs {lack}")
    for check in report.checks:
        beside = f" (expected or published: {check.expected})" if check.expected else ""
        print(f"  {verdict(check):<8}{check.what}: {check.found}{beside}")
    if report.error:
        print(f"  {report.error}")


def _machine(lab: Lab) -> dict[str, object]:
    return {
        "revision": git_revision(),
        "system": platform.platform(),
        "GPUs": lab.gpus,
        **({"stand-ins": "--toy"} if lab.settings.toy else {}),
    }


def _arguments() -> tuple[Settings, list[str], list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(STAGES), default=list(STAGES), help="stages to run")
    parser.add_argument(
        "--again",
        nargs="+",
        choices=list(STAGES),
        default=[],
        help="stages to run although they have ended; their commands that ended well are not repeated, SIMPLER is",
    )
    for each in dataclasses.fields(Settings):
        default = "reproduction" if each.name == "root" else each.default
        kind = {"action": "store_true"} if each.name == "toy" else {"type": type(default) if default else str}
        shown = _HELP[each.name] + ("" if each.name in ("root", "toy", "use_model") else f" (default: {default})")
        parser.add_argument(f"--{each.name.replace('_', '-')}", default=default, help=shown.replace("%", "%%"), **kind)
    given = vars(parser.parse_args())
    only, again = given.pop("only"), given.pop("again")
    if unasked := sorted(set(again) - set(only)):
        parser.error(f"--again {unasked[0]}: --only does not name it")
    for name in ("root", "fractal", "rt1x", "vlm", "use_model"):
        if given[name] is not None and not is_on_hub(given[name]):
            given[name] = absolute(given[name])  # commands run in ROOT
    return Settings(**given), [name for name in STAGES if name in only], again


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")
