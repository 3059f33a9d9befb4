"""The contracts that every room shares: action space, action transforms, cameras and state, batch, contract id.

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
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
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
from rt_models.batch_fields import BATCH as BATCH
from rt_models.batch_fields import EMBEDDING_WIDTH as EMBEDDING_WIDTH
from rt_models.batch_fields import RT2_BATCH as RT2_BATCH
from rt_models.batch_fields import BatchField as BatchField
from rt_models.batch_fields import batch_fields as batch_fields
from rt_models.batch_fields import check_batch as check_batch
from rt_models.batch_fields import check_rt2_batch as check_rt2_batch
from rt_models.batch_fields import rt2_batch_fields as rt2_batch_fields
from rt_models.camera_roles import CAMERA_ALIASES as CAMERA_ALIASES
from rt_models.camera_roles import MAIN_CAMERA as MAIN_CAMERA
from rt_models.camera_roles import camera_role as camera_role
from rt_models.camera_roles import frames_key as frames_key
from rt_models.camera_roles import image_index_key as image_index_key
from rt_models.camera_roles import index_key as index_key
from rt_models.camera_roles import of_role as of_role
from rt_models.camera_roles import require_cameras as require_cameras
from rt_models.object_marks import ObjectMarks as ObjectMarks
from rt_models.robot_inputs import ImageRecipe as ImageRecipe
from rt_models.robot_inputs import StateColumns as StateColumns
from rt_models.robot_inputs import StateInput as StateInput
from rt_models.robot_inputs import StateSide as StateSide
from rt_models.robot_inputs import StoreInputs as StoreInputs
from rt_models.robot_inputs import union_of_states as union_of_states
from rt_models.simulated_source import SimulatedSource as SimulatedSource
from rt_models.space_map import MapArrays as MapArrays
from rt_models.space_map import MappedDimension as MappedDimension
from rt_models.space_map import SpaceMap as SpaceMap
from rt_models.space_map import is_euler as is_euler
from rt_models.space_map import read_map as read_map
from rt_models.space_map import require_meaningful as require_meaningful


class ContractMismatch(ValueError):
    """Two parts that must agree (store, checkpoint, model, server) do not; the message prints both sides."""


# --- The contract between store, checkpoint, registered model and server ---


@dataclass(frozen=True, kw_only=True)
class DatasetContract:
    """One dataset's side of the contract: which dimensions it has, their statistics and the transform applied.

    `arm` says what an action of the arm is: what the source commanded, or the displacement that its state then reached.
    `meanings`, one a dimension, are what the dataset's spec declares of a space other than RT-1's; they are empty in
    RT-1's, whose dimensions mean the same everywhere. `own` is where the actions came from that a declared map brought
    into the space of this contract; None where they have been in it all along. `without_cameras` are roles that the
    model reads and the dataset does not have; `state` is what the model reads of the robot's state, None for nothing.
    `gripper` (absolute: a closedness to hold, relative: a change, none) and the hash of the dataset `spec` are what its
    store declared when a model was trained; they are no part of the id, and "" where nobody said.
    `simulated` says how a simulator drew the dataset, where that is known; it is no part of the id.
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
    without_cameras: tuple[str, ...] = ()
    state: StateSide | None = None
    gripper: str = field(default="", compare=False)
    spec: str = field(default="", compare=False)
    simulated: SimulatedSource | None = field(default=None, compare=False)

    def declared(self, *, gripper: str, spec: str) -> DatasetContract:
        """With what its store declares, in its own space too."""
        own = None if self.own is None else replace(self.own, dataset=replace(self.own.dataset, gripper=gripper))
        return replace(self, gripper=gripper, spec=spec, own=own)

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
    """Everything that must agree for an action to mean the same on both sides; `id` names it.

    `cameras` beside the main one and the names in `state` are what a model reads; a store's contract has none of them.
    `num_steps` and `stride` say on how many frames an answer rests, and how many control steps lie between them; they
    are no part of the id. 0: nobody said, as in older contracts and in those of stores.
    """

    action: ActionSpec
    encoder: str
    image: ImageRecipe
    datasets: tuple[DatasetContract, ...]
    cameras: tuple[ImageRecipe, ...] = ()
    state: tuple[str, ...] = ()
    num_steps: int = field(default=0, compare=False)
    stride: int = field(default=1, compare=False)

    @property
    def id(self) -> str:
        sides = tuple(dataset.declared(gripper="", spec="") for dataset in self.datasets)
        agreed = replace(self, num_steps=0, stride=1, datasets=sides).to_json()
        for dataset in agreed["datasets"]:
            for side in (dataset, dataset.get("own", {}).get("dataset", {})):
                side.pop("simulated", None)
        return hashlib.sha256(json.dumps(agreed, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Plain data. What is as it was before there was a choice is left out: older contracts keep their id."""
        data = json.loads(json.dumps(asdict(self)))
        _leave_out(data, cameras=[], state=[], num_steps=0, stride=1)
        _leave_out_of_sides(data["action"], data["datasets"])
        return data

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Contract:
        return Contract(
            action=_action_from_json(data["action"]),
            encoder=data["encoder"],
            image=ImageRecipe(**data["image"]),
            datasets=tuple(_dataset_from_json(dataset) for dataset in data["datasets"]),
            cameras=tuple(ImageRecipe(**recipe) for recipe in data.get("cameras", ())),
            state=tuple(data.get("state", ())),
            num_steps=data.get("num_steps", 0),
            stride=data.get("stride", 1),
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

    def reading(self, cameras: Sequence[str], state: Sequence[str], inputs: Sequence[StoreInputs]) -> Contract:
        """The contract of a model that reads these cameras and this state; `inputs` are those of its datasets.

        Raises ContractMismatch for a camera that no dataset has, or that is stored in different ways.
        """
        recipes: list[ImageRecipe] = []
        for role in cameras:
            if role == MAIN_CAMERA:
                continue
            of_dataset = {d.name: _recipe(each, role) for d, each in zip(self.datasets, inputs, strict=True)}
            recipe_of = {name: recipe for name, recipe in of_dataset.items() if recipe is not None}
            if not recipe_of:
                raise ContractMismatch(f"the model reads camera {role}, and no store has it: leave it out of cameras")
            (first, recipe), *others = recipe_of.items()
            for name, other in others:
                if other != recipe:
                    raise ContractMismatch(
                        f"stores cannot be mixed: camera {role} is {recipe} in {first} and {other} in {name}; "
                        f"preprocess both with the same --image-size, --resize and --cameras"
                    )
            recipes.append(recipe)
        sides = [_with_inputs(d, recipes, state, each) for d, each in zip(self.datasets, inputs, strict=True)]
        return replace(self, datasets=tuple(sides), cameras=tuple(recipes), state=tuple(state))

    def recipe(self, role: str) -> ImageRecipe:
        """Of a camera that the model reads."""
        return next(recipe for recipe in (*self.cameras, replace(self.image, camera=role)) if recipe.camera == role)

    def state_columns(self, datasets: Sequence[str]) -> StateColumns | None:
        """How the state of stores of these datasets is read; None where the model reads none."""
        if not self.state:
            return None
        return StateColumns(names=self.state, sides=tuple(self.dataset(name).state for name in datasets))

    def require_readable(self, store: Contract, *, where: str, inputs: StoreInputs | None = None) -> None:
        """Raise ContractMismatch unless data under the contract `store` mean what this one (a model's) expects.

        `inputs`: what the store has beside the main camera, needed where the model reads that.
        """
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
                ("rate", f"{ours.control_hz:g} Hz", f"{theirs.control_hz:g} Hz", same_rate(ours, theirs)),
                ("gripper", ours.gripper, theirs.gripper, same_gripper(ours, theirs)),
                *self._inputs_of(found or ours, inputs or StoreInputs()),
            ]
        wrong = [f"{part}: the model has {mine}, {where} has {other}" for part, mine, other, same in sides if not same]
        if wrong:
            sides_id = f"contract {self.id} of the model does not fit contract {store.id} of {where}"
            raise ContractMismatch(f"{sides_id}: {'; '.join(wrong)}")

    def _inputs_of(self, ours: DatasetContract, inputs: StoreInputs) -> list[tuple[str, object, object, bool]]:
        """(part, the model's, the store's, whether they agree) of what is read beside the main camera."""
        sides: list[tuple[str, object, object, bool]] = []
        for recipe in self.cameras:
            mine = None if recipe.camera in ours.without_cameras else recipe
            found = _recipe(inputs, recipe.camera)
            sides.append((f"camera {recipe.camera}", mine or "none", found or "none", mine == found))
        if ours.state is not None:
            mine, theirs = ours.state.described(), "none"
            if inputs.state is not None:
                theirs = inputs.state.chosen(ours.state.recorded_names).described()
                theirs = theirs or f"none of it, only {inputs.state.described()}"
            sides.append(("state", mine, theirs, mine == theirs))
        return sides


def same_rate(one: DatasetContract, other: DatasetContract) -> bool:
    """Whether an action lasts as long in both, within 2 %; a rate of 0 is unknown."""
    rates = one.control_hz, other.control_hz
    return 0 in rates or math.isclose(*rates, rel_tol=0.02)


def same_gripper(one: DatasetContract, other: DatasetContract) -> bool:
    """Whether a gripper's number means as much in both, a place to hold or a change; "" is unknown."""
    return "" in (one.gripper, other.gripper) or one.gripper == other.gripper


def _recipe(inputs: StoreInputs, role: str) -> ImageRecipe | None:
    return next((recipe for recipe in inputs.cameras if recipe.camera == role), None)


def _with_inputs(
    dataset: DatasetContract, recipes: Sequence[ImageRecipe], state: Sequence[str], inputs: StoreInputs
) -> DatasetContract:
    lacking = tuple(recipe.camera for recipe in recipes if _recipe(inputs, recipe.camera) is None)
    chosen = None if inputs.state is None else inputs.state.chosen(state)
    return replace(dataset, without_cameras=lacking, state=chosen if chosen is not None and chosen.names else None)


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
    state = _state_from_json(data["state"]) if "state" in data else None
    simulated = SimulatedSource.from_json(data["simulated"]) if "simulated" in data else None
    parts = {"statistics": statistics, "transform": transform, "meanings": meanings, "own": own, "state": state}
    return DatasetContract(**{**_tuples(data), **parts, "simulated": simulated})


def _state_from_json(data: Mapping[str, Any]) -> StateSide:
    statistics = ActionStatistics(**_tuples(data["statistics"]))
    transform = AffineTransform(**_tuples(data["transform"]))
    return StateSide(**{**_tuples(data), "statistics": statistics, "transform": transform})


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
        _leave_out(dataset, arm="commanded", meanings=[], own=None, without_cameras=[], state=None)
        _leave_out(dataset, gripper="", spec="", simulated=None)
        if "state" in dataset:
            _leave_out(dataset["state"], own_names=[])
        if "own" in dataset:
            _leave_out_of_sides(dataset["own"]["action"], [dataset["own"]["dataset"]])


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}


def _leave_out(data: dict[str, Any], **defaults: object) -> None:
    """Take out of `data` the fields that are at these values."""
    for name, default in defaults.items():
        if data[name] == default:
            del data[name]
