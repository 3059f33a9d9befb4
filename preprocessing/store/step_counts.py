"""How many steps each instruction and each flag of a store has: counted at conversion, else by reading every step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.parallel_reads import in_parallel


@dataclass(frozen=True, kw_only=True)
class StepCounts:
    """`of_instruction`: by the instruction's id; `of_flag`: in the order of the store's flags."""

    of_instruction: Mapping[int, int]
    of_flag: tuple[int, ...]

    @staticmethod
    def of(table: pa.Table, num_flags: int) -> StepCounts:
        """Of steps with their columns instruction and flags."""
        ids, counts = np.unique(table["instruction"].to_numpy(), return_counts=True)
        bits = table["flags"].to_numpy()
        return StepCounts(
            of_instruction=dict(zip(ids.tolist(), counts.tolist(), strict=True)),
            of_flag=tuple(int(((bits >> np.uint32(number)) & 1).sum()) for number in range(num_flags)),
        )

    @staticmethod
    def sum(parts: Iterable[StepCounts], num_flags: int) -> StepCounts:
        of_instruction: Counter[int] = Counter()
        of_flag = np.zeros(num_flags, np.int64)
        for part in parts:
            of_instruction.update(part.of_instruction)
            of_flag += np.array(part.of_flag, np.int64)
        return StepCounts(of_instruction=of_instruction, of_flag=tuple(of_flag.tolist()))

    @staticmethod
    def of_store(store: EpisodeStore) -> StepCounts:
        """One request for each row group: what conversion has counted need not be read."""
        num_flags = len(store.manifest.flag_names)

        def count(shard: int) -> StepCounts:
            return StepCounts.of(store.read_shard(shard, ["instruction", "flags"]), num_flags)

        return StepCounts.sum(in_parallel(count, len(store.shards)), num_flags)

    def named(self, store: EpisodeStore) -> tuple[dict[str, int], dict[str, int]]:
        """(steps of each instruction, most used first; steps that carry each flag), by text and name."""
        texts = dict(zip(store.instruction_ids.tolist(), store.instruction_texts, strict=True))
        by_text: Counter[str] = Counter()
        for number, count in self.of_instruction.items():  # one text may have been shipped with several vectors
            by_text[texts[number]] += count
        return dict(by_text.most_common()), dict(zip(store.manifest.flag_names, self.of_flag, strict=True))
