"""OWL-ViT and OWLv2 of transformers as detectors of named objects in one picture. Weights from safetensors only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

_KINDS = ("owlvit", "owlv2")
_QUERY = "An image of a {}"  # MOO, arXiv 2303.00905


@dataclass(frozen=True, kw_only=True)
class Detection:
    """The best box of one query: its centre as fractions (x, y) of the frame, and its score in 0..1."""

    centre: tuple[float, float]
    score: float


@dataclass(frozen=True, kw_only=True)
class OwlDetector:
    """`folder` holds the model, tokenizer and image processor, as transformers saves them."""

    folder: str
    device: str | None = None
    """Of torch; None: a GPU where this process may use one, else the CPU."""

    def require(self) -> None:
        """Raise ValueError or OSError if there is no such model."""
        path = Path(self.folder, "config.json")
        if not path.is_file():
            raise FileNotFoundError(f"{self.folder} has no config.json: give the folder of an OWL-ViT of transformers")
        try:
            kind = json.loads(path.read_text())["model_type"]
        except (ValueError, LookupError, TypeError):
            raise ValueError(f"{path} names no model_type: give the folder of an OWL-ViT of transformers") from None
        if kind not in _KINDS:
            raise ValueError(f"{self.folder} holds a model of type {kind}: give one of {', '.join(_KINDS)}")
        _loaded(self.folder, self.device)

    def detect(self, frame_HWC: np.ndarray, names: Sequence[str]) -> list[Detection]:
        """The best box of each named object in uint8 (H, W, 3)."""
        import torch

        model, tokenizer, processor, device = _loaded(self.folder, self.device)
        queries = [_QUERY.format(name) for name in names]
        length = model.config.text_config.max_position_embeddings
        words = tokenizer(queries, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        pixels = processor(images=frame_HWC, return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            out = model(
                input_ids=words["input_ids"].to(device),
                attention_mask=words["attention_mask"].to(device),
                pixel_values=pixels.to(device),
            )
        score_PQ = out.logits[0].float().sigmoid().cpu().numpy()
        box_P4 = out.pred_boxes[0].float().cpu().numpy()
        best_Q = score_PQ.argmax(axis=0)
        scale = _scale(model.config.model_type, *frame_HWC.shape[:2])
        centres = np.clip(box_P4[best_Q, :2] * scale, 0, 1)
        return [
            Detection(centre=(float(x), float(y)), score=float(score_PQ[best, query]))
            for query, (best, (x, y)) in enumerate(zip(best_Q, centres, strict=True))
        ]


def _scale(kind: str, height: int, width: int) -> np.ndarray:
    """From fractions of what the model saw to those of the frame: OWLv2 pads it to a square at the right and below."""
    side = max(height, width)
    return np.array([side / width, side / height]) if kind == "owlv2" else np.ones(2)


@lru_cache(maxsize=1)
def _loaded(folder: str, wanted: str | None) -> tuple[Any, Any, Any, str]:
    """(model, tokenizer, image processor, device), once a process."""
    try:
        import torch
        from transformers import AutoImageProcessor, AutoModelForZeroShotObjectDetection, AutoTokenizer
    except ImportError:
        raise ValueError("OWL-ViT needs transformers: pip install 'rt-pipelines[vlm]'") from None
    device = wanted or ("cuda" if torch.cuda.is_available() else "cpu")
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        model = AutoModelForZeroShotObjectDetection.from_pretrained(folder, use_safetensors=True, **local)
        tokenizer = AutoTokenizer.from_pretrained(folder, **local)
        return model.to(device).eval(), tokenizer, AutoImageProcessor.from_pretrained(folder, **local), device
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{folder} cannot be loaded as an OWL-ViT of transformers ({reason})") from None
