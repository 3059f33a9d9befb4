"""Two objects in one scene, one verb: does the mark in the image (MOO, `rtp mask`) say which of them is meant?

    python benchmarks/object_masks.py FOLDER --episodes 240 --held-out 80 --steps 600

A Meta-World arm moves over one of two objects, a red cylinder and a blue box, that are drawn into the scene at places
and sides that change; the instruction is "reach the goal", of which the verb is left: only the mark tells which.
Episodes go the whole way: RLDS, `rtp preprocess`, `rtp mask --detector boxes:FILE` (the objects' true places),
`rtp train rt1_tiny --model.image-channels rgb+mask` with a small ViT. Scored are the first steps of held-out episodes,
one each: which object is the predicted motion nearer to, with the mark as it is, on the other object, and of another
episode.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.cli import main as rtp
from pipelines.evaluation.success_rates import wilson
from pipelines.families.rt1 import FAMILY
from pipelines.publishing.trained_model import load_trained
from preprocessing.convert import ConvertConfig, convert
from preprocessing.loading.reader import LoaderConfig
from preprocessing.masks.mask_store import MaskConfig, mask_store
from preprocessing.masks.overlay import FIRST_VALUE
from preprocessing.simulation.metaworld_rlds import Recording, dataset_features, rlds_episode
from preprocessing.simulation.metaworld_rollout import VIEWS, Camera, Renderer, Rollout, load_simulator
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.images import encode_jpeg
from preprocessing.tfds.writer import RldsWriter, SplitPlan
from rt_models.action_tokens import decode
from rt_models.control.constrained_decoding import choose_tokens
from rt_models.rt1 import RT1

_SIDE, _HZ, _MOVES = 64, 10, 3
# A backbone that knows places: of a mark, the place is all there is to learn.
_OVERLAY = """\
model:
  image_channels: rgb+mask
  input: {image_size: 32, crop: none}
  backbone: {type: ViTConfig, patch_size: 4, width: 32, num_layers: 2, num_heads: 4, hidden: 64}
