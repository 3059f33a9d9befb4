"""What was aimed at and what was measured, as ratios of sides of one run on one card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from gpu_stages.settings import Line


@dataclass(frozen=True, kw_only=True)
class Aim:
    """`found` is None where a stage that it needs has no result yet."""

    what: str
    sense: Literal["at least", "at most"]
    wanted: float
    found: float | None
    stages: str
    """That measure it."""

    @property
    def is_met(self) -> bool | None:
        if self.found is None:
            return None
        return self.found >= self.wanted if self.sense == "at least" else self.found <= self.wanted


def aims(lines: Sequence[Line]) -> list[Aim]:
    """From the results of one run; of two results for the same, the newer counts."""
    newest = _Results(lines)
    port = newest.value("port", "windows_per_s", case="as published")
    segments, plain = (newest.best("train", "windows_per_s", case=case) for case in ("segments", "plain"))
    plain_s = newest.best("train", "step_s", min, case="plain")
    backbone_s = newest.value("train", "step_s", case="backbone", side="torchvision")
    bare = newest.best("loop", "samples_per_s", among=("bare", "bare, graph"), case="segments")
    rtp_train = newest.value("loop", "samples_per_s", case="segments", side="rtp train")
    waiting = newest.value("loop", "waiting_share", case="segments", side="rtp train")
    one = newest.best("control", "median_ms", min, robots=1)
    many = newest.best("control", "actions_per_s", robots=32)
    read = newest.best("loader", "windows_per_s", case="segments")
    zero_1, zero_3 = (newest.value("zero", "of_plain", side=f"zero-{stage}") for stage in (1, 3))
    graphs_1, graphs_3 = (newest.value("zero", "of_plain_with_graphs", side=f"zero-{stage}") for stage in (1, 3))
    on_ray = newest.value("ray", "of_in_process")
    used = newest.value("vlm", "utilisation", case="full")
    return [
        _least("segments of 12, windows/s over rt1-pytorch's", 10, _over(segments, port), "train port"),
        _least("plain windows, windows/s over rt1-pytorch's", 2.5, _over(plain, port), "train port"),
        _most("32 plain windows, time over the bare backbone's", 1.15, _over(plain_s, backbone_s), "train"),
        _least("rtp train over the bare loop", 0.95, _over(rtp_train, bare), "loop"),
        _most("rtp train, share of time waiting for data", 0.02, waiting, "loop"),
        _most("control step of one robot, ms", 5, one, "control"),
        _least("32 robots, actions/s", 3000, many, "control"),
        _least("PaliGemma-3B, utilisation by real tokens", 0.46, used, "vlm"),
        _least("ZeRO-1 over plain", 0.95, zero_1, "zero"),
        _least("ZeRO-3 over plain", 0.85, zero_3, "zero"),
        _least("ZeRO-1 over plain with CUDA graphs", 0.95, graphs_1, "zero"),
        _least("ZeRO-3 over plain with CUDA graphs", 0.85, graphs_3, "zero"),
        _least("on a Ray worker over in this process", 0.95, on_ray, "ray"),
        _least("loader on all cores over the model's segments", 1, _over(read, segments), "loader train"),
    ]


def table(found: Sequence[Aim], *, judged: bool) -> str:
    """To read; not judged: of toy sizes, which say nothing of an aim."""
    verdicts = {None: "not measured", True: "met", False: "NOT met"}
    rows = [
        (
            aim.what,
            f"{aim.sense} {aim.wanted:g}",
            "" if aim.found is None else f"{aim.found:.3g}",
            f"{verdicts[aim.is_met] if judged or aim.found is None else 'toy sizes'} ({aim.stages})",
        )
        for aim in found
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    cells = ([cell.ljust(width) for cell, width in zip(row, widths, strict=False)] for row in rows)
    return "\n".join("  ".join([*padded, row[3]]) for padded, row in zip(cells, rows, strict=True))


class _Results:
    """`value` and `best` are None where no line has the key and says all of `where`."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self._lines = lines

    def _found(self, stage: str, key: str, where: Line) -> list[Line]:
        lines = [line for line in self._lines if line.get("stage") == stage and line.get(key) is not None]
        return [line for line in lines if all(line.get(name) == value for name, value in where.items())]

    def value(self, stage: str, key: str, **where: object) -> float | None:
        lines = self._found(stage, key, where)
        return lines[-1][key] if lines else None

    def best(
        self,
        stage: str,
        key: str,
        better: Callable[..., float] = max,
        *,
        among: Sequence[str] = (),
        **where: object,
    ) -> float | None:
        """Over sides, of `among` if it names some."""
        newest = {line.get("side", line.get("cores")): line[key] for line in self._found(stage, key, where)}
        values = [value for side, value in newest.items() if not among or side in among]
        return better(values) if values else None


def _over(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


def _least(what: str, wanted: float, found: float | None, stages: str) -> Aim:
    return Aim(what=what, sense="at least", wanted=wanted, found=found, stages=stages)


def _most(what: str, wanted: float, found: float | None, stages: str) -> Aim:
    return Aim(what=what, sense="at most", wanted=wanted, found=found, stages=stages)
