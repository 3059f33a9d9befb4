"""Scores by a CLIP or SigLIP are the cosines that transformers computes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers

from preprocessing.filtering.filter_config import FilterConfig
from preprocessing.filtering.filter_store import DECISIONS, filter_store
from preprocessing.filtering.scorers import DualEncoder, _loaded
from preprocessing.store.images import decode_image
from tests.support.scored_pairs import encoded, scene, scored_store
from tests.support.tiny_clip import save_dual_encoder

TEXTS = ["the good", "the bad copy", "other words that are longer than eight places can hold"]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_scores_are_cosines_whatever_the_batch(tmp_path: Path, kind: str) -> None:
    folder = save_dual_encoder(tmp_path, kind)
    pictures = [encoded(scene(seed)) for seed in range(3)]
    scores = DualEncoder(folder=str(folder)).scores(pictures, TEXTS)
    model, tokenizer, processor, _ = _loaded(str(folder), None)
    with torch.inference_mode():
        seen = processor(images=[decode_image(picture) for picture in pictures], return_tensors="pt")
        vision = model.vision_model(**seen).pooler_output
        words = tokenizer(TEXTS, padding="max_length", max_length=8, truncation=True, return_tensors="pt")
        words.pop("token_type_ids", None)
        text = model.text_model(**words).pooler_output
        if kind == "clip":
            vision, text = model.visual_projection(vision), model.text_projection(text)
        expected = torch.nn.functional.cosine_similarity(vision, text)
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    np.testing.assert_allclose(DualEncoder(folder=str(folder), batch=2).scores(pictures, TEXTS), scores, atol=1e-6)


def test_a_store_is_filtered_by_a_model(tmp_path: Path) -> None:
    folder = save_dual_encoder(tmp_path / "clip", "clip")
    store = scored_store(tmp_path, files=2, per_file=10)
    config = FilterConfig(workers=0, scorer=f"clip:{folder}", keep=0.25, duplicates="keep")
    summary = filter_store(store, str(tmp_path / "out"), config)
    table = pq.read_table(Path(summary.store, DECISIONS)).to_pylist()
    best = sorted(range(20), key=lambda place: (-table[place]["score"], place))[:5]
    assert [place for place in range(20) if table[place]["verdict"] == "kept"] == sorted(best)
    assert filter_store(store, str(tmp_path / "out"), config).kept == 5
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")  # other weights under the same name
    with pytest.raises(ValueError, match="made with another scorer_files"):
        filter_store(store, str(tmp_path / "out"), config)


def test_a_folder_of_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="holds a model of type bert"):
        DualEncoder(folder=str(tmp_path)).require()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="names no model_type"):
        DualEncoder(folder=str(tmp_path)).require()
    transformers.CLIPConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="cannot be loaded"):
        DualEncoder(folder=str(tmp_path)).require()
