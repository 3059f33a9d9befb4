"""What a store has of what a model may read beside the main camera: other cameras by role, and the robot's state.

Conversion writes recipes and statistics into the manifest. Of a store of before it did, what is asked for is measured
once and kept beside the manifest as `inputs.json`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from preprocessing.store.episode_store import EpisodeStore, atomic_write, image_column
from preprocessing.store.images import ImageSize, image_size
from preprocessing.store.json_files import parsed, taken_apart
from preprocessing.store.json_records import read_record, to_text
from preprocessing.store.statistics import Moments
from rt_models.spec import MAIN_CAMERA, ActionStatistics, ImageRecipe, StateSide, StoreInputs, camera_role

INPUTS = "inputs.json"


@dataclass(frozen=True, kw_only=True)
class MeasuredInputs:
    """`inputs.json`: what was measured of a store whose manifest has this SHA-256, by the store's own camera names."""

    manifest_sha256: str
    camera_recipes: dict[str, ImageRecipe] = field(default_factory=dict)
    state: ActionStatistics | None = None


def store_inputs(store: EpisodeStore, *, cameras: Sequence[str], state: bool) -> StoreInputs:
    """Recipes of those of `cameras`, beside the main one, that the store has, and with `state` its whole state.

    Raises ValueError, naming the flag, for a camera that its source has and that was not stored, and for frames or a
    state that cannot be read.
    """
    roles = [role for role in cameras if role != MAIN_CAMERA and _is_stored(store, role)]
    recipes = tuple(replace(_recipe(store, own_camera(store, role) or role), camera=role) for role in roles)
    return StoreInputs(cameras=recipes, state=_state(store) if state else None)


def own_camera(store: EpisodeStore, role: str) -> str | None:
    """What the store calls the camera of a role, None if it has none."""
    if role in store.manifest.cameras:  # an older store may have both `image` and `side`, which now means `image`
        return role
    return next((own for own in store.manifest.cameras if camera_role(own) == role), None)


def _is_stored(store: EpisodeStore, role: str) -> bool:
    left_out = [own for own in store.manifest.cameras_left_out if camera_role(own) == role]
    if own_camera(store, role) is None and left_out:
        stored = " ".join(store.manifest.cameras)
        raise ValueError(
            f"the model reads camera {role}, which {store.root} was preprocessed without: preprocess again with "
            f"--cameras {stored} {left_out[0]}, or leave {role} out of model.cameras"
        )
    return own_camera(store, role) is not None


# --- Cameras ---


def _recipe(store: EpisodeStore, own: str) -> ImageRecipe:
    """Of the store's camera `own`, one beside the main camera."""
    known = store.manifest.camera_recipes.get(own)
    if known is None:
        known = _measured(store).camera_recipes.get(own)
    if known is None:
        known = _measured_recipe(store, own)
        before = _measured(store)
        _keep(store, replace(before, camera_recipes={**before.camera_recipes, own: known}))
    return known


def _measured_recipe(store: EpisodeStore, own: str) -> ImageRecipe:
    """From the settings of the conversion if it resized all frames, else from the headers of frames of every shard."""
    settings = store.manifest.settings
    resized = settings.get("image_size")
    sizes = {ImageSize(*resized)} if resized else _sizes(store, own)
    if len(sizes) > 1:
        raise ValueError(
            f"frames of camera {own} of {store.root} differ in size, {' and '.join(map(str, sorted(sizes)))}: delete "
            f"the store and preprocess again with --image-size {own}=HxW"
        )
    height, width = sizes.pop()
    return ImageRecipe(camera=own, height=height, width=width, resize=settings["resize"] if resized else "none")


def _sizes(store: EpisodeStore, own: str) -> set[ImageSize]:
    """Of the frames in the first row group of each shard: a frame of another size further on stops its reader."""
    logging.warning("%s does not say how large the frames of camera %s are: they are looked at, once", store.root, own)
    sizes = set[ImageSize]()
    for number, shard in enumerate(store.shards):
        if not shard.rows:
            continue
        for row, encoded in enumerate(store.read_rows(number, 0, [image_column(own)])[image_column(own)].to_pylist()):
            try:
                sizes.add(image_size(encoded))
            except ValueError as error:
                episode = int(np.searchsorted(np.cumsum(shard.episode_lengths), row, side="right"))
                step = row - int(shard.episode_lengths[:episode].sum())
                raise store.frame_error(number, episode, step, f"cannot be decoded ({error})", camera=own) from error
    return sizes


# --- State ---


def _state(store: EpisodeStore) -> StateSide | None:
    """All columns of the store's state in their order; None where it has none."""
    proprio = store.manifest.proprio
    if not proprio.names:
        return None
    statistics = proprio.statistics or _measured(store).state
    if statistics is None:
        statistics = _measured_state(store)
        _keep(store, replace(_measured(store), state=statistics))
    if not statistics.count:
        raise ValueError(
            f"the state of {store.root} is not finite at any step that is trained on: a model cannot read it; leave "
            f"model.state out"
        )
    return StateSide.measured(proprio.names, proprio.units, statistics)


def _measured_state(store: EpisodeStore) -> ActionStatistics:
    """One pass over the state of all steps that are not terminal."""
    logging.warning("%s has no statistics of its state: they are measured, once", store.root)
    moments = Moments.empty(len(store.manifest.proprio.names))
    for number in range(len(store.shards)):
        table = store.read_shard(number, ["proprio", "is_terminal"])
        state_NP = table["proprio"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
        counted_N = np.isfinite(state_NP).all(axis=1) & ~table["is_terminal"].to_numpy()
        moments = moments.merged(Moments.of(state_NP[counted_N]))
    return moments.statistics()


# --- What was measured before ---


def _measured(store: EpisodeStore) -> MeasuredInputs:
    """What is kept beside this very store; nothing if there is none, or it is older than the store."""
    none = MeasuredInputs(manifest_sha256=store.manifest_sha256)
    path = f"{store.root}/{INPUTS}"
    try:
        data = parsed(store.filesystem.cat_file(path), path, remedy="delete it, and it is measured again")
    except FileNotFoundError:
        return none
    with taken_apart(path, remedy="delete it, and it is measured again"):
        kept = read_record(MeasuredInputs, data)
    return kept if kept.manifest_sha256 == none.manifest_sha256 else none


def _keep(store: EpisodeStore, measured: MeasuredInputs) -> None:
    try:
        with atomic_write(store.filesystem, f"{store.root}/{INPUTS}", temporary=store.root) as file:
            file.write((to_text(measured) + "\n").encode())
    except OSError as error:
        logging.warning("%s cannot be written (%s): it is measured again next time", store.root, error)
