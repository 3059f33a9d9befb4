"""Where the statements of a dataset spec come from, and what nobody has documented.

Every file of `preprocessing/openx/` says it beside its spec. Not part of the spec's hash: it changes no number.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from preprocessing.dataset_spec import load, names

FEATURES = "features.json of the release"
CATALOGUE = "the catalogue of TensorFlow Datasets"
OCTO = "octo-models/octo 241fb35, octo/data/oxe/oxe_standardization_transforms.py"
OPENVLA = "openvla/openvla c8f03f48, prismatic/vla/datasets/rlds/oxe/transforms.py"
NOTEBOOK = "google-deepmind/open_x_embodiment 9eeb68b9, colabs/Minimal_Training_Example.ipynb"
SHEET = "the Open X-Embodiment table of datasets, as any4lerobot repeats it (openx2lerobot/oxe_utils/configs.py)"


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The source of what a spec says of units, gripper and rate, and of `rotation`: how its rotations are written.

    `unknown` lists what no source says; where the spec has to name something all the same, what it took. `corrected`:
    what values meant by an earlier spec of ours, where the units did not tell.
    """

    units: str
    gripper: str
    rate: str
    rotation: str
    unknown: tuple[str, ...] = ()
    corrected: str = ""

    def __post_init__(self) -> None:
        for name in ("units", "gripper", "rate", "rotation"):
            if not getattr(self, name).strip():
                raise ValueError(f"provenance has no source for {name}: name one, or say that it is not documented")


def corrections(dataset: str, spec: str) -> str:
    """What values meant in stores and models of before, where `spec` is the hash of the dataset's spec of today and an
    earlier one meant something else; else ""."""
    if dataset not in names() or load(dataset).hash() != spec:
        return ""
    return provenance(dataset).corrected


def provenance(dataset: str) -> Provenance:
    """That of a dataset of `preprocessing/openx/`, by file name."""
    return importlib.import_module(f"preprocessing.openx.{dataset}").PROVENANCE
