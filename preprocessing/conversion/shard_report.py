"""What a converted shard adds to the manifest: a JSON file in the progress folder. Where it is, the shard is done."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TypeVar

from preprocessing.store.file_system import FileSystem
from preprocessing.store.json_files import parsed, taken_apart
from preprocessing.store.json_records import read_record
from preprocessing.store.statistics import Moments
from preprocessing.store.step_counts import StepCounts
from preprocessing.store.store_manifest import ShardEntry, WebShardEntry

R = TypeVar("R", "ShardReport", "WebShardReport")

_REMEDY = "delete the store's folder and preprocess again"


@dataclass(frozen=True, kw_only=True)
class ShardCounts:
    """What the progress bar shows of a shard."""

    episodes: int
    rows: int


@dataclass(frozen=True, kw_only=True)
class QuarantinedRecord:
    """One line of quarantine.jsonl: a record that is left out; `offset` in bytes is where it begins in its file."""

    shard: str
    record: int
    offset: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class ShardReport(ShardEntry):
    """The report of a shard of episodes.

    `frame_size` is (height, width), None without episodes; `further_frame_sizes` those of the cameras beside the main
    one. `moments` cover the steps that are not terminal, `state_moments` those among them whose state is finite.
    `unread` counts the episodes in which an optional field could not be read. `states_not_finite` holds the number of
    such steps of each episode that has any. `instruction_steps` (by id) and `flag_steps` count the steps of each.
    """

    quarantine: tuple[QuarantinedRecord, ...]
    frame_size: tuple[int, ...] | None
    rates_hz: tuple[float, ...]
    moments: Moments
    unread: dict[str, int] = field(default_factory=dict)
    states_not_finite: tuple[int, ...] = ()
    further_frame_sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    state_moments: Moments | None = None
    instruction_steps: dict[str, int] | None = None
    flag_steps: tuple[int, ...] | None = None

    @property
    def step_counts(self) -> StepCounts | None:
        """None in a report of an older version."""
        if self.instruction_steps is None or self.flag_steps is None:
            return None
        of_instruction = {int(number): count for number, count in self.instruction_steps.items()}
        return StepCounts(of_instruction=of_instruction, of_flag=self.flag_steps)

    def entry(self) -> ShardEntry:
        """The part that stands in the manifest."""
        return ShardEntry(**{f.name: getattr(self, f.name) for f in fields(ShardEntry)})


@dataclass(frozen=True, kw_only=True)
class QuarantinedExample:
    """An example that is left out; `example` is its number among those of one `place`."""

    place: str
    example: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class WebShardReport(WebShardEntry):
    """The report of a shard of image-text examples; `unread` counts members of archives by extension, `most_pictures`
    are those of the row that has most, `valued` counts examples with a score, and with a language (None in a report of
    an older version)."""

    unread: dict[str, int] = field(default_factory=dict)
    valued: dict[str, int] | None = None
    most_pictures: int = 0
    quarantine: tuple[QuarantinedExample, ...]

    def entry(self) -> WebShardEntry:
        """The part that stands in the manifest."""
        return WebShardEntry(**{f.name: getattr(self, f.name) for f in fields(WebShardEntry)})


def report_name(index: int) -> str:
    """A shard's report in the progress folder."""
    return f"{index:05d}.json"


def read_report(kind: type[R], filesystem: FileSystem, folder: str, index: int) -> R:
    """The report of shard `index` in progress folder `folder`. Raises ValueError if the file is damaged."""
    path = f"{folder}/{report_name(index)}"
    data = parsed(filesystem.cat_file(path), path, remedy=_REMEDY)
    with taken_apart(path, remedy=_REMEDY):
        return read_record(kind, data)
