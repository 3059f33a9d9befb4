"""The contracts that every room shares: action space, action transforms, image recipe, batch, contract id.

NumPy and the standard library only, so that a data job can import it without torch.

Two number lines are kept apart. *Physical* values are what the episode store holds (metres, radians, or the source's
own number where its unit is unknown). *Model* values are what is binned into tokens: physical values after an
`AffineTransform`, expected in each dimension's [low, high]. With the identity transform the two coincide, as in the
official RT-1 (google-research/robotics_transformer 4569641b `tokenizers/action_tokenizer.py:142`;
google-deepmind/open_x_embodiment 9eeb68b9 `models/rt1.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from rt_models.action_scaling import RT1X as RT1X
from rt_models.action_scaling import ActionStatistics, AffineTransform, Scaling
from rt_models.action_scaling import Bounds as Bounds
from rt_models.action_scaling import Identity as Identity
from rt_models.action_scaling import Quantiles as Quantiles
from rt_models.action_scaling import unscaled as unscaled
from rt_models.action_space import ARM as ARM
from rt_models.action_space import BASE as BASE
from rt_models.action_space import TERMINATE as TERMINATE
from rt_models.action_space import ActionDimension, ActionSpec, DimensionMeaning
from rt_models.action_space import rt1_action_spec as rt1_action_spec
from rt_models.action_space import seven_d_action_spec as seven_d_action_spec
from rt_models.space_map import MapArrays as MapArrays
from rt_models.space_map import MappedDimension as MappedDimension
from rt_models.space_map import SpaceMap as SpaceMap
from rt_models.space_map import is_euler as is_euler
from rt_models.space_map import read_map as read_map
from rt_models.space_map import require_meaningful as require_meaningful

EMBEDDING_WIDTH = 512  # Universal Sentence Encoder


class ContractMismatch(ValueError):
    """Two parts that must agree (store, checkpoint, model, server) do not; the message prints both sides."""


# --- The contract between store, checkpoint, registered model and server ---


@dataclass(frozen=True, kw_only=True)
class ImageRecipe:
    """What was done to a camera frame before the model: "none", or a resize by "pad", "squash" or "crop"."""

    camera: str
    height: int
    width: int
    resize: Literal["none", "pad", "squash", "crop"] = "none"

    def __str__(self) -> str:
        resize = "as recorded" if self.resize == "none" else f"resized by {self.resize}"
        return f"{self.height}x{self.width} of camera {self.camera}, {resize}"


@dataclass(frozen=True, kw_only=True)
class DatasetContract:
    """One dataset's side of the contract: which dimensions it has, their statistics and the transform applied.

    `arm` says what an action of the arm is: what the source commanded, or the displacement that its state then reached.
    `meanings`, one a dimension, are what the dataset's spec declares of a space other than RT-1's; they are empty in
    RT-1's, whose dimensions mean the same everywhere. `own` is where the actions came from that a declared map brought
    into the space of this contract; None where they have been in it all along.
    """

    name: str
    version: str
    control_hz: float
    action_mask: tuple[bool, ...]
    units: tuple[str, ...]
    statistics: ActionStatistics
    transform: AffineTransform
    arm: Literal["commanded", "reached"] = "commanded"
    meanings: tuple[DimensionMeaning, ...] = ()
    own: OwnSide | None = None

    def acted(self, action: ActionSpec) -> tuple[ActionSpec, DatasetContract]:
        """The space that actions for this dataset's robot are in, and its side there; `action` is the contract's."""
        return (action, self) if self.own is None else (self.own.action, self.own.dataset)

    @property
    def kinds(self) -> tuple[str, ...]:
        """What each dimension commands, in words: "delta", "velocity in the base frame"; empty in RT-1's space."""
        return tuple(meaning.in_words() for meaning in self.meanings)

    def answered_in(self, dims_A: Sequence[bool]) -> DatasetContract:
        """The side of a policy that answers in these dimensions alone: the others are absent from it."""
        return replace(self, action_mask=tuple(np.logical_and(self.action_mask, dims_A).tolist()))

    def completed(self, physical: np.ndarray, action: ActionSpec) -> np.ndarray:
        """Physical actions (..., A) of the space `action` with the neutral value in dimensions the dataset lacks.

        A model was never trained on those: what it says there (a base that turns, an episode that ends) is noise. No
        action leaves a policy without this.
        """
        return np.where(self.action_mask, physical, self.neutral(action)).astype(np.float32)

    def neutral(self, action: ActionSpec) -> np.ndarray:
        """float32 (A,): the value of each dimension of `action` that commands nothing; NaN where there is none."""
        if self.meanings:
            declared = [meaning.neutral for meaning in self.meanings]
            return np.array([np.nan if value is None else value for value in declared], np.float32)
        means = zip(action.dimensions, self.statistics.mean, strict=True)
        return np.array([dimension.neutral(mean) for dimension, mean in means], np.float32)


