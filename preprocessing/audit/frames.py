"""Frames against what else is known: channel order against another store, and repeats against the motion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from PIL import Image

from preprocessing.arm_state import arm_columns
from preprocessing.audit.evidence import FEWEST_STEPS, Finding, Verdict, by_share, places, unknown
from preprocessing.store.episode_rows import read_episodes
from preprocessing.store.episode_store import EpisodeStore, image_column
from preprocessing.store.images import decode_image
from rt_models.spec import MAIN_CAMERA

_FILMED = 64  # episodes whose frames are looked at
_REPEATED_SHARE = 0.05
_COLD = 0.1
_COLOURFUL = 2.0


@dataclass(frozen=True, kw_only=True, eq=False)
class _Palette:
    """Colours of a camera over frames: shares (3, 32) of red, green and blue levels; `warm_share` is that of red over
    blue in all differences between the two, whose mean size is `colourful` levels of 255."""

    shares_CB: np.ndarray
    warm_share: float
    colourful: float


@dataclass(frozen=True, kw_only=True, eq=False)
class _Film:
    """What one reading of a camera's frames tells: its colours; for each step that has a next one, whether the two
    frames are the same, and how far the state moves between them (0 without a pose)."""

    palette: _Palette
    same: list[bool]
    moved: list[float]


def frame_verdicts(store: EpisodeStore, reference: EpisodeStore | None) -> list[Verdict]:
    """Colours of every camera, and repeats of the main one; each camera is read once."""
    columns = list(arm_columns(store).values())
    films = {role: _film(store, role, columns if role == MAIN_CAMERA else []) for role in store.manifest.cameras}
    of_colours = [_colours(store, role, film.palette, reference) for role, film in films.items()]
    return [*of_colours, _repeated_frames(films[MAIN_CAMERA], has_pose=bool(columns))]


def colours(store: EpisodeStore, role: str, reference: EpisodeStore | None) -> Verdict:
    """The verdict on one camera's colours."""
    return _colours(store, role, _film(store, role, []).palette, reference)


def _colours(store: EpisodeStore, role: str, seen: _Palette, reference: EpisodeStore | None) -> Verdict:
    """Whether red and blue are exchanged, against `reference`: a store of the same camera with right colours.

    Without one only the extreme can be told. Real scenes are mixed: wood, skin and cardboard outweigh blue (55 to 70 %
    warm on Bridge's cameras and on photographs), so that hardly any warm colour at all speaks against RGB; nothing
    speaks for it. dm_control's scenes (V-D4RL) are blue all over, so that there it is no sign.
    """
    name = f"colours_of_camera_{role}"
    if reference is not None and role in reference.manifest.cameras:
        return _against(name, seen, _film(reference, role, []).palette, reference)
    sentence = f"{100 * seen.warm_share:.0f} % of the colour is warm (red over blue)"
    if seen.colourful > _COLOURFUL and seen.warm_share < _COLD and not _is_rendered(store):
        wrong = f"{sentence}, as where red and blue are exchanged"
        return Verdict(name=name, finding="contradicted", measured=seen.warm_share, sentence=wrong)
    sentence += "; only a reference tells: a store of this camera whose colours are known to be right"
    return Verdict(name=name, finding="unknown", measured=seen.warm_share, sentence=sentence)


def _is_rendered(store: EpisodeStore) -> bool:
    """Whether every dimension is the effort of an actuator, as in a simulator."""
    kinds = {meaning.kind for meaning in store.dataset.meanings}
    return kinds == {"effort"}


def _against(name: str, seen: _Palette, known: _Palette, reference: EpisodeStore) -> Verdict:
    straight, swapped = (float(np.abs(s - known.shares_CB).sum()) for s in (seen.shares_CB, seen.shares_CB[::-1]))
    advantage = (straight - swapped) / max(straight + swapped, 1e-9)  # -1: as the reference, +1: as it swapped
    finding: Finding = "holds" if advantage < -1 / 3 else "contradicted" if advantage > 1 / 3 else "unknown"
    sentence = (
        f"colour histograms are {straight:.2f} from those of {reference.manifest.split} of "
        f"{reference.name}, {swapped:.2f} with red and blue exchanged"
    )
    return Verdict(name=name, finding=finding, measured=advantage, sentence=sentence)


def _film(store: EpisodeStore, role: str, state_columns: list[int]) -> _Film:
    """Colours of the first, middle and last frames of episodes; repeats and motion of every step."""
    counts_CB = np.zeros((3, 32))
    warm = 0
    cold = 0
    same: list[bool] = []
    moved: list[float] = []
    columns = [image_column(role), *(["proprio"] if state_columns else [])]
    chosen = places(store, _FILMED)
    for (shard, episode), table in zip(chosen, read_episodes(store, chosen, columns), strict=True):
        frames = table[image_column(role)]
        for step in {0, len(frames) // 2, len(frames) - 1}:
            try:
                image_HWC = decode_image(frames[step].as_py())
            except ValueError as error:
                raise store.frame_error(
                    shard, episode, step, f"of camera {role} cannot be decoded ({error})"
                ) from error
            counts_CB += np.array(Image.fromarray(image_HWC).histogram()).reshape(3, 32, 8).sum(axis=2)
            red_over_blue_HW = image_HWC[..., 0].astype(np.int16) - image_HWC[..., 2]
            redder = int(np.maximum(red_over_blue_HW, 0).sum(dtype=np.int64))
            warm += redder
            cold += redder - int(red_over_blue_HW.sum(dtype=np.int64))
        if state_columns:
            same += pc.call_function("equal", [frames.slice(1), frames.slice(0, len(frames) - 1)]).to_pylist()
            state = np.asarray(table["proprio"].combine_chunks().flatten()).reshape(table.num_rows, -1)
            steps_ND = np.diff(np.nan_to_num(state[:, state_columns], posinf=0, neginf=0), axis=0)
            moved += np.linalg.norm(steps_ND, axis=1).tolist()
    pixels = max(int(counts_CB[0].sum()), 1)
    share = warm / max(warm + cold, 1)
    palette = _Palette(shares_CB=counts_CB / pixels, warm_share=share, colourful=(warm + cold) / pixels)
    return _Film(palette=palette, same=same, moved=moved)


def _repeated_frames(film: _Film, *, has_pose: bool) -> Verdict:
    """Encoded frames of the main camera that equal the next one although the state moved visibly between them."""
    name = "frames_follow_the_motion"
    if not has_pose:
        return unknown(name, "the store has no pose in its proprioception")
    moved = film.moved
    visible = np.asarray(moved) > max(np.median(moved) / 2, 1e-4) if moved else np.zeros(0, bool)
    if visible.sum() < FEWEST_STEPS:
        return unknown(name, f"only {int(visible.sum())} steps in which the state moves")
    share = float(np.asarray(film.same)[visible].mean())
    sentence = f"{100 * share:.1f} % of {int(visible.sum())} steps in which the state moves repeat the frame before"
    return by_share(name, share, _REPEATED_SHARE, sentence)
