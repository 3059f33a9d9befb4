"""Settings of a conversion of image-text data (`convert_web`)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from preprocessing.web.prediction_tasks import Task
from preprocessing.web.sources import WITH_EXTRA_FIELDS, Format


@dataclass(frozen=True, kw_only=True)
class WebConvertConfig:
    """Settings of a conversion of image-text data."""

    format: Format
    """Layout of SOURCE: vqav2, okvqa, gqa, coco (captions), easy_vqa, jsonl, llava, webdataset (tars), parquet, or
    episodes: a store of robot episodes, about whose frames RT-2's prediction tasks are asked."""
    split: str | None = None
    """Split to convert, by default train: files and folders that carry its exact name (val is also val2014, never
    test-dev or val_seen), or all if none is named after a split. Of GQA, val is all questions, val_balanced those
    alone. Of episodes, by default that of the store, where SOURCE holds one alone."""
    images: str | None = None
    """Folder of the images, if they do not lie below SOURCE (formats with annotations in JSON)."""
    dataset: str | None = None
    """Name of the store; by default the name of SOURCE's folder, of episodes that of their dataset and _questions."""
    version: str = "1.0.0"
    """Version that the store is filed under."""
    min_side: int = 8
    """Smallest side of an image in pixels."""
    max_side: int = 8192
    """Largest side of an image in pixels."""
    max_characters: int = 1000
    """Longest question or answer."""
    pictures: int = 1
    """Most pictures of one example (jsonl, llava, parquet, webdataset). Above 1, image or images of a record may be a
    list, pairs a list of {image, text} that become one example, and a key of an archive may have several; the order is
    kept. With 1 such examples go to quarantine."""
    tasks: tuple[Task, ...] = ()
    """What is asked about episodes: instruction, position, steps (between two frames), success; by default all that the
    store can answer."""
    questions: int = 4
    """Questions of each task about one episode; about the instruction one."""
    score: str = ""
    """Field of the source with the similarity of picture and text (jsonl, llava, webdataset, parquet), a number: it
    goes into the store's column score, which rtp filter reads."""
    language: str = ""
    """Field of the source with the language of the text; it goes into the store's column language."""
    workers: int | None = None
    """Shards converted at once; by default as many as Ray has CPUs, 0 converts in this process without Ray."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_side <= self.max_side:
            raise ValueError(f"--min-side {self.min_side} must be between 1 and --max-side {self.max_side}")
        if self.max_characters < 1:
            raise ValueError(f"--max-characters must be at least 1, got {self.max_characters}")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"--workers must be 0 or more, got {self.workers}")
        if self.tasks and self.format != "episodes":
            raise ValueError(f"--tasks is for --format episodes, not for {self.format}")
        if self.questions < 1:
            raise ValueError(f"--questions must be at least 1, got {self.questions}")
        if self.questions != WebConvertConfig.questions and self.format != "episodes":
            raise ValueError(f"--questions is for --format episodes, not for {self.format}")
        if self.images is not None and self.format == "episodes":
            raise ValueError("--images is for formats with annotations in JSON: episodes have their frames in them")
        if self.pictures < 1:
            raise ValueError(f"--pictures must be at least 1, got {self.pictures}")
        if self.pictures > 1 and self.format not in WITH_EXTRA_FIELDS:
            raise ValueError(f"--pictures is for {', '.join(WITH_EXTRA_FIELDS)}, not for {self.format}")
        if (self.score or self.language) and self.format not in WITH_EXTRA_FIELDS:
            raise ValueError(
                f"--score and --language are for {', '.join(WITH_EXTRA_FIELDS)}: {self.format} has no such field"
            )
        for flag, name in (("split", self.split), ("dataset", self.dataset), ("version", self.version)):
            if name is not None and not re.fullmatch(r"[^\W_][\w.+-]*", name):
                raise ValueError(f"--{flag} {name!r} must be letters, digits and . _ + -: it names a folder")
