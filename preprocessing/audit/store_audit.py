"""What a store's data say about the conventions that its spec declares: each holds, is contradicted, or is unknown.

Numbers come from episodes spread evenly over the store, and every verdict carries the one it rests on. A contradiction
is meant to stop training until the spec is corrected or the user accepts it by name; `unknown` never is. The result is
kept as `audit.json` beside the manifest that it belongs to.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass

import numpy as np

from preprocessing.arm_state import arm_columns
from preprocessing.audit.evidence import Track, Verdict, by_share, tracks, unknown
from preprocessing.audit.frames import frame_verdicts
from preprocessing.audit.motion import gripper, gripper_column, motion
from preprocessing.audit.own_dimensions import dimension_verdicts
from preprocessing.conversion.step_marks import seams
from preprocessing.dataset_spec import GROUPS
from preprocessing.store.episode_store import EpisodeStore, atomic_write
from preprocessing.store.json_files import JsonObject, parsed, taken_apart
from preprocessing.store.parallel_reads import in_parallel
from preprocessing.store.step_counts import StepCounts
from preprocessing.store.summary import AuditSummary, VerdictRow

AUDIT = "audit.json"
_RULES = 2  # raised when a verdict is added: an audit saved before says nothing of it
_BLANK_SHARE, _TERMINAL_SHARE = 0.10, 0.9
_UNINFORMATIVE = "uninformative_instruction"
_MOVES_M, _MOVES = 0.02, 0.2  # spans of a state in m, and in rad or openness, that no noise has


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The verdicts on a store whose manifest has this SHA-256, from `episodes` of its episodes."""

    manifest_sha256: str
    episodes: int
    verdicts: tuple[Verdict, ...]
    rules: int = 1

    def to_json(self) -> JsonObject:
        return json.loads(json.dumps(asdict(self)))

    @staticmethod
    def from_json(data: JsonObject) -> Audit:
        return Audit(**{**data, "verdicts": tuple(Verdict(**verdict) for verdict in data["verdicts"])})


def audit(store: EpisodeStore, *, reference: EpisodeStore | None = None, counted: StepCounts | None = None) -> Audit:
    """Measure the conventions of `store`; colours against `reference`, a store of the same cameras known to be RGB.

    counted: what this very conversion has counted, which also quarantines records of several episodes: without it,
    every step is read.
    """
    episodes = tracks(store)
    steps_of_text, steps_of_flag = (counted or StepCounts.of_store(store)).named(store)
    verdicts = [
        *_actions(store, episodes),
        *frame_verdicts(store, reference),
        _constants(store, episodes),
        *_instructions(steps_of_text, steps_of_flag),
        _flags(steps_of_flag, episodes),
        _one_episode_a_record(store, 0 if counted else _num_crossed(store)),
        _terminal_steps(episodes),
        _states(episodes),
    ]
    return Audit(manifest_sha256=store.manifest_sha256, episodes=len(episodes), verdicts=tuple(verdicts), rules=_RULES)


def _actions(store: EpisodeStore, episodes: list[Track]) -> list[Verdict]:
    """Actions against the state: RT-1's by group, those of another space dimension by dimension."""
    if store.contract.action.space().is_rt1:
        return [*motion(store, episodes), gripper(store, episodes)]
    return dimension_verdicts(store, episodes)


def blocking(verdicts: Collection[Verdict], *, accepted: Collection[str] = ()) -> list[str]:
    """One sentence a contradiction that is not `accepted` by name. Raises ValueError for a name that is no verdict's.

    Accepting a verdict that holds is no error: the data may have been mended since.
    """
    unheard = sorted(set(accepted) - {verdict.name for verdict in verdicts})
    if unheard:
        known = ", ".join(verdict.name for verdict in verdicts)
        raise ValueError(f"the audit has no verdict {unheard[0]!r} to accept: its verdicts are {known}")
    refused = [verdict for verdict in verdicts if verdict.finding == "contradicted" and verdict.name not in accepted]
    return [f"{verdict.name}: {verdict.sentence}" for verdict in refused]


