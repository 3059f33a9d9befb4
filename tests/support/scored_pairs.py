"""A store of pictures with captions and scores: good pairs, bad ones, copies of the good, and what is damaged."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from preprocessing.web.convert_web import WebConvertConfig, convert_web

FRENCH = "une voiture rouge dans la rue"


def scene(seed: int, *, size: int = 96) -> Image.Image:
    """A picture with detail of every size, less of the small, as in photographs; no two seeds are alike."""
    random = np.random.default_rng(seed)
    layers = [random.normal(0, 360 / side, (side, side, 3)) for side in (4, 8, 16, 32)]
    pixels = sum(
        np.asarray(Image.fromarray((layer + 128).clip(0, 255).astype(np.uint8)).resize((size, size), 3), float) - 128
        for layer in layers
    )
    return Image.fromarray((pixels + 128).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write_pairs(folder: Path, *, files: int = 3, per_file: int = 40) -> None:
    """Parquet files. Of every ten rows of a file: two good, one a smaller copy of the first, one good in French, five
    bad, and one without a score."""
    for number in range(files):
        rows = []
        for ten in range(per_file // 10):
            seed = 100 * number + 10 * ten
            good = scene(seed)
            rows.append({"image": encoded(good, quality=95), "caption": f"the good {seed}", "similarity": 0.9})
            rows.append({"image": encoded(scene(seed + 1)), "caption": f"the other {seed}", "similarity": 0.8})
            small = good.resize((72, 72), Image.Resampling.LANCZOS)
            rows.append({"image": encoded(small, quality=70), "caption": f"the copy {seed}", "similarity": 0.85})
            rows.append({"image": encoded(scene(seed + 2)), "caption": FRENCH, "similarity": 0.7})
            rows += [
                {"image": encoded(scene(seed + 3 + k)), "caption": f"the bad {seed}", "similarity": 0.1 + k / 100}
                for k in range(5)
            ]
            rows.append({"image": encoded(scene(seed + 9)), "caption": f"the unscored {seed}", "similarity": None})
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / f"train-{number:05}-of-{files:05}.parquet")


def scored_store(folder: Path, *, files: int = 3, per_file: int = 40) -> str:
    """The store of such pairs below `folder`."""
    write_pairs(folder / "pairs", files=files, per_file=per_file)
    config = WebConvertConfig(format="parquet", score="similarity", workers=0)
    return convert_web(str(folder / "pairs"), str(folder / "stores"), config).store