"""
_TASK = "reach-v3"  # "reach the goal"
_ABOVE_M = 0.13
_LOOKS = ((0.9, 0.1, 0.1, 1.0), (0.1, 0.2, 0.9, 1.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--episodes", type=int, default=240)
    parser.add_argument("--held-out", type=int, default=80)
    parser.add_argument("--steps", type=int, default=600)
    arguments = parser.parse_args()
    folder = arguments.folder
    stores = _stores(folder, {"train": arguments.episodes, "val": arguments.held_out})
    _train(stores["train"], folder / "run", arguments.steps)
    scores = _scores(folder / "run", stores["val"], _plans(folder, "val"))
    for name, (right, total) in scores.items():
        interval = wilson(right, total)
        print(f"mark {name}: moves to the object meant in {right} of {total}, {interval}")
    print(json.dumps({name: right / total for name, (right, total) in scores.items()}))


# --- Scenes ---


@dataclass(frozen=True, kw_only=True)
class _Scene:
    """Places of the two objects on the table in metres, and which is meant."""

    place_2XY: np.ndarray
    meant: int


def _scenes(split: str, count: int) -> list[_Scene]:
    random = np.random.default_rng([len(split), count])
    scenes = []
    for _ in range(count):
        left = random.uniform((-0.24, 0.5), (-0.1, 0.78))
        right = random.uniform((0.1, 0.5), (0.24, 0.78))
        places = np.array([left, right] if random.random() < 0.5 else [right, left])
        scenes.append(_Scene(place_2XY=places, meant=int(random.integers(2))))
    return scenes


def _stores(folder: Path, counts: dict[str, int]) -> dict[str, EpisodeStore]:
    stores = {}
    if not (folder / "data").exists():
        _record(folder, counts)
    for split in counts:
        config = ConvertConfig(split=split, encoder="hash", workers=0)
        path = convert(str(folder / "data/metaworld_sample/1.0.0"), str(folder / "stores"), config).store
        print(mask_store(path, MaskConfig(detector=f"boxes:{folder / split}.jsonl", workers=0)))
        stores[split] = EpisodeStore.open(path)
    return stores


def _record(folder: Path, counts: dict[str, int]) -> None:
    """The dataset, and beside it the boxes and places of the objects."""
    folder.mkdir(parents=True, exist_ok=True)
    with closing(Rollout("push-v3", 0, None)) as rollout:
        rollout.env.model.geom_rgba[rollout.env.model.geom_bodyid == rollout.env.model.body("obj").id, 3] = 0
        camera = Camera(view=VIEWS["top"], height=_SIDE, width=_SIDE, jpeg_quality=90)
        with closing(camera.build(rollout.env.model)) as renderer:
            plans = {
                split: SplitPlan(
                    episodes=_episodes(rollout, renderer, _scenes(split, count)), num_episodes=count, num_shards=4
                )
                for split, count in counts.items()
            }
            features = dataset_features(height=_SIDE, width=_SIDE)
            RldsWriter(name="metaworld_sample", version="1.0.0", features=features, description="two objects").write(
                folder / "data", plans
            )
    for split, count in counts.items():
        lines = []
        for number, scene in enumerate(_scenes(split, count)):
            x, y = _pixel(np.array([*scene.place_2XY[scene.meant], 0.02]))
            lines.append(json.dumps({"episode": number, "box": [x - 3, y - 3, x + 3, y + 3]}) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines))


def _episodes(rollout: Rollout, renderer: Renderer, scenes: list[_Scene]) -> Iterator[dict[str, object]]:
    for number, scene in enumerate(scenes):
        yield rlds_episode(_recording(rollout, renderer, scene), task=_TASK, seed=number, control_hz=_HZ)


def _recording(rollout: Rollout, renderer: Renderer, scene: _Scene) -> Recording:
    rollout.env.reset()
    rollout.state_TS, rollout.action_TA, frames = [], [], []
    rollout._observe()
    target = np.array([*scene.place_2XY[scene.meant], _ABOVE_M])
    for _ in range(_MOVES):
        frames.append(_picture(renderer, rollout.env.data, scene))
        rollout.act(lambda seen: np.array([*np.clip(10 * (target - seen[:3]), -1, 1), -1.0]), 80 // _HZ)
    frames += [_picture(renderer, rollout.env.data, scene)] * 2
    return Recording(
        frames_T=frames,
        state_TS=np.array([*rollout.state_TS, rollout.state_TS[-1]], np.float32),
        action_TA=np.array([*rollout.action_TA, np.zeros(4), np.zeros(4)]),
        metres_per_action=80 // _HZ * rollout.env.action_scale,
    )


def _picture(renderer: Renderer, data: Any, scene: _Scene) -> bytes:
    """The scene with the two objects in it, as the renderer shows it."""
    mujoco = load_simulator()
    inner = renderer._renderer
    inner.update_scene(data, renderer._camera, renderer._options)
    kinds = (mujoco.mjtGeom.mjGEOM_CYLINDER, mujoco.mjtGeom.mjGEOM_BOX)
    for kind, (x, y), colour in zip(kinds, scene.place_2XY, _LOOKS, strict=True):
        geom = inner.scene.geoms[inner.scene.ngeom]
        size, place = np.full(3, 0.03), np.array([x, y, 0.02])
        mujoco.mjv_initGeom(geom, kind, size, place, np.eye(3).ravel(), np.array(colour, np.float32))
        inner.scene.ngeom += 1
    return encode_jpeg(inner.render(), quality=90)


def _pixel(point: np.ndarray) -> tuple[float, float]:
    """(x, y) of a point in metres in the picture; MuJoCo's free camera has 45 degrees from top to bottom."""
    view = VIEWS["top"]
    azimuth, elevation = np.deg2rad(view.azimuth_deg), np.deg2rad(view.elevation_deg)
    forward = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    right = np.cross(forward, (0, 0, 1))
    right /= np.linalg.norm(right)
    seen = point - (np.array(view.look_at_m) - view.distance_m * forward)
    focal = _SIDE / 2 / np.tan(np.deg2rad(45) / 2)
    across, up, depth = seen @ right, seen @ np.cross(right, forward), seen @ forward
    return float(_SIDE / 2 + across / depth * focal), float(_SIDE / 2 - up / depth * focal)