@dataclass(frozen=True, kw_only=True)
class OwnSide:
    """A dataset as its store has it, and the map from there into the common space of a contract."""

    action: ActionSpec
    dataset: DatasetContract
    map: SpaceMap

    def arrays(self, common: ActionSpec) -> MapArrays:
        return MapArrays.of(self.map, self.action.names, common.names)

    def returned(self, physical_xA: np.ndarray, common: ActionSpec) -> np.ndarray:
        """float32 (..., O): common physical values (..., A) in the robot's own space, neutral where nothing maps."""
        return self.arrays(common).back(physical_xA, self.dataset.neutral(self.action))


@dataclass(frozen=True, kw_only=True)
class Contract:
    """Everything that must agree for an action to mean the same on both sides; `id` names it."""

    action: ActionSpec
    encoder: str
    image: ImageRecipe
    datasets: tuple[DatasetContract, ...]

    @property
    def id(self) -> str:
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Plain data. What is as it was before there was a choice is left out: older contracts keep their id."""
        data = json.loads(json.dumps(asdict(self)))
        _leave_out_of_sides(data["action"], data["datasets"])
        return data

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Contract:
        return Contract(
            action=_action_from_json(data["action"]),
            encoder=data["encoder"],
            image=ImageRecipe(**data["image"]),
            datasets=tuple(_dataset_from_json(dataset) for dataset in data["datasets"]),
        )

    def dataset(self, name: str | None = None) -> DatasetContract:
        """The named dataset's side, or the only one. Raises ValueError if the name is needed or unknown."""
        known = ", ".join(dataset.name for dataset in self.datasets) or "none: the weights are bound to no dataset"
        if name is None and len(self.datasets) == 1:
            return self.datasets[0]
        if name is None:
            raise ValueError(f"actions have the units and scale of one dataset: name the dataset, one of {known}")
        for dataset in self.datasets:
            if dataset.name == name:
                return dataset
        raise ValueError(f"dataset {name!r:.60} is not in this contract: name one of {known}")

    def trained_with(self, action: ActionSpec, scaling: Scaling) -> Contract:
        """The contract of a model with this action space, trained on these stores with this scaling."""
        datasets = tuple(replace(d, transform=scaling.fit(action, d.statistics, d.name)) for d in self.datasets)
        return replace(self, action=action, datasets=datasets)

    def require_readable(self, store: Contract, *, where: str) -> None:
        """Raise ContractMismatch unless data under the contract `store` mean what this one (a model's) expects."""
        if not self.datasets:
            raise ContractMismatch(
                f"the model is bound to no dataset, so what its actions mean in {where} is unknown: import its weights "
                f"again with rtp import-weights ... --data {where}"
            )
        theirs = store.datasets[0]
        found = next((dataset for dataset in self.datasets if dataset.name == theirs.name), None)
        action, ours = (self.action, None) if found is None else found.acted(self.action)
        sides = [
            ("action space", action.name, store.action.name, action.same_space(store.action)),
            ("encoder", self.encoder, store.encoder, self.encoder == store.encoder),
            ("image", self.image, store.image, self.image == store.image),
            ("dataset", [d.name for d in self.datasets], theirs.name, ours is not None),
        ]
        if ours is not None:
            sides += [
                ("units", ours.units, theirs.units, ours.units == theirs.units),
                ("kinds of action", ours.kinds, theirs.kinds, ours.kinds == theirs.kinds),
                ("action dimensions", ours.action_mask, theirs.action_mask, ours.action_mask == theirs.action_mask),
            ]
        wrong = [f"{part}: the model has {mine}, {where} has {other}" for part, mine, other, same in sides if not same]
        if wrong:
            sides_id = f"contract {self.id} of the model does not fit contract {store.id} of {where}"
            raise ContractMismatch(f"{sides_id}: {'; '.join(wrong)}")


def merge_contracts(contracts: Sequence[Contract]) -> Contract:
    """One contract over several stores of a mixture. Raises ContractMismatch if they cannot be mixed."""
    first = contracts[0]
    for other in contracts[1:]:
        for part, flags in (("encoder", "--encoder"), ("image", "--image-size, --resize and --cameras")):
            if getattr(first, part) != getattr(other, part):
                raise ContractMismatch(
                    f"stores cannot be mixed: {part} is {getattr(first, part)} in {first.datasets[0].name} "
                    f"and {getattr(other, part)} in {other.datasets[0].name}; preprocess both with the same {flags}"
                )
        if not first.action.same_space(other.action):
            raise ContractMismatch(
                f"stores cannot be mixed: action spaces {first.action.name}, {other.action.name}; name a common space "
                f"with mixture.space and declare mixture.maps into it"
            )
    names = [dataset.name for contract in contracts for dataset in contract.datasets]
    if len(set(names)) < len(names):
        raise ContractMismatch(f"stores cannot be mixed: {max(names, key=names.count)} is given more than once")
    return replace(first, datasets=tuple(dataset for contract in contracts for dataset in contract.datasets))


