"""`rtp inspect` on both kinds of store: what it cannot show, it says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipelines.cli import main


@pytest.fixture
def web(tmp_path: Path) -> str:
    folder = tmp_path / "questions"
    folder.mkdir()
    lines = [{"question": "what?", "answer": "that"}, {"question": "", "answer": ""}]
    (folder / "all.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert main(["preprocess", str(folder), str(tmp_path / "stores"), "--format", "jsonl", "--workers", "0"]) == 0
    return str(tmp_path / "stores")


def test_a_store_of_texts(web: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["inspect", web, "--verify", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["counts"] == {"examples_in": 2, "examples_out": 1, "quarantined": 1, "images": 0}
    assert sum(found["quarantine"].values()) == 1
    for flags in (["--html", str(tmp_path / "page.html")], ["--audit"]):
        assert main(["inspect", web, *flags]) == 2
        assert "holds image-text examples: --html and --audit are for" in capsys.readouterr().err
    shard = next(Path(web).rglob("shard-*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert main(["inspect", web, "--verify"]) == 2
    assert f"{shard} has" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--split", "train"], "holds split 'val', not 'train'"),
        (["--html", "s3://bucket/page.html"], "must be a local file"),
        (["--episodes", "-1"], "--episodes must be 0 or more, got -1"),
        (["--reference", "elsewhere"], "--reference is for the audit's colours: add --audit"),
    ],
)
def test_what_cannot_be_shown(store: str, flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", store, *flags]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("file", "blob"), [("audit.json", b"{"), ("audit.json", b'{"verdicts": 5}'), ("quarantine.jsonl", b"{\n")]
)
def test_damaged_files_beside_the_manifest_are_named(
    store: str, file: str, blob: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(store, tmp_path / "copy")
    (tmp_path / "copy" / file).write_bytes(blob)
    assert main(["inspect", str(tmp_path / "copy")]) == 2
    assert f"{tmp_path}/copy/{file}" in capsys.readouterr().err
