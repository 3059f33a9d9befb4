"""Adapters by name, or from a YAML file of one's own."""

from __future__ import annotations

from pathlib import Path

from pipelines.config.serialization import did_you_mean, from_plain, read_yaml
from pipelines.serving.adapters.base import Adapter
from pipelines.serving.adapters.custom import Custom
from pipelines.serving.adapters.droid import Droid
from pipelines.serving.adapters.lerobot import LeRobot
from pipelines.serving.adapters.libero import Libero
from pipelines.serving.adapters.openvla import OpenVLA
from pipelines.serving.adapters.own import Own
from pipelines.serving.adapters.simpler import GoogleRobot, WidowXBridge
from pipelines.serving.adapters.vla_eval import VlaEval

ADAPTERS: dict[str, type[Adapter]] = {
    "own": Own,
    "openvla": OpenVLA,
    "libero": Libero,
    "droid": Droid,
    "vla-eval": VlaEval,
    "google_robot": GoogleRobot,
    "widowx_bridge": WidowXBridge,
    "lerobot": LeRobot,
}


def adapter(name_or_file: str) -> Adapter:
    """The adapter of this name with its defaults, or the one that a YAML file describes: its fields, and under `type`
    the class (by default Custom). Raises ValueError for what is neither."""
    if name_or_file in ADAPTERS:
        return ADAPTERS[name_or_file]()
    if not name_or_file.endswith((".yaml", ".yml")):
        raise ValueError(f"--adapter {name_or_file}: there is no such adapter{did_you_mean(name_or_file, [*ADAPTERS])}")
    if not Path(name_or_file).is_file():
        raise ValueError(f"--adapter {name_or_file}: there is no such file")
    data = read_yaml(name_or_file)
    classes = {kind.__name__: kind for kind in (Custom, *ADAPTERS.values())}
    name = data.get("type", "Custom") if isinstance(data, dict) else "Custom"
    if name not in classes:
        raise ValueError(f"{name_or_file}: type: no adapter {name!r}{did_you_mean(str(name), [*classes])}")
    try:
        return from_plain(classes[name], data)
    except ValueError as error:
        raise ValueError(f"{name_or_file}: {error}") from error
