"""A split is taken by its exact name: never one whose name only begins or ends with it."""

from __future__ import annotations

import re

import pytest

from preprocessing.web.splits import files_of_split

VQA = [
    "v2_OpenEnded_mscoco_train2014_questions.json",
    "v2_OpenEnded_mscoco_val2014_questions.json",
    "v2_OpenEnded_mscoco_test2015_questions.json",
    "v2_OpenEnded_mscoco_test-dev2015_questions.json",
]
GQA = [
    *(f"{split}_{part}_questions.json" for split in ("val", "test", "testdev") for part in ("all", "balanced")),
    "train_all_questions/train_all_questions_0.json",
    "train_all_questions/train_all_questions_1.json",
    "train_balanced_questions.json",
]
COCO = ["annotations/captions_val2014.json", "annotations/captions_valminusminival2014.json"]
HUB = [
    "data/train-00000-of-00002.parquet",
    "data/train-00001-of-00002-a09b74b3ef9c3b56.parquet",
    "data/test_seen-00000-of-00001.parquet",
    "data/test_unseen-00000-of-00001.parquet",
    "data/validation-00000-of-00001.parquet",
]
TARS = [
    "cc3m-train-0000.tar",
    "cc3m-train-0001.tar.gz",
    "cc3m-validation-0000.tar",
    "train/00000.tar",
    "train00002.tar",
]


@pytest.mark.parametrize(
    ("names", "split", "found"),
    [
        (VQA, "train", VQA[:1]),
        (VQA, "val2014", VQA[1:2]),
        (VQA, "test", VQA[2:3]),
        (VQA, "test-dev", VQA[3:]),
        (VQA, "test-dev2015", VQA[3:]),
        (GQA, "test", GQA[2:4]),
        (GQA, "testdev", GQA[4:6]),
        (GQA, "val", GQA[:2]),
        (GQA, "val_balanced", GQA[1:2]),
        (GQA, "train", GQA[6:]),
        (GQA, "train_all", GQA[6:8]),
        (COCO, "val", COCO[:1]),
        (COCO, "valminusminival", COCO[1:]),
        (HUB, "train", HUB[:2]),
        (HUB, "test_seen", HUB[2:3]),
        (["train/0000.parquet", "partial-train/0000.parquet"], "train", ["train/0000.parquet"]),
        (["train_balanced_images/train-0.parquet", "train-0.parquet"], "train", ["train-0.parquet"]),
        (TARS, "train", [*TARS[:2], *TARS[3:]]),
        (["captions.jsonl"], "train", ["captions.jsonl"]),
        (["devices.jsonl"], "train", ["devices.jsonl"]),
        (["refcoco_testA.jsonl", "refcoco_testB.jsonl"], "testA", ["refcoco_testA.jsonl"]),
    ],
)
def test_exact_names(names: list[str], split: str, found: list[str]) -> None:
    assert files_of_split(names, split, subsets=("all", "balanced") if names is GQA else ()) == found


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (VQA, "dev"),
        (VQA[3:], "test"),
        (HUB, "test"),
        (HUB, "val"),
        (COCO[1:], "val"),
        (COCO[1:], "minival"),
        (["train_shuffled.jsonl"], "train"),
        (["refcoco_testA.jsonl"], "test"),
    ],
)
def test_another_split_is_not_taken_for_it(names: list[str], split: str) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(f"of split '{split}', only {names[0]}")):
        files_of_split(names, split)


def test_a_name_that_may_mean_two_is_not_guessed() -> None:
    with pytest.raises(ValueError, match="give --split val2014 or val2017"):
        files_of_split(["captions_val2014.json", "captions_val2017.json"], "val")
    numbered = [f"train{number:04}.tar" for number in (1, 2, 2000)]  # shards, not years
    assert files_of_split(numbered, "train") == numbered