def audit_summary(audit: Audit) -> AuditSummary:
    """The audit as a part of a store's summary."""
    return AuditSummary(
        manifest_sha256=audit.manifest_sha256,
        episodes=audit.episodes,
        verdicts=[
            VerdictRow(name=v.name, finding=v.finding, measured=v.measured, sentence=v.sentence) for v in audit.verdicts
        ],
        rules=audit.rules,
        blocking=blocking(audit.verdicts),
    )


def save(store: EpisodeStore, audit: Audit) -> None:
    """Write `audit` beside the store's manifest, whole or not at all."""
    with atomic_write(store.filesystem, f"{store.root}/{AUDIT}", temporary=store.root) as file:
        file.write((json.dumps(audit.to_json(), indent=1) + "\n").encode())


def saved_or_measured(store: EpisodeStore) -> Audit:
    """The audit that was saved, else one that is measured now, and saved where the store can be written to."""
    if (known := saved(store)) is not None:
        return known
    measured = audit(store)
    with suppress(OSError):
        save(store, measured)
    return measured


def saved(store: EpisodeStore) -> Audit | None:
    """The audit that was saved for this very store; None if there is none, or it is older than store or rules."""
    path = f"{store.root}/{AUDIT}"
    try:
        blob = store.filesystem.cat_file(path)
    except FileNotFoundError:
        return None
    remedy = "delete it, and rtp inspect --audit measures again"
    data = parsed(blob, path, remedy=remedy)
    with taken_apart(path, remedy=remedy):
        audit = Audit.from_json(data)
    return audit if (audit.manifest_sha256, audit.rules) == (store.manifest_sha256, _RULES) else None


# --- What needs no correlation ---


def _constants(store: EpisodeStore, episodes: list[Track]) -> Verdict:
    """Declared dimensions that never change: a contradiction if the state that they command does change."""
    name = "declared_dimensions_vary"
    dataset = store.dataset
    constant = np.flatnonzero(np.array(dataset.action_mask) & ~dataset.statistics.varies())
    names = [store.contract.action.names[dimension] for dimension in constant]
    moving = [store.contract.action.names[d] for d in constant if _state_moves(store, episodes, int(d))]
    if moving:
        sentence = f"{', '.join(moving)} never changes, yet the state that it commands does"
        return Verdict(name=name, finding="contradicted", measured=len(moving), sentence=sentence)
    if names:
        return unknown(name, f"{', '.join(names)} never changes: the dataset may not have it")
    return Verdict(name=name, finding="holds", measured=0, sentence="every declared dimension takes several values")


def _state_moves(store: EpisodeStore, episodes: list[Track], dimension: int) -> bool:
    """Whether the proprioceptive value that belongs to an action dimension changes by more than noise."""
    gripper_place = GROUPS["gripper_closedness_action"].start
    sensed_gripper = gripper_column(store)
    column = arm_columns(store).get(dimension)
    is_rt1 = store.contract.action.space().is_rt1
    if is_rt1 and dimension == gripper_place and sensed_gripper is not None:
        return max(_span_once_settled(track.proprio_TP[:, sensed_gripper[0]]) for track in episodes) > _MOVES
    if column is None:
        return False
    unit = store.manifest.proprio.units[column]
    span = max(float(np.ptp(track.proprio_TP[:, column])) for track in episodes)
    return span > (_MOVES_M if unit == "m" else _MOVES)


def _span_once_settled(values_T: np.ndarray) -> float:
    """A gripper that is always told the same goes there at the start of an episode, and stays."""
    is_still = np.abs(np.diff(values_T)) < _MOVES / 10
    return float(np.ptp(values_T[np.argmax(is_still) :])) if is_still.any() else 0.0