def _dataset_from_json(data: Mapping[str, Any]) -> DatasetContract:
    statistics = ActionStatistics(**_tuples(data["statistics"]))
    transform = AffineTransform(**_tuples(data["transform"]))
    meanings = tuple(DimensionMeaning(**meaning) for meaning in data.get("meanings", ()))
    own = _own_from_json(data["own"]) if "own" in data else None
    parts = {"statistics": statistics, "transform": transform, "meanings": meanings, "own": own}
    return DatasetContract(**{**_tuples(data), **parts})


def _own_from_json(data: Mapping[str, Any]) -> OwnSide:
    return OwnSide(
        action=_action_from_json(data["action"]),
        dataset=_dataset_from_json(data["dataset"]),
        map=tuple(MappedDimension(**each) for each in data["map"]),
    )


def _action_from_json(data: Mapping[str, Any]) -> ActionSpec:
    dimensions = tuple(ActionDimension(**_tuples(dimension)) for dimension in data["dimensions"])
    return ActionSpec(**{**data, "dimensions": dimensions})


def _leave_out_of_sides(action: dict[str, Any], datasets: Sequence[dict[str, Any]]) -> None:
    for dimension in action["dimensions"]:
        _leave_out(dimension, classes=[], bounded_by="convention")
    for dataset in datasets:
        _leave_out(dataset, arm="commanded", meanings=[], own=None)
        if "own" in dataset:
            _leave_out_of_sides(dataset["own"]["action"], [dataset["own"]["dataset"]])


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}


def _leave_out(data: dict[str, Any], **defaults: object) -> None:
    """Take out of `data` the fields that are at these values."""
    for name, default in defaults.items():
        if data[name] == default:
            del data[name]


# --- The batches that the loader hands out ---


@dataclass(frozen=True, kw_only=True)
class BatchField:
    """One key of a batch. Axes: B windows or rows, T steps, I image places, L tokens, F frames, N distinct images, HW
    pixels, C colours, A actions, D embedding, S a single number."""

    dtype: str
    axes: str
    meaning: str
    optional: bool = False


BATCH: dict[str, BatchField] = {
    "frames": BatchField(dtype="uint8", axes="FHWC", meaning="distinct RGB frames, 0..255, at the store's size"),
    "frame_index": BatchField(dtype="int64", axes="BT", meaning="row of `frames` for each step; -1: padding, no frame"),
    "step_mask": BatchField(dtype="bool", axes="BT", meaning="True: a real step; False: padding before the episode"),
    "loss_mask": BatchField(dtype="bool", axes="BT", meaning="True: trained on (real and not terminal)"),
    "embedding": BatchField(dtype="float32", axes="BTD", meaning="instruction embedding; zeros on padding"),
    "action": BatchField(dtype="float32", axes="BTA", meaning="model values (after the transform); zeros on padding"),
    "action_mask": BatchField(dtype="bool", axes="BA", meaning="True: the dimension exists in the window's dataset"),
    "sample_id": BatchField(dtype="int64", axes="B", meaning="place in the global sample order"),
    "crop_key": BatchField(dtype="int64", axes="B", meaning="keys random crops; equal for windows of one segment"),
    "store": BatchField(dtype="int64", axes="B", meaning="number of the store in the mixture"),
    "episode": BatchField(dtype="int64", axes="B", meaning="number of the episode in its store"),
    "step": BatchField(dtype="int64", axes="B", meaning="step, from 0, at which the window ends"),
    "object_mask": BatchField(
        dtype="uint8",
        axes="FHW",
        meaning="marks the objects meant in `frames`, 0..255 (MOO); stores hold none, a reader of one's own adds it",
        optional=True,
    ),
    "image_frame": BatchField(dtype="int64", axes="N", meaning="row of `frames` of each image", optional=True),
    "image_step": BatchField(dtype="int64", axes="N", meaning="a step that shows it, counted over B, T", optional=True),
    "image_place": BatchField(dtype="int64", axes="BT", meaning="image of each step; -1: padding", optional=True),
    "num_images": BatchField(dtype="int32", axes="S", meaning="how many of N are real, the first", optional=True),
}


