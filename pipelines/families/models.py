"""All kinds of model: the families of this folder, the unions of their configs and models, and the family of a value.

A module of this folder that holds a FAMILY is one kind of model: the folder is listed, as recipes are.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import pipelines.families
from pipelines.config.serialization import read_value
from pipelines.families.base import ModelFamily
from rt_models.robot_model import RobotModel, RobotModelConfig

_MODULES = (module for module in pkgutil.iter_modules(pipelines.families.__path__) if module.name != "models")
_IMPORTED = (importlib.import_module(f"pipelines.families.{module.name}") for module in _MODULES)

AnyFamily: TypeAlias = ModelFamily[Any, Any]
FAMILIES: tuple[AnyFamily, ...] = tuple(module.FAMILY for module in _IMPORTED if hasattr(module, "FAMILY"))

if TYPE_CHECKING:
    ModelConfig = RobotModelConfig
    Model = RobotModel
else:  # what an experiment, a checkpoint and an exported folder can hold
    ModelConfig = Union[tuple(family.config_class for family in FAMILIES)]  # noqa: UP007
    Model = Union[tuple(family.model_class for family in FAMILIES)]  # noqa: UP007


def family_of(config_or_model: RobotModelConfig | RobotModel) -> AnyFamily:
    """The family that a config or a model belongs to. Raises TypeError for anything else."""
    for family in FAMILIES:
        if isinstance(config_or_model, family.config_class | family.model_class):
            return family
    raise TypeError(f"{type(config_or_model).__name__} is no model or model config of pipelines/families")


def model_config(plain: object) -> ModelConfig:
    """The config that `to_plain` wrote. Raises ValueError for an unknown class or setting."""
    return read_value(ModelConfig, plain, path="model")
