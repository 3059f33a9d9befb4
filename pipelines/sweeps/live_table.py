"""The live table of a sweep on stderr: redrawn in place on a terminal, a line per change of state elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from pipelines.config.experiment import Experiment
from tuning.ledger import Ledger, TrialRecord
from tuning.space import value_text
from tuning.sweep import Sweep

_COLOURS = {"running": "cyan", "finished": "green", "stopped": "dim", "failed": "red"}


class SweepTable:
    """Draws `ledger` whenever `changed` is called, inside a with block."""

    def __init__(self, sweep: Sweep, ledger: Ledger, experiment: Experiment) -> None:
        self._sweep, self._ledger, self._num_steps = sweep, ledger, experiment.loop.steps
        console = Console(stderr=True)
        self._console = console if console.is_terminal else Console(stderr=True, width=140)
        self._live = Live(console=self._console, get_renderable=self._table, refresh_per_second=2, transient=True)
        self._states = {record.number: record.state for record in ledger.ordered()}

    def __enter__(self) -> SweepTable:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._live.stop()
        self._console.print(self._table())

    def changed(self) -> None:
        """Something in the ledger did."""
        for record in self._ledger.ordered():
            if self._states.get(record.number) != record.state:
                self._states[record.number] = record.state
                if not self._console.is_terminal:
                    self._console.print(self._line(record), soft_wrap=True, highlight=False)

    def _line(self, record: TrialRecord) -> str:
        parameters = ", ".join(f"{path} {value_text(record.parameters[path])}" for path in self._sweep.space)
        known = [(o.metric, score) for o in self._sweep.objectives if (score := _score(record, o.metric))]
        scores = "".join(f", {metric} {score}" for metric, score in known)
        reason = f": {record.reason}" if record.reason else ""
        return f"trial {record.number} {record.state} at step {record.step}{scores} ({parameters}){reason}"

    def _table(self) -> Table:
        table = Table(title=f"sweep {self._sweep.name}: {self._counts()}", title_justify="left")
        for name in ("trial", "seed", "state", "step", *self._sweep.space):
            table.add_column(name)
        for objective in self._sweep.objectives:
            table.add_column(objective.metric, justify="right")
        for record in self._ledger.ordered():
            colour = _COLOURS.get(record.state, "")
            values = [value_text(record.parameters[path]) for path in self._sweep.space]
            scores = [_score(record, objective.metric) for objective in self._sweep.objectives]
            start = [str(record.number), str(record.seed), record.state, f"{record.step}/{self._num_steps}"]
            table.add_row(*start, *values, *scores, style=colour)
        return table

    def _counts(self) -> str:
        ended = sum(record.ended for record in self._ledger.ordered())
        return f"{ended} of {self._sweep.num_trials} trials ended"


def _score(record: TrialRecord, metric: str) -> str:
    value = record.last(metric)
    return "" if value is None else f"{value:.4f}"
