"""RT-2's prediction tasks: answers are what the episodes of a store say, and what they do not say is not asked."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocessing.convert import ConvertConfig, convert
from preprocessing.loading.reader import LoaderConfig
from preprocessing.loading.web_reader import WebReader
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.lineage import fingerprint
from preprocessing.store.web_store import WebStore
from preprocessing.web import prediction_tasks, web_summary
from preprocessing.web.convert_web import WebConvertConfig, convert_web
from preprocessing.web.prediction_tasks import Questions, missing_for, records
from tests.support.command_line import SAMPLE
from tests.support.tiny_vd4rl import NPZ, recorded, write

QUESTIONS = 3


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    config = ConvertConfig(split="val", encoder="hash", workers=0)
    return EpisodeStore.open(convert(str(SAMPLE), str(tmp_path_factory.mktemp("store")), config).store)


def asked_of(store: EpisodeStore, shard: int) -> list[tuple[str, str, list[int], Any]]:
    """(question, answer, rows of the shard whose frames are shown, the episode's rows) of everything asked."""
    table = store.read_shard(shard, ["image"])["image"].to_pylist()
    ends = np.cumsum(store.shards[shard].episode_lengths)
    found = []
    for record in records(store, shard, Questions(per_episode=QUESTIONS)):
        number, steps = re.findall(r"episode (\d+), steps ([\d ]+)", record.place)[0]
        start, stop = int(ends[int(number)] - store.shards[shard].episode_lengths[int(number)]), int(ends[int(number)])
        rows = [start + int(step) for step in steps.split()]
        assert record.images == tuple(table[row] for row in rows)
        found += [(example.prompt, example.answer, rows, range(start, stop)) for example in record.examples]
    return found


def test_answers_are_what_the_store_records(store: EpisodeStore) -> None:
    assert missing_for(store) == {}
    columns = prediction_tasks._position_columns(store.manifest.proprio)
    counts = {"instruction": 0, "position": 0, "steps": 0, "success": 0}
    verdicts = set()
    for shard in range(len(store.shards)):
        table = store.read_shard(shard, ["reward", "proprio", "instruction"]).to_pydict()
        texts = dict(zip(store.instruction_ids.tolist(), store.instruction_texts, strict=True))
        for question, answer, rows, episode in asked_of(store, shard):
            instruction = texts[table["instruction"][episode.start]]
            if question.startswith("what was"):
                assert (answer, rows) == (instruction, [episode.start, episode.stop - 1])
                counts["instruction"] += 1
            elif question.startswith("where"):
                values = [table["proprio"][rows[0]][column] for column in columns]
                assert answer == " ".join(str(round(100 * value)) for value in values) and len(rows) == 1
                counts["position"] += 1
            elif question.startswith("how many"):
                assert rows[0] < rows[1] and int(answer) == rows[1] - rows[0] and rows[1] in episode
                counts["steps"] += 1
            else:
                rewarded = max(table["reward"][episode.start : rows[-1] + 1]) > 0
                assert instruction in question and answer == ("yes" if rewarded else "no")
                assert rows[0] == episode.start < rows[1]
                counts["success"] += 1
                verdicts.add(answer)
    assert counts["instruction"] == store.num_episodes and verdicts == {"yes", "no"}
    assert counts["position"] == counts["success"] == QUESTIONS * store.num_episodes
    assert store.num_episodes < counts["steps"] <= QUESTIONS * store.num_episodes


def test_the_store_of_questions_is_a_store_of_examples(store: EpisodeStore, tmp_path: Path) -> None:
    config = WebConvertConfig(format="episodes", questions=QUESTIONS, workers=0)
    summary = convert_web(store.root, str(tmp_path), config)
    assert summary.split == "val" and convert_web(store.root, str(tmp_path), replace(config, split="val")) == replace(
        summary, shards_converted=0, seconds=ANY
    )
    made = WebStore.open(summary.store)
    assert (made.name, made.most_pictures, summary.quarantined) == (f"{store.name}_questions", 2, 0)
    assert summary.examples_in == summary.examples_out == made.num_examples
    settings = made.manifest.settings
    assert settings["parent"] == {"store": store.root, "manifest": fingerprint(store.root)}
    with closing(WebReader([made], frame_size=(16, 16), config=LoaderConfig())) as reader:
        texts = reader.texts(np.arange(made.num_examples))
        assert {len(text.images) for text in texts} == {1, 2} and len(reader.frames(texts[0].images)) == 2
    again = convert_web(store.root, str(tmp_path / "again"), config)
    files = [Path(root, made.manifest.shards[0].file).read_bytes() for root in (summary.store, again.store)]
    assert files[0] == files[1]
    home = Path(store.root).parents[2]
    with pytest.raises(ValueError, match="is where the store itself lies: give another OUT"):
        convert_web(store.root, str(home), replace(config, dataset=store.name))
    shown = web_summary.text(web_summary.summary(made))
    assert f"made of: {store.root}, manifest {fingerprint(store.root)}" in shown
    assert "asked: instruction, position, steps, success; up to 3 of each task about an episode" in shown
    few = convert_web(store.root, str(tmp_path / "few"), replace(config, tasks=("steps",)))
    assert json.loads(Path(few.store, "manifest.json").read_text())["settings"]["tasks"] == ["steps"]


def changed(store: EpisodeStore, folder: Path, column: str, change: Callable[[int, np.ndarray], Any]) -> EpisodeStore:
    """A copy of the store in which `change` (shard, values) gives a column."""
    shutil.copytree(store.root, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for number, entry in enumerate(manifest["shards"]):
        path = folder / entry["file"]
        table = pq.read_table(path)
        place, field = table.schema.get_field_index(column), table.schema.field(column)
        values = pa.array(change(number, table[column].to_numpy()), field.type)
        table = table.set_column(place, field, values)
        pq.write_table(table, path, row_group_size=manifest["row_group_rows"])
        entry["bytes"] = path.stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return EpisodeStore.open(str(folder))


@pytest.mark.parametrize(
    ("change", "lack"),
    [
        (lambda _, reward: reward * 100, None),
        (lambda _, reward: np.linspace(0, 1, len(reward)), "more than two numbers"),
        (lambda shard, reward: reward * (shard + 1), "more than two numbers"),
        (lambda _, reward: reward - 1, "no reward is above 0"),
        (lambda _, reward: reward * 0, "no reward is above 0"),
        (lambda _, reward: reward + 1, "no reward is 0"),
        (lambda _, reward: np.where(np.arange(len(reward)) == 1, np.nan, reward), "a reward is not a number"),
    ],
    ids=["hundred", "dense", "shards", "penalties", "none", "always", "nan"],
)
def test_success_is_asked_of_two_rewards_alone(
    store: EpisodeStore, tmp_path: Path, change: Callable[[int, np.ndarray], Any], lack: str | None
) -> None:
    lacks = missing_for(changed(store, tmp_path / "store", "reward", change))
    assert set(lacks) == ({"success"} if lack else set()) and (lack or "") in lacks.get("success", "")


def test_an_episode_whose_instruction_changes_is_not_asked_for_it(store: EpisodeStore, tmp_path: Path) -> None:
    """It is counted in quarantine once a task; all else is asked as before."""

    def other_at_its_end(shard: int, ids: np.ndarray) -> np.ndarray:
        last = store.shards[shard].episode_lengths[0] - 1
        return np.where(np.arange(len(ids)) == last, next(i for i in store.instruction_ids if i != ids[last]), ids)

    turning = changed(store, tmp_path / "store", "instruction", other_at_its_end)
    config = WebConvertConfig(format="episodes", split="val", questions=QUESTIONS, workers=0)
    summary = convert_web(turning.root, str(tmp_path / "out"), config)
    shards = len(store.shards)
    assert summary.quarantined == 2 * shards
    reasons = [json.loads(line) for line in Path(summary.store, "quarantine.jsonl").read_text().splitlines()]
    assert {line["reason"].partition(": ")[0] for line in reasons} == {"its instruction changes during the episode"}
    assert all("episode 0, " in line["place"] for line in reasons)
    for shard in range(shards):
        before = [one for one in asked_of(store, shard) if one[3].start or one[0].startswith(("where", "how many"))]
        assert [one for one in asked_of(turning, shard) if one[0]] == before
    steps = convert_web(turning.root, str(tmp_path / "steps"), replace(config, tasks=("steps",)))
    assert steps.quarantined == 0


def test_what_a_store_does_not_record_is_not_asked(store: EpisodeStore, tmp_path: Path) -> None:
    written = [recorded(seed, 5) for seed in range(2)]
    source = write(tmp_path / "walker_walk" / "expert" / NPZ, NPZ, written)
    walker = convert(str(source), str(tmp_path / "stores"), ConvertConfig(encoder="hash", workers=0)).store
    config = WebConvertConfig(format="episodes", workers=0)
    summary = convert_web(walker, str(tmp_path), config)
    assert set(summary.not_asked) == {"position", "success"}
    prompts = {prompt for prompts, _, _ in WebStore.open(summary.store).texts() for prompt in prompts}
    assert prompts == {"what was the robot told to do?", "how many steps lie between the pictures?"}
    with pytest.raises(ValueError, match=r"--tasks success: .* cannot answer it, its rewards are more than two"):
        convert_web(walker, str(tmp_path), replace(config, tasks=("success",)))
    with pytest.raises(ValueError, match="is of split 'val': give --split val"):
        convert_web(store.root, str(tmp_path), replace(config, split="train"))
    with pytest.raises(ValueError, match="--tasks is for --format episodes"):
        WebConvertConfig(format="jsonl", tasks=("steps",))
    with pytest.raises(ValueError, match="--questions is for --format episodes, not for jsonl"):
        WebConvertConfig(format="jsonl", questions=5)
    with pytest.raises(ValueError, match="--images is for formats with annotations in JSON"):
        WebConvertConfig(format="episodes", images="pictures")