def _instructions(steps_of_text: dict[str, int], steps_of_flag: dict[str, int]) -> list[Verdict]:
    """Texts that say nothing: blank, or one and the same for all. A spec that flags them has declared it.

    `steps_of_text` and `steps_of_flag` count the steps of each text and of each flag.
    """
    names = ("instructions_are_there", "instructions_differ")
    total = max(sum(steps_of_text.values()), 1)
    if steps_of_flag.get(_UNINFORMATIVE):
        sentence = f"the spec declares {steps_of_flag[_UNINFORMATIVE]} of {total} steps as {_UNINFORMATIVE}"
        return [Verdict(name=name, finding="holds", measured=None, sentence=sentence) for name in names]
    share = sum(count for text, count in steps_of_text.items() if not text.strip()) / total
    blank = by_share(names[0], share, _BLANK_SHARE, f"{100 * share:.1f} % of {total} steps have a blank instruction")
    if len(steps_of_text) == 1:
        return [
            blank,
            unknown(names[1], f"every step says {next(iter(steps_of_text))!r}: a policy learns nothing from it"),
        ]
    sentence = f"{len(steps_of_text)} distinct instructions"
    return [blank, Verdict(name=names[1], finding="holds", measured=len(steps_of_text), sentence=sentence)]


def _flags(steps_of_flag: dict[str, int], episodes: list[Track]) -> Verdict:
    """Flags and step marks that are never set: they may be rare, or the field may be empty. Never a contradiction."""
    name = "flags_are_set"
    never = [flag for flag, count in steps_of_flag.items() if not count]
    never += [mark for mark in episodes[0].marks if not sum(track.marks[mark] for track in episodes)]
    if never:
        return unknown(name, f"never set: {', '.join(never)}")
    return Verdict(name=name, finding="holds", measured=0, sentence="every flag and every step mark is set somewhere")


def _num_crossed(store: EpisodeStore) -> int:
    """Episodes with a mark in their middle: over all of them, since every window counts."""

    def of_shard(number: int) -> int:
        shard, table = store.shards[number], store.read_shard(number, ["is_first", "is_last"])
        ends_E = np.cumsum(shard.episode_lengths)
        begins_N = np.zeros(shard.rows + 1, bool)
        begins_N[[0, *ends_E]] = True
        inside_N = seams(table["is_first"].to_numpy(), table["is_last"].to_numpy(), begins_N[:-1])
        return len(np.unique(np.searchsorted(ends_E, np.flatnonzero(inside_N), side="right")))

    return sum(in_parallel(of_shard, len(store.shards)))


def _one_episode_a_record(store: EpisodeStore, num_crossed: int) -> Verdict:
    """Whether windows stay within one episode."""
    name = "records_hold_one_episode"
    total = store.num_episodes
    if not num_crossed:
        return Verdict(name=name, finding="holds", measured=0, sentence=f"no mark in the middle of {total} episodes")
    sentence = (
        f"is_first or is_last says in the middle of {num_crossed} of {total} episodes that another one begins, and "
        f"windows cross that seam; rtp preprocess puts such records into quarantine: delete the store and run it again"
    )
    return Verdict(name=name, finding="contradicted", measured=num_crossed, sentence=sentence)


def _terminal_steps(episodes: list[Track]) -> Verdict:
    """Terminal steps are not trained on; a mark that is set nearly everywhere means something else."""
    total = sum(len(track.action_TA) for track in episodes)
    share = sum(track.marks["is_terminal"] for track in episodes) / total
    sentence = f"is_terminal is set at {100 * share:.1f} % of {total} steps, which are not trained on"
    return by_share("few_steps_are_terminal", share, _TERMINAL_SHARE, sentence)


def _states(episodes: list[Track]) -> Verdict:
    name = "state_is_finite"
    odd = [track.odd_states for track in episodes if track.odd_states]
    if odd:
        where = f"at {sum(odd)} steps of {len(odd)} of {len(episodes)} episodes"
        sentence = f"the state is not finite {where}: models that read it, and loader.relabel, refuse the store"
        return unknown(name, sentence)
    return Verdict(name=name, finding="holds", measured=0, sentence=f"in {len(episodes)} episodes")
