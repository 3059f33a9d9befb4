"""`manifest.json` of an episode store and of a store of image-text examples as records, key for key in their order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

from preprocessing.store.json_files import JsonObject
from preprocessing.store.json_records import to_text
from rt_models.spec import ActionStatistics, Contract, ImageRecipe


@dataclass(frozen=True, kw_only=True)
class EpisodeCounts:
    """The account of a conversion: episodes_in = episodes_out + quarantined."""

    episodes_in: int
    episodes_out: int
    quarantined: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class StoreStatistics(ActionStatistics):
    """The contract's action statistics with names and units, for readers of the file.

    `hardly_vary`: dimension -> "constant" or "tiny range".
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    hardly_vary: dict[str, str]

    def to_json(self) -> JsonObject:
        return {"names": self.names, "units": self.units, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class Proprioception:
    """Names and units of the values in column `proprio`, and their statistics over the steps that are not terminal and
    whose state is finite: None in stores of before they were kept."""

    names: tuple[str, ...]
    units: tuple[str, ...]
    statistics: ActionStatistics | None = None

    def to_json(self) -> JsonObject:
        kept = {} if self.statistics is None else {"statistics": asdict(self.statistics)}
        return {"names": self.names, "units": self.units, **kept}


@dataclass(frozen=True, kw_only=True)
class SourceForm:
    """What one step of a source field is: NumPy dtype and shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class InstructionsFile:
    """The instruction table."""

    file: str
    rows: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """A Parquet file of an episode store and the source shard, or part of one, that it was made from."""

    file: str
    rows: int
    bytes: int
    sha256: str
    source: str
    source_bytes: int
    source_records: int
    source_sha256_of_crcs: str
    episode_lengths: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Rights:
    """What the source says of its licence, its citation and where it is from; "" where it says nothing."""

    licence: str = ""
    citation: str = ""
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class ParentStore:
    """A store as it was: where it lay, and the fingerprint of its manifest."""

    store: str
    manifest: str


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """What a store was made of other than by a conversion: `change` is append, delete, merge or split."""

    change: str
    sentence: str
    parents: tuple[ParentStore, ...]


@dataclass(frozen=True, kw_only=True)
class StoreManifest:
    """`manifest.json` of an episode store. `settings` is everything that decided the store's bytes; `lineage`
    is None where a conversion made it.

    `cameras` are paths in the source by role, and `camera_recipes` what was done to the frames of those beside the main
    one, whose recipe is in the contract; stores of before they were kept lack them.
    """

    schema_version: int
    dataset: str
    version: str
    split: str
    counts: EpisodeCounts
    control_hz: float
    encoder: str
    contract_id: str
    contract: Contract
    statistics: StoreStatistics
    gripper: str
    cameras: dict[str, str]
    cameras_left_out: tuple[str, ...]
    camera_recipes: dict[str, ImageRecipe] = field(default_factory=dict)
    flag_names: tuple[str, ...]
    proprio: Proprioception
    source_fields: dict[str, SourceForm]
    notes: str
    row_group_rows: int
    instructions: InstructionsFile
    shards: tuple[ShardEntry, ...]
    settings: JsonObject
    remarks: tuple[str, ...] = ()
    lineage: Lineage | None = None
    rights: Rights | None = None

    def to_bytes(self) -> bytes:
        optional = ("camera_recipes", "remarks", "lineage", "rights")
        written = [f.name for f in fields(self) if f.name not in optional or getattr(self, f.name)]
        return _one_key_a_line({name: getattr(self, name) for name in written})


# --- Image-text examples ---


@dataclass(frozen=True, kw_only=True)
class WebCounts:
    """The account of a conversion of image-text data; `images` counts the pictures of all rows."""

    examples_in: int
    examples_out: int
    quarantined: int
    images: int


@dataclass(frozen=True, kw_only=True)
class WebShardEntry:
    """A Parquet file of a store of image-text examples; `episode_lengths` are the examples of each row."""

    file: str
    rows: int
    bytes: int
    sha256: str
    source: str
    episode_lengths: tuple[int, ...]
    examples_in: int
    images: int
    duplicates: int = 0


@dataclass(frozen=True, kw_only=True)
class FilterAccount:
    """What `rtp filter` made of another store's examples: `filtered` and `quarantined` by reason, languages of what
    came in and of what is kept, and the lowest score that passed."""

    kept: int
    filtered: dict[str, int]
    quarantined: dict[str, int]
    languages: dict[str, int]
    languages_in: dict[str, int]
    lowest_score: float | None

    def in_words(self) -> str:
        """What is not kept."""
        return ", ".join(f"{n} {reason}" for part in (self.filtered, self.quarantined) for reason, n in part.items())


@dataclass(frozen=True, kw_only=True)
class WebManifest:
    """`manifest.json` of a store of image-text examples: examples_in = examples_out + quarantined + duplicates, and of
    a filtered one + filtered.

    `unread` counts members of archives that nothing reads, by their extension. `most_pictures`: no row
    has more, in a store that may have several.
    """

    schema_version: int
    kind: str
    dataset: str
    version: str
    split: str
    counts: WebCounts
    duplicates: int = 0
    unread: dict[str, int] = field(default_factory=dict)
    row_group_rows: int
    shards: tuple[WebShardEntry, ...]
    settings: JsonObject
    filtered: FilterAccount | None = None
    rights: Rights | None = None
    most_pictures: int = 0

    def to_bytes(self) -> bytes:
        optional = ("filtered", "rights", "most_pictures")
        written = [f.name for f in fields(self) if f.name not in optional or getattr(self, f.name)]
        return _one_key_a_line({name: getattr(self, name) for name in written})


def _one_key_a_line(values: Mapping[str, object]) -> bytes:
    """JSON that is legible, yet small."""
    lines = (f"{to_text(key)}: {to_text(value)}" for key, value in values.items())
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()
