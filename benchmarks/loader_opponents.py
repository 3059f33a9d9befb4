"""Other loaders over the episodes of loader_store.py, each giving windows of 6 uint8 frames in batches, shuffled.

- `streaming_batches`: mosaicml-streaming, one sample a step as it is meant to be used for random access, windows cut in
  `__getitem__` (as LeRobot's delta_timestamps does), the same JPEG decoder as ours, its default shuffle.
- `tf_data_batches`: the tf.data path of Rohan138/rt1-pytorch (`data.py`, 492c4e3): episodes decoded by TFDS, windows of
  neighbouring steps, a shuffle buffer of 16 batches of windows, parallelism left to AUTOTUNE. reverb, which cuts the
  windows there, has no build for this TensorFlow; `tf.gather` cuts them here, within an episode, which costs less.
- `octo_batches`: Octo's own code (octo-models/octo 241fb35 on kvablack/dlimp ad72ce3, from their checkouts):
  `make_interleaved_dataset` with one set, window_size 6 and a shuffle buffer of 16 batches of windows (its own
  configuration asks for 500,000, more than fits here). It shuffles encoded windows and decodes each window's frames.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from preprocessing.store.episode_store import EpisodeStore

STEPS = 6


def write_mds(store: EpisodeStore, folder: Path, packages: Path) -> None:
    """The store's frames and actions as a mosaicml-streaming dataset in `folder`, unless it is there."""
    if (folder / "index.json").exists():
        return
    writer = _streaming(packages).MDSWriter(
        out=str(folder), columns={"image": "bytes", "action": "ndarray:float32:11", "step": "int"}, size_limit=1 << 26
    )
    for shard in range(len(store.shards)):
        for group in range(-(-store.shards[shard].rows // store.shards[shard].row_group_rows)):
            for row in store.read_rows(shard, group, ["image", "action", "step"]).to_pylist():
                writer.write({**row, "action": np.array(row["action"], np.float32)})
    writer.finish()


def streaming_batches(folder: Path, packages: Path, *, workers: int, batch: int) -> Iterator[Any]:
    """Batches without end."""
    import torch

    streaming = _streaming(packages)
    streaming.base.util.clean_stale_shared_memory()  # of a measurement that was ended

    class Windows(streaming.StreamingDataset):
        def __getitem__(self, at: int) -> dict[str, np.ndarray]:
            last = super().__getitem__(at)
            reach = min(last["step"], STEPS - 1)
            steps = [super(Windows, self).__getitem__(at - back) for back in range(reach, 0, -1)] + [last]
            frames = np.zeros((STEPS, 256, 320, 3), np.uint8)
            actions = np.zeros((STEPS, 11), np.float32)
            for place, step in enumerate(steps, STEPS - len(steps)):
                frames[place] = simplejpeg.decode_jpeg(step["image"], fastdct=False, fastupsample=False)
                actions[place] = step["action"]
            return {"frames": frames, "action": actions}

    dataset = Windows(local=str(folder), shuffle=True, batch_size=batch)
    loader = torch.utils.data.DataLoader(dataset, batch_size=batch, num_workers=workers, drop_last=True)
    while True:
        yield from loader


def tf_data_batches(folder: Path, *, batch: int) -> Iterator[Any]:
    """Batches of one pass, as NumPy arrays; `folder` is the RLDS version folder."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    episodes = tfds.builder_from_directory(str(folder)).as_dataset(split="train")

    def windows(episode: Any) -> Any:
        steps = episode["steps"].batch(512).get_single_element()
        ends = tf.range(STEPS - 1, tf.shape(steps["is_first"])[0])
        places = ends[:, None] + tf.range(1 - STEPS, 1)

        def window(place: Any) -> Any:
            return {
                "image": tf.gather(steps["observation"]["image"], place),
                "embedding": tf.gather(steps["observation"]["natural_language_embedding"], place),
                "action": {key: tf.gather(value, place) for key, value in steps["action"].items()},
            }

        return tf.data.Dataset.from_tensor_slices(places).map(window)

    dataset = episodes.flat_map(windows).shuffle(16 * batch)
    dataset = dataset.batch(batch, drop_remainder=True, num_parallel_calls=tf.data.AUTOTUNE, deterministic=False)
    yield from dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def octo_batches(folder: Path, checkouts: list[Path], *, batch: int) -> Iterator[Any]:
    """Batches without end, as NumPy arrays; `folder` is the RLDS version folder, `checkouts` are Octo's and dlimp's."""
    sys.path += [str(checkout) for checkout in checkouts]
    import tensorflow_datasets as tfds
    from octo.data.dataset import make_interleaved_dataset
    from octo.utils.spec import ModuleSpec

    # The set's name is one that TFDS knows, and would ask its bucket about.
    tfds.builder = lambda name, data_dir: tfds.builder_from_directory(str(folder))
    episodes = {
        "name": folder.parent.name,
        "data_dir": str(folder.parent.parent),
        "image_obs_keys": {"primary": "image"},
        "language_key": "language_instruction",
        "standardize_fn": ModuleSpec.create(octo_standard),
    }
    dataset = make_interleaved_dataset(
        [episodes],
        [1.0],
        train=True,
        shuffle_buffer_size=16 * batch,
        batch_size=batch,
        traj_transform_kwargs={"window_size": STEPS},
    )
    yield from dataset.as_numpy_iterator()


def octo_standard(trajectory: dict[str, Any]) -> dict[str, Any]:
    """The form that Octo's loader expects: one action vector, and the instruction beside the observation."""
    import tensorflow as tf

    action = [tf.cast(value, tf.float32) for _, value in sorted(trajectory["action"].items())]
    trajectory["action"] = tf.concat(action, axis=-1)[:, :11]
    trajectory["language_instruction"] = trajectory["observation"]["natural_language_instruction"]
    return trajectory


def _streaming(packages: Path) -> Any:
    """The package from its folder; torchvision's operators, which it wants to see at import, without a kernel."""
    import torch

    if str(packages) not in sys.path:
        sys.path.insert(0, str(packages))
        _declared.append(torch.library.Library("torchvision", "FRAGMENT"))
        for name in ("nms", "qnms"):
            _declared[-1].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import streaming

    return streaming


_declared: list[Any] = []  # a torch Library that is collected takes its operators with it
