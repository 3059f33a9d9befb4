"""The store that the loader benchmarks read: made-up episodes with RT-1's schema, 256x320 JPEG frames of 35 KB each."""

from __future__ import annotations

import argparse
from pathlib import Path

from preprocess_data import NAME, VERSION, write_dataset

from preprocessing.convert import ConvertConfig, convert
from preprocessing.store.episode_store import EpisodeStore

EPISODES, STEPS, SHARDS = 500, 41, 8


def rlds_folder(root: Path, num_episodes: int = EPISODES) -> Path:
    """The RLDS version folder below `root`, written unless it is there."""
    folder = root / "rlds" / NAME / VERSION
    if not (folder / "dataset_info.json").exists():
        write_dataset(root / "rlds", num_episodes=num_episodes, num_steps=STEPS, num_shards=SHARDS)
    return folder


def open_store(root: Path, num_episodes: int = EPISODES) -> EpisodeStore:
    """The episode store below `root`, converted unless it is there."""
    made = root / "store" / NAME / VERSION / "train"
    if not (made / "manifest.json").exists():
        config = ConvertConfig(split="train", encoder="dataset", workers=0)
        convert(str(rlds_folder(root, num_episodes)), str(root / "store"), config)
    return EpisodeStore.open(str(made))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    arguments = parser.parse_args()
    print(open_store(arguments.root).root)