# --- Training and scores ---


def _train(store: EpisodeStore, output: Path, steps: int) -> None:
    overlay = output.with_suffix(".yaml")
    overlay.write_text(_OVERLAY)
    words = ["train", "rt1_tiny", "--data", store.root, "--output", output, "--config", overlay]
    words += ["--loop.steps", steps, "--loop.global-batch", 32, "--loop.micro-batch", 32, "--loop.log-every", 50]
    words += ["--loop.checkpoint-every", steps, "--optimizer.lr", "1e-3"]
    code = rtp([str(word) for word in words])
    if code:
        raise SystemExit(code)


def _plans(folder: Path, split: str) -> list[_Scene]:
    return _scenes(split, sum(1 for _ in (folder / f"{split}.jsonl").open()))


@torch.no_grad()
def _scores(run: Path, store: EpisodeStore, scenes: list[_Scene]) -> dict[str, tuple[int, int]]:
    """(right, in all) by what is marked."""
    trained = load_trained(str(run))
    model, contract = trained.model.eval(), trained.contract
    assert isinstance(model, RT1)
    with closing(FAMILY.reader([store], contract, model.config, LoaderConfig())) as reader:
        first = np.flatnonzero(reader.index.episodes(np.arange(reader.index.num_rows))[1] == 0)
        batch = reader.read(first, first)
    other = np.random.default_rng(0).permutation(len(scenes))
    marked = {
        "as it is": batch["object_mask"],
        "on the other object": _marks(batch, [scene.place_2XY[1 - scene.meant] for scene in scenes]),
        "of another episode": _marks(batch, [scenes[n].place_2XY[scenes[n].meant] for n in other]),
    }
    invert = contract.dataset(store.name).transform.invert
    place = model.spec.names.index("world_vector_x")
    hand_E3 = np.array([_hand(store, shard, n) for shard, n in _episodes_of(store)])
    results = {}
    for name, mask in marked.items():
        logits = FAMILY.last_logits(model, batch | {"object_mask": mask})
        motion = invert(decode(choose_tokens(logits, model.spec), model.spec).numpy())[:, place : place + 2]
        nearer = [
            int(np.argmax([_cosine(move, where - at[:2]) for where in scene.place_2XY]))
            for move, scene, at in zip(motion, scenes, hand_E3, strict=True)
        ]
        right = sum(chosen == scene.meant for chosen, scene in zip(nearer, scenes, strict=True))
        results[name] = (right, len(scenes))
    return results


def _episodes_of(store: EpisodeStore) -> list[tuple[int, int]]:
    return [(shard, n) for shard in range(len(store.shards)) for n in range(len(store.shards[shard].episode_lengths))]


def _hand(store: EpisodeStore, shard: int, episode: int) -> list[float]:
    """Where the hand is at first, in metres."""
    return store.read_episode(shard, episode, ["proprio"])["proprio"][0].as_py()[:3]


def _marks(batch: dict[str, torch.Tensor], places: list[np.ndarray]) -> torch.Tensor:
    mask = torch.zeros_like(batch["object_mask"])
    for frame, place in zip(batch["frame_index"][:, -1].tolist(), places, strict=True):
        x, y = _pixel(np.array([*place, 0.02]))
        mask[frame, int(np.clip(y, 0, _SIDE - 1)), int(np.clip(x, 0, _SIDE - 1))] = FIRST_VALUE
    return mask


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / max(np.linalg.norm(one) * np.linalg.norm(other), 1e-9))


if __name__ == "__main__":
    main()
