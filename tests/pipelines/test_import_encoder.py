"""`rtp import-encoder` on real SavedModels: TensorFlow's vectors without TensorFlow, from the store to serving."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.cli import main
from pipelines.publishing.instructions import Instructions
from preprocessing.conversion.embeddings import USE_ENCODER
from preprocessing.saved_model import import_encoder
from preprocessing.saved_model.imported_encoder import open_encoder
from preprocessing.saved_model.known_vectors import _USE_LARGE_5, is_use_large_5
from preprocessing.store.episode_store import EpisodeStore
from tests.preprocessing.conversion.test_embeddings import needs_tensorflow
from tests.support.command_line import SAMPLE

SCRIPT = Path(__file__).resolve().parents[1] / "support/sentence_encoder.py"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of SavedModels by kind."""
    needs_tensorflow()
    folder = tmp_path_factory.mktemp("models")
    texts = folder / "texts.json"
    texts.write_text(json.dumps(import_encoder.CHECK_TEXTS))
    run = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), str(texts)],
        env={"PYTHONPATH": str(SCRIPT.parents[2]), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return folder


@pytest.fixture(scope="module")
def exported(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What TensorFlow's process leaves of the plain one."""
    folder = tmp_path_factory.mktemp("exported")
    import_encoder._export("plain", models / "plain", folder)
    return folder


@pytest.fixture(autouse=True)
def _encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RTP_ENCODERS", str(tmp_path / "encoders"))


@pytest.fixture
def reuse(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Imports take what TensorFlow's process left before."""

    def export(source: str, folder: Path, out: Path) -> None:
        before = exported if folder.name == "plain" else folder.parent / "exported" / folder.name
        shutil.copytree(before, out, dirs_exist_ok=True)

    monkeypatch.setattr(import_encoder, "_export", export)


def test_from_the_saved_model_to_a_new_instruction_of_a_served_policy(
    models: Path, exported: Path, reuse: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "encoder"
    assert main(["import-encoder", str(models / "plain"), str(out), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["largest_difference"] <= 1e-5 and summary["batched"]
    assert summary["encoder"] == f"saved-model:{summary['fingerprint'][:16]}"
    files = sorted(path.name for path in out.iterdir())
    assert files == ["check.safetensors", "encoder.json", "encoder.safetensors", "graph.json"]
    encoder = open_encoder(out)
    encoder.require()
    assert "" in json.loads((out / "encoder.json").read_text())["check"]
    own = np.load(exported / "single.npy")
    np.testing.assert_allclose(encoder.encode(import_encoder.CHECK_TEXTS), own, rtol=0, atol=1e-5)
    assert np.linalg.norm(own[0] - own[1]) > 0.1  # they are no constant

    arguments = ["--split", "val", "--limit", "1", "--workers", "0", "--encoder", str(out)]
    assert main(["preprocess", str(SAMPLE), str(tmp_path / "stores"), *arguments]) == 0
    store = EpisodeStore.open(str(next((tmp_path / "stores").rglob("manifest.json")).parent))
    assert store.manifest.encoder == store.contract.encoder == encoder.id
    table = pq.read_table(Path(store.root, "instructions.parquet")).to_pylist()
    np.testing.assert_allclose(table[0]["embedding"], encoder.encode([table[0]["text"]])[0], atol=1e-6)
    served = Instructions.of_stores(store.contract.encoder, [store])
    np.testing.assert_array_equal(served.vector("a new thing to do"), encoder.encode(["a new thing to do"])[0])


def test_texts_that_change_each_other_are_embedded_one_by_one(models: Path, reuse: None, tmp_path: Path) -> None:
    said: list[str] = []
    imported = import_encoder.import_encoder(
        str(models / "batch-dependent"), str(tmp_path / "encoder"), say=said.append
    )
    assert not imported.batched
    # It refuses an empty text, which therefore is not compared.
    assert json.loads((tmp_path / "encoder/encoder.json").read_text())["check"] == list(import_encoder.CHECK_TEXTS[:-1])
    assert said[-1].endswith("batch-dependent has no vector for an empty text: only the other 18 are compared")
    encoder = open_encoder(tmp_path / "encoder")
    texts = ["open the drawer", "move the cup"]
    np.testing.assert_array_equal(encoder.encode(texts)[0], encoder.encode(texts[:1])[0])


def test_models_of_tensorflow_1_are_taken(models: Path, reuse: None, tmp_path: Path) -> None:
    imported = import_encoder.import_encoder(str(models / "session"), str(tmp_path / "encoder"))
    assert imported.largest_difference <= 1e-5 and not imported.batched
    vectors = open_encoder(tmp_path / "encoder").encode(["open the drawer", "open drawer the", "move arm"])
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    assert np.abs(vectors[0] - vectors[2]).max() > 0.01


def test_what_cannot_be_imported_leaves_nothing(
    models: Path, reuse: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import-encoder", str(models / "loop"), str(tmp_path / "new/encoder")]) == 2
    said = capsys.readouterr().err
    assert "the op TensorListReserve (" in said and "cannot be converted" in said and said.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_what_tensorflow_refuses_is_told_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_tensorflow()
    (tmp_path / "model").mkdir()
    (tmp_path / "model/saved_model.pb").touch()
    script = tmp_path / "export.py"
    monkeypatch.setattr(import_encoder, "_EXPORT", script)
    for line in ("print('refused: the op X (a/b) cannot be converted', file=sys.stderr); sys.exit(2)", "1 / 0"):
        script.write_text(f"import sys; print('noise', file=sys.stderr); {line}")
        assert main(["import-encoder", str(tmp_path / "model"), str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "model cannot be imported: " in said
        assert "the op X (a/b) cannot be converted" in said or "ZeroDivisionError: division by zero" in said
    assert main(["import-encoder", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "holds no saved_model.pb: give SOURCE the folder of a" in capsys.readouterr().err


def test_other_vectors_are_refused(
    models: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(source: str, folder: Path, out: Path) -> None:
        shutil.copytree(exported, out, dirs_exist_ok=True)
        np.save(out / "single.npy", changed)

    monkeypatch.setattr(import_encoder, "_export", export)
    changed = np.load(exported / "single.npy") + np.float32(3e-5)
    with pytest.raises(ValueError, match=r"without TensorFlow its vectors differ by 3\.\de-05, and 1e-05 is allowed"):
        import_encoder.import_encoder(str(models / "plain"), str(tmp_path / "encoder"))
    changed = changed[:, :256]
    with pytest.raises(ValueError, match=r"of 19 texts have the shape \(19, 256\), needed is \(19, 512\)"):
        import_encoder.import_encoder(str(models / "plain"), str(tmp_path / "encoder"))
    assert list(tmp_path.iterdir()) == []


def test_ids_are_checked(models: Path, reuse: None, tmp_path: Path) -> None:
    plain, out = str(models / "plain"), str(tmp_path / "encoder")
    with pytest.raises(ValueError, match="is not what this model is: it gives other vectors than the episodes"):
        import_encoder.import_encoder(plain, out, encoder_id=USE_ENCODER)
    with pytest.raises(ValueError, match="--id hash-512 names no Universal Sentence Encoder"):
        import_encoder.import_encoder(plain, out, encoder_id="hash-512")
    other = "universal-sentence-encoder/4"
    assert import_encoder.import_encoder(plain, out, encoder_id=other).encoder == other
    with pytest.raises(ValueError, match="exists: name a new folder"):
        import_encoder.import_encoder(plain, out)


def test_large_5_is_known_by_its_vectors() -> None:
    def embed(texts, shift=0.0):
        vectors = np.zeros((len(texts), 512), np.float32)
        vectors[:, ::32] = [_USE_LARGE_5[text] for text in texts]
        vectors[-1, 0] += shift
        return vectors

    assert is_use_large_5(embed)
    assert not is_use_large_5(lambda texts: embed(texts, 0.01))
    assert not is_use_large_5(lambda texts: np.zeros((len(texts), 512), np.float32))
