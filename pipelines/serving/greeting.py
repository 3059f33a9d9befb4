"""What a server says of its policy before the first question: what its answers mean, and what it wants to see."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.publishing.inference import InferenceModel
from pipelines.serving.adapters.base import Adapter
from pipelines.serving.observation import CAMERA_KEYS
from pipelines.serving.request_format import OBJECTS
from rt_models.action_space import ActionSpec
from rt_models.spec import MAIN_CAMERA, DatasetContract, ImageRecipe

HORIZON = 1  # actions of an answer: a policy here answers one step at a time


_UNSAID: dict[str, object] = {"action_names": [], "dimensions": [], "classes": {}, "convention": {}}


def greeting(model: InferenceModel, adapter: Adapter, dataset: str | None, source: str) -> dict[str, object]:
    """Plain data for a websocket's metadata, GET /describe and the page.

    Where the policy was trained on several data sets and none was chosen, units are given for each in `datasets`; and
    names, classes and conventions too, where the data sets act in spaces of their own.
    """
    contract, sides = model.contract, model.contract.datasets
    side = contract.dataset(dataset) if dataset is not None or len(sides) == 1 else None
    units = _units(model, side or sides[0])
    spaces = [each.acted(contract.action)[0] for each in ([side] if side else sides)]
    is_one = all(space.same_space(spaces[0]) for space in spaces)
    answered = _answered(spaces[0], adapter) if is_one else _UNSAID
    return {
        "model": source,
        "contract": contract.id,
        "adapter": type(adapter).__name__,
        **answered,
        "units": {name: adapter.unit_of(name, units) for name in adapter.names(spaces[0].names)} if side else {},
        "action_horizon": HORIZON,
        "control_hz": side.control_hz if side else None,
        "absent": list(model.absent(side)) if side else [],
        "datasets": {
            each.name: _of_dataset(model, each) | ({} if is_one else _answered(each.acted(contract.action)[0], adapter))
            for each in sides
        },
        "encoder": contract.encoder,
        "images": [_image(contract.recipe(role), _keys(role, adapter)) for role in model.roles],
        "state": _state(side),
        "objects": list(OBJECTS) if model.reads_object_masks else [],
        "frames": model.num_frames,
        "stride": model.stride,
        "plan_tokens": model.plan_tokens,
        "instructions": [text for text in model.instructions.vectors if text.strip()][:100],
    }


def _answered(action: ActionSpec, adapter: Adapter) -> dict[str, object]:
    """What the numbers of an answer in this space are."""
    return {
        "action_names": list(adapter.names(action.names)),
        "dimensions": list(action.names),
        "classes": {d.name: list(d.class_names) for d in action.dimensions if d.class_names},
        "convention": {"action_space": action.name, "gripper": action.gripper},
    }


def _of_dataset(model: InferenceModel, side: DatasetContract) -> dict[str, object]:
    told: dict[str, object] = {"units": _units(model, side), "control_hz": side.control_hz}
    told["absent"] = list(model.absent(side))
    if model.contract.cameras or model.contract.state:
        told |= {"cameras": list(model.cameras(side)), "state": _state(side)}
    return told


def _keys(role: str, adapter: Adapter) -> Sequence[str]:
    """Where a camera's picture is looked for."""
    return adapter.image_keys if role == MAIN_CAMERA else [key.format(role) for key in CAMERA_KEYS]


def _image(recipe: ImageRecipe, keys: Sequence[str]) -> dict[str, object]:
    size = {"height": recipe.height, "width": recipe.width}
    return {
        "camera": recipe.camera,
        **size,
        "layout": "rgb_hwc_uint8",
        "resize": recipe.resize,
        "keys": list(keys),
    }


def _state(side: DatasetContract | None) -> list[dict[str, str]]:
    """Names and units of the values that the policy of a data set reads, in their order."""
    state = None if side is None else side.state
    pairs = [] if state is None else zip(state.recorded_names, state.units, strict=True)
    return [{"name": name, "unit": unit} for name, unit in pairs]


def _units(model: InferenceModel, side: DatasetContract) -> dict[str, str]:
    action, own = side.acted(model.contract.action)
    return dict(zip(action.names, own.units, strict=True))
