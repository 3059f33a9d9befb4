"""What names a model, and what is said of a path that does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.publishing.trained_model import ACCEPTED, describe_trained, load_trained


@pytest.mark.parametrize("read", [load_trained, describe_trained])
@pytest.mark.parametrize(
    ("holds", "words"),
    [
        (None, "is not there"),
        ("", "holds no model"),
        ("manifest.json", "is an episode store, not a model"),
        ("MLmodel", "is an MLflow model folder, whose policy lies in artifacts/policy"),
        ("checkpoints/", "is a run without a complete checkpoint"),
        ("metrics.jsonl", "is a run without a complete checkpoint"),
    ],
)
def test_a_path_without_a_model_is_called_what_it_is(read, holds: str | None, words: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    place = tmp_path / "here"
    if holds is not None:
        place.mkdir()
    if holds and holds.endswith("/"):
        (place / holds).mkdir()
    elif holds:
        (place / holds).write_text("{}")
    with pytest.raises(FileNotFoundError) as caught:
        read(str(place))
    assert str(caught.value) == f"{place} {words}: give {ACCEPTED}"


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"is a file, not the folder of a model: give a run's output folder"):
        load_trained(str(tmp_path / "model.safetensors"))


def test_a_misspelt_registered_name_is_told_the_form() -> None:
    with pytest.raises(FileNotFoundError, match=r"models:arm@champion is not there: give .* or models:/NAME@ALIAS"):
        load_trained("models:arm@champion")


@pytest.mark.parametrize("name", ["models:/", "models:/arm", "models:/@champion"])
def test_a_registered_model_is_named_with_its_version_or_alias(name: str) -> None:
    with pytest.raises(ValueError, match=r"names no version of a model: give models:/NAME@ALIAS or models:/NAME/VER"):
        load_trained(name)
