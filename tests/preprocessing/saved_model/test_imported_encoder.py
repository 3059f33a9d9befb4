"""Imported encoders: found by path and by id, the same vectors however texts are grouped, damage told."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from preprocessing.conversion.embeddings import USE_ENCODER, UseEncoder, embed_texts, load_encoder
from preprocessing.saved_model.imported_encoder import CHECK, RECORD, WEIGHTS, ImportedEncoder, note, open_encoder
from tests.support.imported_encoders import TEXTS, write_encoder

OTHER = "saved-model:0123456789abcdef"


@pytest.fixture(autouse=True)
def encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where encoders are looked for."""
    monkeypatch.setenv("RTP_ENCODERS", str(tmp_path / "encoders"))
    return tmp_path / "encoders"


def test_a_folder_and_an_id_name_the_same_encoder(tmp_path: Path, encoders: Path) -> None:
    folder = write_encoder(tmp_path / "mine", OTHER)
    with pytest.raises(ValueError, match=f"{OTHER} is not in {encoders}: copy its folder there, or set RTP_ENCODERS"):
        load_encoder(OTHER)
    place = note(open_encoder(folder))
    assert place == encoders / "saved-model_0123456789abcdef"
    named, found = load_encoder(str(folder)), load_encoder(OTHER)
    assert isinstance(found, ImportedEncoder) and (named.id, found.folder) == (OTHER, str(place))
    np.testing.assert_array_equal(embed_texts(named, TEXTS), embed_texts(OTHER, TEXTS))


def test_use_is_the_imported_one_where_there_is_one(encoders: Path) -> None:
    assert isinstance(load_encoder("use"), UseEncoder)
    write_encoder(encoders / "large", USE_ENCODER)
    for name in ("use", USE_ENCODER):
        assert isinstance(load_encoder(name), ImportedEncoder)
    assert isinstance(load_encoder("use", use_model="elsewhere"), UseEncoder)  # asked for in so many words
    assert isinstance(load_encoder("universal-sentence-encoder/4"), UseEncoder)  # another one


def test_every_folder_of_the_variable_is_searched(
    tmp_path: Path, encoders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_encoder(tmp_path / "elsewhere", OTHER)
    monkeypatch.setenv("RTP_ENCODERS", f"{encoders}{os.pathsep}{folder}")
    assert load_encoder(OTHER).id == OTHER


def test_a_second_import_takes_the_place_of_the_first(tmp_path: Path) -> None:
    for name in ("first", "second"):
        note(open_encoder(write_encoder(tmp_path / name, OTHER)))
    encoder = load_encoder(OTHER)
    assert isinstance(encoder, ImportedEncoder) and Path(encoder.folder).resolve() == tmp_path / "second"


def test_the_check_of_the_import_is_made_again(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "mine", OTHER)
    load_encoder(str(folder)).require()
    other = write_encoder(tmp_path / "other", OTHER, seed=1)
    (other / CHECK).rename(folder / CHECK)
    with pytest.raises(ValueError, match=r"gives other vectors on this machine than TensorFlow did \(by .*e-01"):
        load_encoder(str(folder)).require()


def test_damage_is_told(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "mine", OTHER)
    weights = bytearray((folder / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (folder / WEIGHTS).write_bytes(weights)
    with pytest.raises(ValueError, match=r"mine is damaged: its files have another fingerprint"):
        load_encoder(str(folder)).encode(["a"])
    (folder / WEIGHTS).unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        load_encoder(str(folder)).encode(["a"])
    record = json.loads((folder / RECORD).read_text())
    for wrong in ("{", "[]", json.dumps(record | {"format": 2}), json.dumps({"format": 1})):
        (folder / RECORD).write_text(wrong)
        with pytest.raises(ValueError, match=r"encoder\.json is (damaged|not of format 1)"):
            open_encoder(folder)
    with pytest.raises(ValueError, match=r"holds no encoder\.json: give the folder that rtp import-encoder wrote"):
        load_encoder(str(tmp_path))


def test_half_a_letter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not valid Unicode"):
        open_encoder(write_encoder(tmp_path / "mine", OTHER)).encode(["open \ud83d"])