RT2_BATCH: dict[str, BatchField] = {
    "frames": BatchField(dtype="uint8", axes="FHWC", meaning="distinct RGB pictures of one size, 0..255"),
    "image_index": BatchField(dtype="int64", axes="BI", meaning="row of `frames` at each image place; -1: none"),
    "tokens": BatchField(dtype="int64", axes="BL", meaning="prompt, answer, end token; padded at the right"),
    "token_mask": BatchField(dtype="bool", axes="BL", meaning="True: a real token"),
    "answer_mask": BatchField(
        dtype="bool", axes="BL", meaning="True: a target of the loss, predicted from the place before it"
    ),
    "prompt_length": BatchField(dtype="int64", axes="B", meaning="tokens before the answer"),
    "is_robot": BatchField(dtype="bool", axes="B", meaning="True: a robot step; False: an image-text example"),
    "action": BatchField(dtype="float32", axes="BA", meaning="model values; zeros for an image-text example"),
    "action_mask": BatchField(dtype="bool", axes="BA", meaning="True: the dimension exists in the row's dataset"),
    "sample_id": BatchField(dtype="int64", axes="B", meaning="place in the global sample order"),
    "crop_key": BatchField(dtype="int64", axes="B", meaning="keys random crops of a robot's frames"),
    "store": BatchField(dtype="int64", axes="B", meaning="number of the store in the mixture"),
    "episode": BatchField(dtype="int64", axes="B", meaning="number of the episode in its store; -1: no robot step"),
    "step": BatchField(dtype="int64", axes="B", meaning="step of the episode, from 0; -1: no robot step"),
    "num_images": BatchField(dtype="int32", axes="S", meaning="how many of F are real, the first", optional=True),
    "answer_place": BatchField(
        dtype="int64", axes="BR", meaning="places of a row's targets, in order, then -1", optional=True
    ),
}


def check_batch(batch: Mapping[str, Any], *, action_size: int) -> None:
    """Raise ValueError unless `batch` (arrays or tensors) satisfies `BATCH`; tests call it at the loader's exit."""
    _check_fields(batch, BATCH, action_size)
    index, real = np.asarray(batch["frame_index"]), np.asarray(batch["step_mask"])
    if (index[real] < 0).any() or (index >= len(batch["frames"])).any() or (index[~real] != -1).any():
        raise ValueError("batch['frame_index'] must be a row of frames on real steps and -1 on padding")
    if np.asarray(batch["loss_mask"])[~real].any():
        raise ValueError("batch['loss_mask'] is True on padding")


def check_rt2_batch(batch: Mapping[str, Any], *, action_size: int) -> None:
    """Raise ValueError unless `batch` (arrays or tensors) satisfies `RT2_BATCH`; tests call it at the loader's exit."""
    _check_fields(batch, RT2_BATCH, action_size)
    index, real, is_robot = (np.asarray(batch[key]) for key in ("image_index", "token_mask", "is_robot"))
    if (index < -1).any() or (index >= len(batch["frames"])).any():
        raise ValueError("batch['image_index'] must be a row of frames or -1")
    if not real[:, 0].all() or (real[:, 1:] & ~real[:, :-1]).any():
        raise ValueError("batch['token_mask']: a row begins with a real token, and its padding stands at the right")
    prompt_BL = np.arange(real.shape[1]) < np.asarray(batch["prompt_length"])[:, None]
    if (np.asarray(batch["answer_mask"]) & (prompt_BL | ~real)).any():
        raise ValueError("batch['answer_mask'] is True on padding or in a prompt")
    for key in ("episode", "step"):
        if ((np.asarray(batch[key]) >= 0) != is_robot).any():
            raise ValueError(f"batch[{key!r}] must be 0 or more for a robot step and -1 elsewhere")


def _check_fields(batch: Mapping[str, Any], table: Mapping[str, BatchField], action_size: int) -> None:
    """Raise ValueError unless keys, dtypes and axes are those of `table`, and floats are finite."""
    needed = {key for key, field in table.items() if not field.optional}
    missing, extra = sorted(needed - set(batch)), sorted(set(batch) - set(table))
    if missing or extra:
        raise ValueError(f"batch keys: missing {missing}, extra {extra}")
    sizes = {"A": action_size, "C": 3, "D": EMBEDDING_WIDTH, "S": 1}
    for key, field in ((key, table[key]) for key in table if key in batch):
        dtype, shape = str(batch[key].dtype).removeprefix("torch."), tuple(batch[key].shape)
        if dtype != field.dtype or len(shape) != len(field.axes):
            raise ValueError(f"batch[{key!r}] is {dtype} {shape}, expected {field.dtype} with axes {field.axes}")
        for axis, length in zip(field.axes, shape, strict=True):
            if sizes.setdefault(axis, length) != length:
                raise ValueError(f"batch[{key!r}] has axis {axis} = {length}, elsewhere it is {sizes[axis]}")
        if dtype == "float32" and not np.isfinite(np.asarray(batch[key])).all():
            raise ValueError(f"batch[{key!r}] holds values that are not finite")
