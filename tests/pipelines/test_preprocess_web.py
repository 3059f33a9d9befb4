from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from pipelines.cli import main


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "colours"
    folder.mkdir()
    Image.new("RGB", (20, 20), (255, 0, 0)).save(folder / "a.png")
    (folder / "b.png").write_bytes(b"no image")
    lines = [{"image": f"{name}.png", "question": "which colour?", "answer": "red"} for name in "ab"]
    (folder / "all.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_the_command_makes_a_store_and_says_what_was_left_out(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["preprocess", str(source), str(tmp_path / "out"), "--format", "jsonl", "--workers", "0", "--json"]
    assert main(words) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1].startswith("examples in 2 = out 1 + quarantined 1; 1 images; 1 of 1 shards converted")
    assert json.loads(said[-1])["store"] == str(tmp_path / "out/colours/1.0.0/train")
    assert main(words) == 0
    assert "nothing left to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--format", "vqav2"], "holds no *questions.json: is --format the right one?"),
        (["--format", "vqa"], "--format cannot be 'vqa': give one of vqav2"),
        (["--format", "jsonl", "--min-side", "0"], "--min-side 0 must be between 1 and"),
        (["--format", "jsonl", "--encoder", "use"], "there is no option --encoder"),
    ],
)
def test_bad_input_is_one_sentence(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main(["preprocess", str(source), str(tmp_path / "out"), *flags]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_account_names_what_counted_once_and_what_nothing_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "gqa"
    folder.mkdir()
    Image.new("RGB", (20, 20), (255, 0, 0)).save(folder / "7.png")
    questions = {f"q{n}": {"question": f"is it {n}?", "answer": "yes", "imageId": "7"} for n in range(3)}
    (folder / "val_all_questions.json").write_text(json.dumps(questions))
    (folder / "val_balanced_questions.json").write_text(json.dumps(dict(list(questions.items())[:1])))
    words = ["preprocess", str(folder), str(tmp_path / "out"), "--format", "gqa", "--split", "val", "--workers", "0"]
    assert main(words) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1].startswith("examples in 4 = out 3 + quarantined 0 + duplicates 1; 1 images;")
    assert said[2].startswith("questions that stand in several files count once; --split val_balanced takes those")
    with tarfile.open(tmp_path / "gqa/train.tar", "w") as tar:
        (folder / "7.txt").write_text("red")
        (folder / "7.cls").write_text("3")
        for name in ("7.png", "7.txt", "7.cls"):
            tar.add(folder / name, name)
    words = ["preprocess", str(folder), str(tmp_path / "out"), "--format", "webdataset", "--workers", "0"]
    assert main(words) == 0
    store = tmp_path / "out/gqa/1.0.0/train"
    assert "examples in 1 = out 1 + quarantined 0; members not read: 1 .cls; 1 images" in capsys.readouterr().out
    assert main(["inspect", str(store)]) == 0
    assert "members not read: 1 .cls" in capsys.readouterr().out
