"""Two objects in one scene, one verb: does the mark in the image (MOO, `rtp mask`) say which of them is meant?

    python benchmarks/object_masks.py FOLDER [--told mask text] [--mask-value 32]

A Meta-World arm moves over one of two objects, a red cylinder and a blue box, that are drawn into the scene at places
and sides that change. Every training scene is demonstrated twice, once for each object: a picture alone does not tell
which is meant, and learning scenes by heart leads nowhere. Episodes go the whole way: RLDS, `rtp preprocess`,
`rtp mask --detector boxes:FILE` (the objects' true places; of "reach the red cylinder" the verb is left), `rtp train`.
`--told text` is the same training without masks on the whole instruction, `--mask-value 1` one on a fainter mark.

Held-out scenes are acted in, closed loop, through `load_policy(...).act(..., object_box=...)`: over which object is the
hand after three steps, with the mark on the object meant, on the other one, and where it was in another scene?
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.cli import main as rtp
from pipelines.evaluation.success_rates import wilson
from pipelines.publishing.policy import LoadedPolicy, load_policy
from preprocessing.convert import ConvertConfig, convert
from preprocessing.masks.mask_store import MaskConfig, mask_store
from preprocessing.simulation.metaworld_rlds import Recording, dataset_features, rlds_episode
from preprocessing.simulation.metaworld_rollout import SIMULATOR_HZ, VIEWS, Camera, Renderer, Rollout, load_simulator
from preprocessing.store.images import encode_jpeg
from preprocessing.tfds.writer import RldsWriter, SplitPlan

_SIDE, _HZ, _MOVES = 64, 10, 3
_STEPS = SIMULATOR_HZ // _HZ  # of the simulator in a recorded one
_VIEW = VIEWS["top"]
_TASK, _ABOVE_M = "reach-v3", 0.13
_NAMES = ("red cylinder", "blue box")
_COLOURS = ((0.9, 0.1, 0.1, 1.0), (0.1, 0.2, 0.9, 1.0))
_MOTION = ("world_vector_x", "world_vector_y", "world_vector_z")
# One frame tells all; and few tokens, of many places.
_MODEL = """\
model:
  image_channels: {channels}
  num_steps: 1
  feature_width: 64
  input: {{image_size: 32, crop: none, mask_value: {mask_value}}}
  backbone:
    type: EfficientNetConfig
    stem_channels: 16
    stages:
    - {{expansion: 1, kernel: 3, stride: 2, channels: 24, num_blocks: 1}}
    - {{expansion: 4, kernel: 3, stride: 1, channels: 32, num_blocks: 2}}
    head_channels: 96
    stochastic_depth: 0.0
    batch_norm: {{momentum: 0.9}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scenes", type=int, default=160)
    parser.add_argument("--held-out", type=int, default=80)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--told", choices=("mask", "text"), nargs="+", default=["mask", "text"])
    parser.add_argument("--mask-value", type=float, default=32.0)
    arguments = parser.parse_args()
    folder, results = arguments.folder, {}
    store = _store(folder, arguments.scenes)
    held_out = _scenes(seed=1, count=arguments.held_out)
    for told in arguments.told:
        run = folder / f"told-by-{told}{f'-{arguments.mask_value:g}' if told == 'mask' else ''}"
        if not run.exists():
            channels = "rgb+mask" if told == "mask" else "rgb"
            _train(store, run, arguments.steps, _MODEL.format(channels=channels, mask_value=arguments.mask_value))
        for name, ask in (_asked_by_mask(held_out) if told == "mask" else _asked_by_text()).items():
            right = _acted(load_policy(run), held_out, ask)
            results[name] = [right, len(held_out)]
            print(f"{name}: over the object meant in {right} of {len(held_out)}, {wilson(right, len(held_out))}")
    print(json.dumps(results))


# --- Scenes ---


@dataclass(frozen=True, kw_only=True)
class _Scene:
    """Places of the two objects on the table in metres, and which is meant."""

    place_2XY: np.ndarray
    meant: int

    def box(self, which: int) -> list[float]:
        """Of an object in the picture, in pixels."""
        x, y = _VIEW.place_of(np.array([*self.place_2XY[which], 0.02]), height=_SIDE, width=_SIDE)
        return [x * _SIDE - 3, y * _SIDE - 3, x * _SIDE + 3, y * _SIDE + 3]

    def instruction(self) -> str:
        return f"reach the {_NAMES[self.meant]}"


def _scenes(*, seed: int, count: int) -> list[_Scene]:
    random = np.random.default_rng(seed)
    scenes = []
    for _ in range(count):
        left = random.uniform((-0.24, 0.5), (-0.1, 0.78))
        right = random.uniform((0.1, 0.5), (0.24, 0.78))
        places = np.array([left, right] if random.random() < 0.5 else [right, left])
        scenes.append(_Scene(place_2XY=places, meant=int(random.integers(2))))
    return scenes


class _Table:
    """The simulator with two objects drawn into its pictures; the arm passes through them."""

    def __init__(self) -> None:
        self.rollout = Rollout("push-v3", 0, None)
        model = self.rollout.env.model
        model.geom_rgba[model.geom_bodyid == model.body("obj").id, 3] = 0
        self._renderer: Renderer = Camera(view=_VIEW, height=_SIDE, width=_SIDE, jpeg_quality=90).build(model)

    def reset(self) -> None:
        self.rollout.env.reset()
        self.rollout.state_TS, self.rollout.action_TA = [], []
        self.rollout._observe()

    def hand_m(self) -> np.ndarray:
        return self.rollout.env.data.body("hand").xpos.copy()

    def picture(self, scene: _Scene) -> bytes:
        mujoco, inner = load_simulator(), self._renderer._renderer
        inner.update_scene(self.rollout.env.data, self._renderer._camera, self._renderer._options)
        kinds = (mujoco.mjtGeom.mjGEOM_CYLINDER, mujoco.mjtGeom.mjGEOM_BOX)
        for kind, (x, y), colour in zip(kinds, scene.place_2XY, _COLOURS, strict=True):
            size, place, rgba = np.full(3, 0.03), np.array([x, y, 0.02]), np.array(colour, np.float32)
            mujoco.mjv_initGeom(inner.scene.geoms[inner.scene.ngeom], kind, size, place, np.eye(3).ravel(), rgba)
            inner.scene.ngeom += 1
        return encode_jpeg(inner.render(), quality=90)

    def close(self) -> None:
        self._renderer.close()
        self.rollout.close()


# --- Data ---


def _store(folder: Path, scenes: int) -> str:
    """The demonstrations' store with masks; the boxes lie beside it, an episode a line."""
    boxes, demonstrated = (
        folder / "boxes.jsonl",
        [replace(scene, meant=meant) for scene in _scenes(seed=0, count=scenes) for meant in (0, 1)],
    )
    if not boxes.exists():
        features = dataset_features(height=_SIDE, width=_SIDE)
        writer = RldsWriter(name="metaworld_sample", version="1.0.0", features=features, description="two objects")
        with closing(_Table()) as table:
            episodes = _episodes(table, demonstrated)
            writer.write(
                folder / "data",
                {"train": SplitPlan(episodes=episodes, num_episodes=len(demonstrated), num_shards=4)},
            )
        lines = [json.dumps({"episode": n, "box": scene.box(scene.meant)}) for n, scene in enumerate(demonstrated)]
        boxes.write_text("\n".join(lines) + "\n")
    config = ConvertConfig(encoder="hash", workers=0)
    store = convert(str(folder / "data/metaworld_sample/1.0.0"), str(folder / "stores"), config).store
    print(mask_store(store, MaskConfig(detector=f"boxes:{boxes}", workers=0)))
    return store


def _episodes(table: _Table, scenes: list[_Scene]) -> Iterator[dict[str, object]]:
    for number, scene in enumerate(scenes):
        episode: Any = rlds_episode(_recording(table, scene), task=_TASK, seed=number, control_hz=_HZ)
        for step in episode["steps"]:
            step["observation"]["natural_language_instruction"] = scene.instruction()
        yield episode


def _recording(table: _Table, scene: _Scene) -> Recording:
    table.reset()
    rollout, frames = table.rollout, []
    target = np.array([*scene.place_2XY[scene.meant], _ABOVE_M])
    for _ in range(_MOVES):
        frames.append(table.picture(scene))
        rollout.act(lambda seen: np.array([*np.clip(10 * (target - seen[:3]), -1, 1), -1.0]), _STEPS)
    frames += [table.picture(scene)] * 2
    return Recording(
        frames_T=frames,
        state_TS=np.array([*rollout.state_TS, rollout.state_TS[-1]], np.float32),
        action_TA=np.array([*rollout.action_TA, np.zeros(4), np.zeros(4)]),
        metres_per_action=_STEPS * rollout.env.action_scale,
    )


# --- Training and scores ---


def _train(store: str, output: Path, steps: int, model: str) -> None:
    overlay = output.with_name(f"{output.name}.yaml")
    overlay.write_text(model)
    words = ["train", "rt1_metaworld", "--data", store, "--output", output, "--config", overlay]
    words += ["--launch", "InProcess", "--engine", "TorchEngineConfig"]
    words += ["--loop.steps", steps, "--loop.global-batch", 32, "--loop.micro-batch", 32, "--loop.log-every", 50]
    words += ["--loop.checkpoint-every", steps, "--loop.evaluate-every", 0, "--optimizer.lr", "1e-3"]
    code = rtp([str(word) for word in words])
    if code:
        raise SystemExit(code)


_Ask = Callable[[int, _Scene], tuple[str, dict[str, Any]]]
"""What a policy is told in held-out scene number n: the instruction, and the object's box."""


def _asked_by_mask(scenes: list[_Scene]) -> dict[str, _Ask]:
    other = _permutation(scenes)

    def elsewhere(number: int, scene: _Scene) -> list[float]:
        shown = scenes[other[number]]
        return shown.box(shown.meant)

    boxes: dict[str, Callable[[int, _Scene], list[float]]] = {
        "mark on the object meant": lambda number, scene: scene.box(scene.meant),
        "mark on the other object": lambda number, scene: scene.box(1 - scene.meant),
        "mark as in another scene": elsewhere,
    }
    return {
        name: lambda number, scene, box=box: ("reach", {"object_box": box(number, scene)})
        for name, box in boxes.items()
    }


def _permutation(scenes: list[_Scene]) -> np.ndarray:
    """Scenes whose marks lie, in half of all cases, nearer to the object meant: who follows them is at chance."""
    for seed in itertools.count():
        other = np.random.default_rng(seed).permutation(len(scenes))
        marked = [scenes[number].place_2XY[scenes[number].meant] for number in other]
        nearer = [
            np.linalg.norm(scene.place_2XY - place, axis=1).argmin() == scene.meant
            for scene, place in zip(scenes, marked, strict=True)
        ]
        if sum(nearer) == len(scenes) // 2:
            return other
    raise AssertionError


def _asked_by_text() -> dict[str, _Ask]:
    return {"told its name, without masks": lambda number, scene: (scene.instruction(), {})}


def _acted(policy: LoadedPolicy, scenes: list[_Scene], ask: _Ask) -> int:
    """In how many scenes the hand ends nearer to the object meant than to the other."""
    right = 0
    with closing(_Table()) as table:
        for number, scene in enumerate(scenes):
            table.reset()
            policy.reset()
            instruction, objects = ask(number, scene)
            for _ in range(_MOVES):
                action = policy.act(table.picture(scene), instruction, **objects)
                objects = {}
                moved_m = np.array([action.values[name] for name in _MOTION], np.float64)
                command = np.array([*moved_m / (_STEPS * table.rollout.env.action_scale), -1.0])
                table.rollout.act(lambda _, command=command: command, _STEPS)
            far_2 = np.linalg.norm(scene.place_2XY - table.hand_m()[:2], axis=1)
            right += int(far_2.argmin() == scene.meant)
    return right


if __name__ == "__main__":
    main()
