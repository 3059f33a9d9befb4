"""Damaged image-text data through the whole conversion and the loader: no crash, no hang, nothing lost, all readable.

Each case writes a small source in one of the layouts, damages it in one of the ways below and converts it. A conversion
must end with a verified store whose account adds up and counts at least what the source holds, or with one of the
sentences of `REFUSALS`. What it accepted is then read for a full epoch, beside robot steps, as RT-2 trains on it.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image
from preprocess_data import write_dataset
from web_samples import LAYOUTS, Files, Members, held, json_bytes, packed, table_of, unpacked

from pipelines.catalogue import load_recipe
from pipelines.training.co_fine_tuning import CoFineTuningConfig
from pipelines.training.data import resolved, training_contract
from preprocessing.convert import ConvertConfig, convert
from preprocessing.loading.loader import Loader
from preprocessing.loading.prompt_reader import PromptReader
from preprocessing.loading.reader import LoaderConfig
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.integrity import require_whole
from preprocessing.store.web_store import WebStore
from preprocessing.web.convert_web import WebConvertConfig, convert_web
from rt_models.language.prompts import RT2Text

REFUSALS = (
    *(
        "not one of",
        "cannot be read as JSON",
        "is not laid out as",
        "has no list",
        "holds no",
        "holds 2 files",
        "has no train/questions.json",
    ),
    *("is cut or no tar archive", "is damaged or no Parquet file"),
)
TIMEOUT_S = 60
_MOST_CHARACTERS = 200
_MOST_TOKENS = 4 * _MOST_CHARACTERS + 64  # a character has four bytes at most, and a token one at least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500, help="damaged sources (default: 500)")
    parser.add_argument("--seed", type=int, default=0, help="of the damage (default: 0)")
    arguments = parser.parse_args()
    began, ends, read = time.monotonic(), Counter[tuple[str, str, str]](), 0
    cases = [(name, kind) for name in LAYOUTS for kind in KINDS]
    with tempfile.TemporaryDirectory() as folder:
        trained = Trained(Path(folder) / "robots")
        for number in range(arguments.count):
            rng = random.Random(f"{arguments.seed} {number}")
            name, kind = cases[number % len(cases)]
            files = KINDS[kind](name, LAYOUTS[name](), rng)
            least = 0 if kind == "order" and name != "webdataset" else held(name, files)  # files may be another split's
            try:
                outcome, examples = _outcome(Path(folder) / "case", name, files, least, trained)
            except Exception as error:
                error.add_note(f"case {number}: {name}, {kind}")
                raise
            ends[name, kind, outcome] += 1
            read += examples
            if sys.stderr.isatty():
                print(f"\r{number + 1} of {arguments.count}", end="", file=sys.stderr)
    for (name, kind, outcome), count in sorted(ends.items()):
        print(f"{name:11} {kind:8} {outcome:32} {count:4}")
    seconds = round(time.monotonic() - began, 1)
    print(f"{arguments.count} damaged sources in {seconds} s: no crash, no hang; {read} examples accepted and read")
    print(json.dumps({"benchmark": "web_mutations", "count": arguments.count, "seed": arguments.seed, "read": read}))


class Trained:
    """What a run of RT-2 reads web data with: a store of robot steps, its contract, and texts as tokens."""

    def __init__(self, folder: Path) -> None:
        source = write_dataset(folder, num_episodes=2, num_steps=3, num_shards=1, size=(16, 16))
        self.robots = EpisodeStore.open(convert(str(source), str(folder / "stores"), ConvertConfig(workers=0)).store)
        recipe = load_recipe("rt2_tiny")
        alone = replace(recipe, co_fine_tuning=CoFineTuningConfig(robot_share=1))
        chosen = resolved(alone, [self.robots])
        self.contract, text = training_contract(chosen, [self.robots]), chosen.model.build_text()  # pyright: ignore[reportAttributeAccessIssue]
        self.text = RT2Text(text.config, text.tokenizer, _MOST_TOKENS)

    def read_epoch(self, store: WebStore) -> None:
        """Every sample of one epoch over the robots' steps and `store`'s examples."""
        stores = [self.robots, store]
        reader = PromptReader(stores, self.contract, self.text, num_frames=1, config=LoaderConfig())
        with closing(reader):
            loader, total, seen = (
                Loader(reader, seed=0, lanes=1, global_batch=4, micro_batch=4),
                sum(reader.store_rows),
                0,
            )
            for batch in loader:
                seen += len(batch["tokens"])
                assert batch["frames"].shape[1:] == (16, 16, 3)
                if seen >= total:
                    break


def _outcome(folder: Path, name: str, files: Files, least: int, trained: Trained) -> tuple[str, int]:
    """How the conversion of `files`, which hold `least` examples at least, ended, and the examples read.

    Raises whatever should not have been raised.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for path, data in files.items():
        (folder / "source" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "source" / path).write_bytes(data)
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(TIMEOUT_S)
    config = WebConvertConfig(format=name, max_characters=_MOST_CHARACTERS, workers=0)  # pyright: ignore[reportArgumentType]
    try:
        summary = convert_web(str(folder / "source"), str(folder / "out"), config)
        store = WebStore.open(summary.store)
        require_whole(store, checksum_bytes=float("inf"))
        quarantined = len(Path(store.root, "quarantine.jsonl").read_text().splitlines())
        assert summary.examples_in == summary.examples_out + summary.quarantined + summary.duplicates
        assert summary.examples_in >= least, (summary, least)
        assert quarantined == summary.quarantined and summary.examples_out == store.num_examples
        trained.read_epoch(store)
    except (ValueError, FileNotFoundError) as error:
        if not any(text in str(error) for text in REFUSALS) or isinstance(error, UnicodeError):
            raise
        return f"refused: {next(text for text in REFUSALS if text in str(error))}", 0
    finally:
        signal.alarm(0)
    return "nothing lost" if not quarantined else "quarantined", summary.examples_out


