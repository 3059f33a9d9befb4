"""The record of a sweep: one JSON document per trial, written at every event, so that a kill loses none of them.

    <root>/sweep.json                what the sweep is; a resumed sweep must be the same one
    <root>/trials/0003/trial.json    one trial: parameters, state, objectives so far; beside it what the trial wrote

It is the only state of a sweep. Ray Tune's own snapshot is taken every so many seconds and leaves the scheduler out,
so a sweep continued from it would repeat trials and forget what was compared.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import fsspec
import pyarrow.fs

from tuning.space import Parameters

JsonObject: TypeAlias = dict[str, Any]
OpenFiles: TypeAlias = Callable[[str], tuple[Any, str]]

# interrupted: by a kill or by the end of the budget; paused: a generation of its population is over.
State = Literal["waiting", "running", "interrupted", "paused", "finished", "stopped", "failed"]
ENDED: tuple[State, ...] = ("finished", "stopped", "failed")


@dataclass(frozen=True, kw_only=True)
class Report:
    """The objectives at one optimizer step."""

    step: int
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Exploit:
    """Population-based training: at `step` the trial took over the weights of `parent` and went on with `after`."""

    step: int
    parent: int
    checkpoint: str
    before: Parameters
    after: Parameters


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial: the parameters of `point` under one seed.

    step: the last optimizer step that was reported; until: where it pauses, None for the end of its training.
    seconds: how long it has run, over all attempts; reason: of a failure, or of an early stop.
    """

    number: int
    point: int
    seed: int
    parameters: Parameters
    state: State = "waiting"
    step: int = 0
    until: int | None = None
    seconds: float = 0.0
    attempts: int = 0
    reason: str = ""
    reports: tuple[Report, ...] = ()
    lineage: tuple[Exploit, ...] = ()

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def last(self, metric: str) -> float | None:
        """The newest value of an objective."""
        return next((r.values[metric] for r in reversed(self.reports) if metric in r.values), None)

    def reported(self, step: int, values: Mapping[str, float]) -> TrialRecord:
        """At `step`, with the objectives reported there; what a continued trial computes again replaces the old."""
        if not values:
            return replace(self, step=step)
        earlier = tuple(report for report in self.reports if report.step < step)
        here = {name: value for report in self.reports if report.step == step for name, value in report.values.items()}
        return replace(self, step=step, reports=(*earlier, Report(step=step, values=here | dict(values))))


@dataclass
class Ledger:
    """The trials of the sweep in `root`, a folder or an fsspec URL, by number.

    open_files: (file system, path in it) of a URL; by default fsspec's own, which does not wait for a store that is
    away.
    """

    root: str
    trials: dict[int, TrialRecord] = field(default_factory=dict)
    open_files: OpenFiles = fsspec.core.url_to_fs

    def __post_init__(self) -> None:
        self._files, path = self.open_files(self.root)
        self._path = path.rstrip("/")

    @staticmethod
    def load(root: str, open_files: OpenFiles = fsspec.core.url_to_fs) -> Ledger:
        """As the files have it; trials that were running when the sweep was killed are interrupted."""
        ledger = Ledger(root, open_files=open_files)
        for path in sorted(ledger._files.glob(f"{glob.escape(ledger._path)}/trials/*/trial.json")):
            record = _record(_parsed(ledger._files.cat_file(path), str(path)), str(path))
            state = "interrupted" if record.state == "running" else record.state
            ledger.trials[record.number] = replace(record, state=state)
        return ledger

    def description(self) -> JsonObject | None:
        """sweep.json, None if no sweep has begun here."""
        path = f"{self._path}/sweep.json"
        try:
            return _parsed(self._files.cat_file(path), path)
        except FileNotFoundError:
            return None

    def describe(self, description: Mapping[str, object]) -> None:
        self._write(f"{self._path}/sweep.json", description)

    def put(self, record: TrialRecord) -> None:
        """Remember and write one trial."""
        self.trials[record.number] = record
        self._write(f"{self._path}/trials/{record.number:04d}/trial.json", asdict(record))

    def output(self, number: int) -> str:
        """The folder of a trial."""
        return f"{self.root}/trials/{number:04d}"

    @contextmanager
    def scratch(self) -> Iterator[tuple[str, pyarrow.fs.FileSystem | None]]:
        """(path, pyarrow file system or None for this machine's) of an empty folder that all nodes of the sweep share;
        it is removed afterwards, and what a kill left of an earlier one before."""
        path = f"{self._path}/.scratch"
        plain = getattr(self._files, "plain", self._files)  # Ray opens files in it, for which nothing waits
        files = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(plain)) if "://" in self.root else None
        self._remove(path)
        try:
            yield path, files
        finally:
            self._remove(path)

    def _remove(self, path: str) -> None:
        if self._files.exists(path):
            self._files.rm(path, recursive=True)

    def ordered(self) -> list[TrialRecord]:
        return [self.trials[number] for number in sorted(self.trials)]

    def lineage(self) -> list[tuple[int, Exploit]]:
        """(trial, takeover) of population-based training, by step."""
        exploits = [(record.number, exploit) for record in self.ordered() for exploit in record.lineage]
        return sorted(exploits, key=lambda pair: (pair[1].step, pair[0]))

    def _write(self, path: str, data: Mapping[str, object]) -> None:
        """Whole or not at all: by renaming on a file system; an object store's upload is atomic by itself."""
        text = json.dumps(data, indent=1)
        if "://" in self.root:
            self._files.pipe_file(path, text.encode())
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        partial.write_text(text)
        partial.replace(target)


def _parsed(content: bytes, path: str) -> JsonObject:
    try:
        return dict(json.loads(content))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a record of a sweep: remove it, or give another --output") from error


def _record(data: JsonObject, path: str) -> TrialRecord:
    other = set(data) ^ {f.name for f in fields(TrialRecord)}
    if other:
        raise ValueError(f"{path} was written by another version, which differs in {', '.join(sorted(other))}")
    reports = tuple(Report(**report) for report in data.pop("reports"))
    lineage = tuple(Exploit(**exploit) for exploit in data.pop("lineage"))
    return TrialRecord(**data, reports=reports, lineage=lineage)
