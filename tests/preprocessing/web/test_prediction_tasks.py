"""RT-2's prediction tasks: answers are what the episodes of a store say, and what they do not say is not asked."""

from __future__ import annotations

import json
import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preprocessing.convert import ConvertConfig, convert
from preprocessing.loading.reader import LoaderConfig
from preprocessing.loading.web_reader import WebReader
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.lineage import fingerprint
from preprocessing.store.web_store import WebStore
from preprocessing.web import prediction_tasks
from preprocessing.web.convert_web import WebConvertConfig, convert_web
from preprocessing.web.prediction_tasks import Questions, missing_for, records
from tests.support.command_line import SAMPLE

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
    config = WebConvertConfig(format="episodes", split="val", questions=QUESTIONS, workers=0)
    summary = convert_web(store.root, str(tmp_path), config)
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
    few = convert_web(store.root, str(tmp_path / "few"), replace(config, tasks=("steps",)))
    assert json.loads(Path(few.store, "manifest.json").read_text())["settings"]["tasks"] == ["steps"]


def test_what_a_store_does_not_record_is_not_asked(
    store: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_tasks, "_has_reward", lambda *_: False)
    monkeypatch.setattr(prediction_tasks, "_position_columns", lambda *_: [])
    config = WebConvertConfig(format="episodes", split="val", workers=0)
    summary = convert_web(store.root, str(tmp_path), config)
    assert set(summary.not_asked) == {"position", "success"}
    prompts = {prompt for prompts, _, _ in WebStore.open(summary.store).texts() for prompt in prompts}
    assert prompts == {"what was the robot told to do?", "how many steps lie between the pictures?"}
    with pytest.raises(ValueError, match=r"--tasks success: .* cannot answer it, no reward is above 0"):
        convert_web(store.root, str(tmp_path), replace(config, tasks=("success",)))
    with pytest.raises(ValueError, match="is of split 'val': give --split val"):
        convert_web(store.root, str(tmp_path), replace(config, split="train"))
    with pytest.raises(ValueError, match="--tasks is for --format episodes"):
        WebConvertConfig(format="jsonl", tasks=("steps",))