def _late(*_: object) -> None:
    raise TimeoutError(f"a conversion of a few kilobytes took {TIMEOUT_S} s")


# --- Kinds of damage: (layout, files, random numbers) -> damaged files ---


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _flip(data: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def _splice(data: bytes, rng: random.Random) -> bytes:
    """Bytes inserted, or left out, somewhere."""
    place, length = rng.randrange(len(data)), rng.randint(1, 3000)
    noise = rng.randbytes(length) if rng.random() < 0.5 else b""
    return data[:place] + noise + data[place + (0 if noise else length) :]


def _stray(data: bytes, rng: random.Random) -> bytes:
    """Bytes before the end of a picture, or behind it."""
    place = len(data) - rng.choice((0, 2, 12))
    return data[:place] + rng.randbytes(rng.randint(1, 40)) + data[place:]


def of_bytes(change: Callable[[bytes, random.Random], bytes]) -> Callable[[str, Files, random.Random], Files]:
    """One file that is no picture is changed."""

    def damage(_: str, files: Files, rng: random.Random) -> Files:
        path = rng.choice([path for path in files if path.endswith((".json", ".jsonl", ".tar", ".gz", ".parquet"))])
        return files | {path: change(files[path], rng)}

    return damage


def spoil(name: str, files: Files, rng: random.Random) -> Files:
    """One picture, wherever it lies, is damaged, empty, of another kind, or none."""

    def spoilt(data: bytes) -> bytes:
        changes = (
            _cut,
            _flip,
            _flip,
            _splice,
            _stray,
            lambda *_: b"",
            lambda *_: b"text",
            lambda *_: _deep(),
            lambda *_: _moving(),
        )
        return rng.choice(changes)(data, rng)

    if name == "webdataset":
        return _repacked(
            files, rng, lambda members: [(n, spoilt(d) if n.endswith(_SUFFIXES) else d) for n, d in members]
        )
    if name == "parquet":
        (path,) = files
        rows = pq.read_table(io.BytesIO(files[path])).to_pylist()
        row = rng.choice(rows)
        row["image"] = rng.choice(
            [None, {"bytes": None, "path": "a.png"}, {"bytes": spoilt(row["image"]["bytes"]), "path": ""}]
        )
        return {path: table_of(rows)}
    path = rng.choice([path for path in files if path.endswith(_SUFFIXES)])
    if rng.random() < 0.2:
        return {kept: data for kept, data in files.items() if kept != path}
    return files | {path: spoilt(files[path])}


_SUFFIXES = (".jpg", ".png", ".webp")


def _deep() -> bytes:
    out = io.BytesIO()
    Image.new("I;16", (16, 12), 3000).save(out, "PNG")
    return out.getvalue()


def _moving() -> bytes:
    out = io.BytesIO()
    frames = [Image.new("RGB", (16, 12), (n * 90, 0, 0)) for n in range(3)]
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    return out.getvalue()


THINGS: tuple[Any, ...] = (
    *(None, True, float("nan"), float("inf"), -1, 0, 1.5, 10**30, "", " ", "x", "\ud800", "x" * 300, "<image>", "../7"),
    *([], {}, [None], [{}], [["x"]], {"answer": None}, "\0", "日" * 100, [1, "a"], {"from": "human", "value": 7}),
)


def retype(name: str, files: Files, rng: random.Random) -> Files:
    """Somewhere in the annotations stands another thing, nothing, or the same thing twice."""
    if name == "webdataset":
        return _repacked(
            files,
            rng,
            lambda members: [
                (n, json_bytes(_retyped(json.loads(d), rng)) if n.endswith(".json") and rng.random() < 0.5 else d)
                for n, d in members
            ],
        )
    if name == "parquet":
        (path,) = files
        rows = pq.read_table(io.BytesIO(files[path])).to_pylist()
        column = rng.choice(["question", "answers", "caption", "image", "question_id"])
        things = rng.choice(
            [[1, 2], [1.5, float("nan")], [True], ["", "x"], [b"x", b"\xff"], [["x"], [None]], [None], [[["x"]]]]
        )
        return {path: table_of([row | {column: rng.choice(things)} for row in rows])}
    path = rng.choice([path for path in files if path.endswith((".json", ".jsonl"))])
    if name == "jsonl":
        lines = files[path].split(b"\n")
        place = rng.randrange(len(lines))
        lines[place] = rng.choice(
            [
                lines[place] + b",",
                lines[place] * 2,
                b"",
                b"\xef\xbb\xbf" + lines[place] + b"\r",
                *[json_bytes(_retyped(json.loads(lines[place]), rng))] * 5,
            ]
        )
        return files | {path: b"\n".join(lines)}
    return files | {path: json_bytes(_retyped(json.loads(files[path]), rng))}


def _retyped(value: Any, rng: random.Random) -> Any:
    """`value` with something in it changed, the deeper the likelier."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return rng.choice(THINGS)
    if isinstance(value, list):
        place = rng.randrange(len(value))
        kept = [*value[:place], *value[place + 1 :]]
        return rng.choice(
            [kept, [*value, value[place]], *[[*value[:place], _retyped(value[place], rng), *value[place + 1 :]]] * 6]
        )
    key = rng.choice(list(value))
    kept = {k: v for k, v in value.items() if k != key}
    return rng.choice([kept, {**kept, "other": value[key]}, *[{**value, key: _retyped(value[key], rng)}] * 6])


def rearrange(name: str, files: Files, rng: random.Random) -> Files:
    """Members of archives, or files, in another order, twice, under other names, missing, or as links."""
    if name == "webdataset":
        return _repacked(files, rng, lambda members: _rearranged(members, rng), links=rng.random() < 0.3)
    path = rng.choice(list(files))
    stem, _, suffix = path.rpartition(".")
    other = rng.choice(
        [f"{stem}.0.{suffix}", f"{stem}.{suffix.upper()}", f"val/{path}", f"train/copy/{path}", f"{stem}_dev.{suffix}"]
    )
    moved = files if rng.random() < 0.5 else {p: d for p, d in files.items() if p != path}
    return moved | {other: files[path]}


def _rearranged(members: Members, rng: random.Random) -> Members:
    place = rng.randrange(len(members))
    name, data = members[place]
    stem, _, suffix = name.partition(".")
    other = rng.choice(
        [f"{stem}.0.{suffix}", name.upper(), f"{stem}.bin", stem, f".{name}", f"a/{name}", f"{stem}.{suffix}.jpg"]
    )
    return rng.choice(
        [
            rng.sample(members, len(members)),
            sorted(members, key=lambda member: member[0].partition(".")[2]),
            [*members, members[place]],
            [*members[: place + 1], members[place], *members[place + 1 :]],
            [*members[:place], *members[place + 1 :]],
            [*members[:place], (other, data), *members[place + 1 :]],
        ]
    )


def _repacked(files: Files, rng: random.Random, change: Callable[[Members], Members], *, links: bool = False) -> Files:
    path = rng.choice(list(files))
    members = change(unpacked(files[path]))
    linked = (rng.choice(members)[0],) if links and members else ()
    data = packed(members, links=linked)
    return files | {path: gzip.compress(data) if path.endswith("gz") else data}


KINDS: dict[str, Callable[[str, Files, random.Random], Files]] = {
    "cut": of_bytes(_cut),
    "bits": of_bytes(_flip),
    "splice": of_bytes(_splice),
    "picture": spoil,
    "types": retype,
    "order": rearrange,
}

if __name__ == "__main__":
    main()
