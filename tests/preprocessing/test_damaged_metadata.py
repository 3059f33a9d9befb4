"""features.json and dataset_info.json that lie or are damaged: one sentence names the file, and nothing is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import main
from preprocessing.rlds import open_dataset


def refused(source: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What `rtp preprocess` says on its way out with code 2."""
    assert main(["preprocess", str(source), str(out), "--workers", "0"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and not out.exists()
    return said


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
@pytest.mark.parametrize(
    ("blob", "words"),
    [
        (b"", "cannot be read as JSON"),
        (b'{"splits": [', "cannot be read as JSON"),
        (b"\xff\xfe\x00", "cannot be read as text"),
        (b"[]", "is not as it was written (it holds a list, not an object)"),
        (b"null", "is not as it was written"),
        (b"[" * 100_000, "is not as it was written"),
    ],
)
def test_what_is_no_json_object(
    make_bridge: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    blob: bytes,
    words: str,
) -> None:
    source = make_bridge([2])
    (source / name).write_bytes(blob)
    said = refused(source, tmp_path / "out", capsys)
    assert f"{source}/{name} {words}" in said and "download it again" in said


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({}, ": the root is a feature without a class, not supported"),
        ({"featuresDict": []}, " is not as it was written"),
        ({"featuresDict": {"features": {"steps": 3}}}, " is not as it was written"),
        ({"featuresDict": {"features": {"steps": {"sequence": {}}}}}, " is not as it was written (no 'feature')"),
        ({"tensor": {"dtype": "float31"}}, ": the root has dtype 'float31', which NumPy does not know"),
    ],
)
def test_features_that_are_none(
    make_bridge: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], tree: Any, words: str
) -> None:
    source = make_bridge([2])
    (source / "features.json").write_text(json.dumps(tree))
    assert f"{source}/features.json{words}" in refused(source, tmp_path / "out", capsys)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"splits": None}, " is not as it was written"),
        ({"splits": {"train": {}}}, " is not as it was written"),
        ({"splits": [{"shardLengths": ["1"]}]}, " is not as it was written (no 'name')"),
        ({"splits": [{"name": "train", "shardLengths": ["x"]}]}, ": 'x' is no whole number"),
        ({"splits": [{"name": "train", "shardLengths": [-2]}]}, ": split train has a shard of -2 records"),
        ({"splits": [{"name": "../train", "shardLengths": [1]}]}, ": '../train' cannot be the name of a folder"),
        ({"splits": [{"name": "train", "shardLengths": [1], "filepathTemplate": 5}]}, " is not as it was written"),
        ({"version": "../../1.0.0"}, ": '../../1.0.0' cannot be the name of a folder"),
        ({"name": "a/b"}, ": 'a/b' cannot be the name of a folder"),
    ],
)
def test_an_info_that_is_none(
    make_bridge: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    words: str,
) -> None:
    source = make_bridge([2])
    info = json.loads((source / "dataset_info.json").read_text()) | change
    (source / "dataset_info.json").write_text(json.dumps(info))
    assert f"{source}/dataset_info.json{words}" in refused(source, tmp_path / "out", capsys)


def test_an_info_without_names_takes_those_of_the_folders(
    make_bridge: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_bridge([2])
    (source / "dataset_info.json").write_text(json.dumps({"splits": []}))
    for folder, given in ((source, "."), (source.parent, "1.0.0"), (source.parent.parent, "source/1.0.0/")):
        monkeypatch.chdir(folder)
        opened = open_dataset(given)
        assert (opened.name, opened.version) == ("source", "1.0.0")


def test_the_newest_of_several_versions_is_proposed(
    make_bridge: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_bridge([2])
    for version in ("9.0.0", "10.1.0"):
        shutil.copytree(source, source.parent / version)
    assert f"give its version folder {source.parent}/10.1.0" in refused(source.parent, tmp_path / "out", capsys)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--image-size", "70000x70000"], "at most 8192 a side"),
        (["--resize", "crop"], "--resize crop is for frames of another size: add --image-size"),
        (["--use-model", "/nowhere"], "--use-model is for --encoder use, and the encoder here is dataset"),
        (["--limit", "many"], "--limit"),
        (["--split"], "--split"),
    ],
)
def test_options_that_would_be_ignored_or_cannot_be(
    make_bridge: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    words: str,
) -> None:
    out = tmp_path / "out"
    assert main(["preprocess", str(make_bridge([2])), str(out), "--workers", "0", *flags]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and "---" not in said
    assert not out.exists()


def test_an_empty_out_is_not_the_root_folder(make_bridge: Callable[..., Path]) -> None:
    assert main(["preprocess", str(make_bridge([2])), "", "--workers", "0"]) == 2
