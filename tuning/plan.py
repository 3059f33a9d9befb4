"""Which trial comes next: continued ones first, then new points, or the next generation of a population.

Plans read and write the ledger and nothing else, so a plan made after a kill goes on where the old one was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from tuning.ledger import Exploit, Ledger, TrialRecord
from tuning.population import Population, Takeover, takeovers
from tuning.ranking import Point, points
from tuning.search import RandomSearch, Tried
from tuning.sweep import Sweep

Clone = Callable[[str, str, int], str]
"""(donor's folder, taker's folder, step): the donor's checkpoint becomes the taker's newest; where it came from.

It may be called again after a kill, and must not leave half a checkpoint.
"""


class Plan(Protocol):
    """Hands out trials. One that was handed out is running until the ledger says that it is not."""

    done: bool

    def next(self) -> TrialRecord | None:
        """The trial to start or continue now; None while others must come first, and when `done`."""
        ...


class IndependentTrials:
    """Every point of the search under every seed."""

    def __init__(self, sweep: Sweep, ledger: Ledger) -> None:
        self.sweep, self.ledger, self.done = sweep, ledger, False

    def next(self) -> TrialRecord | None:
        for record in self.ledger.ordered():
            if record.state in ("waiting", "interrupted"):
                return record
        record = self._new() if len(self.ledger.trials) < self.sweep.num_trials else None
        self.done = record is None
        return record

    def _new(self) -> TrialRecord | None:
        number = len(self.ledger.trials)
        point, place = divmod(number, len(self.sweep.seeds))
        if place:
            parameters = self.ledger.trials[number - place].parameters
        else:
            search, first_seed = self.sweep.search, self.sweep.seeds[0]
            parameters = search.propose(self.sweep.space, self.sweep.directions, self._tried(), first_seed)
        if parameters is None:
            return None
        record = TrialRecord(number=number, point=point, seed=self.sweep.seeds[place], parameters=parameters)
        self.ledger.put(record)
        return record

    def _tried(self) -> list[Tried]:
        return [_tried(point, self.sweep) for point in points(self.sweep, self.ledger)]


def _tried(point: Point, sweep: Sweep) -> Tried:
    """What a search may learn from a point: nothing until the trials of all its seeds have ended."""
    if len(point.trials) < len(sweep.seeds) or not all(trial.ended for trial in point.trials):
        return Tried(parameters=point.parameters)
    if point.medians is not None:
        return Tried(parameters=point.parameters, values=point.medians)
    stopped = [trial for trial in point.trials if trial.state == "stopped"]
    seen = [(trial.step, value) for trial in stopped if (value := trial.last(sweep.objectives[0].metric)) is not None]
    return Tried(parameters=point.parameters, pruned_at=min(seen) if seen else None, failed=not seen)


class Generations:
    """A population: all members train to the end of a generation, the worst take over the best, and so on."""

    def __init__(self, sweep: Sweep, ledger: Ledger, *, num_steps: int, clone: Clone) -> None:
        assert isinstance(sweep.scheduler, Population)
        self.sweep, self.ledger, self.done = sweep, ledger, False
        self.config, self.num_steps, self.clone = sweep.scheduler, num_steps, clone

    def next(self) -> TrialRecord | None:
        while len(self.ledger.trials) < self.sweep.budget.trials:
            self._new()
        members = [record for record in self.ledger.ordered() if not record.ended]
        if not members:
            self.done = True
            return None
        generation = min(record.until or 0 for record in members)
        behind = [record for record in members if record.until == generation]
        ready = [record for record in behind if record.state in ("waiting", "interrupted")]
        if ready:
            return ready[0]
        if any(record.state == "running" for record in members):
            return None
        self._advance(members, behind, generation)
        return self.next()

    def _new(self) -> None:
        number, seed = len(self.ledger.trials), self.sweep.seeds[0]
        drawn = [Tried(parameters=record.parameters) for record in self.ledger.ordered()]
        parameters = RandomSearch().propose(self.sweep.space, self.sweep.directions, drawn, seed)
        assert parameters is not None
        until = self.config.pause(0, self.num_steps)
        self.ledger.put(TrialRecord(number=number, point=number, seed=seed, parameters=parameters, until=until))

    def _advance(self, members: list[TrialRecord], behind: list[TrialRecord], step: int) -> None:
        """Send `behind` into the next generation, one by one. Those that a kill let through before stay as they are:
        who takes over whom follows from scores and parameters that taking over does not change."""
        metric = self.sweep.objectives[0].metric
        scores = {record.number: (_score(record, metric, step), record.parameters) for record in members}
        chosen = takeovers(
            self.config,
            self.sweep.space,
            scores,
            direction=self.sweep.objectives[0].direction,
            seed=self.sweep.seeds[0] + step,
        )
        for record in behind:
            if record.number in chosen:
                record = self._taken_over(record, chosen[record.number], step)
            self.ledger.put(replace(record, state="waiting", until=self.config.pause(step, self.num_steps)))

    def _taken_over(self, record: TrialRecord, takeover: Takeover, step: int) -> TrialRecord:
        source, target = self.ledger.output(takeover.parent), self.ledger.output(record.number)
        exploit = Exploit(
            step=step,
            parent=takeover.parent,
            checkpoint=self.clone(source, target, step),
            before=record.parameters,
            after=takeover.parameters,
        )
        return replace(record, parameters=takeover.parameters, lineage=(*record.lineage, exploit))


def _score(record: TrialRecord, metric: str, step: int) -> float:
    """The objective at the end of the generation, or the newest before it."""
    known = [report.values[metric] for report in record.reports if metric in report.values and report.step <= step]
    return known[-1] if known else float("nan")
