"""Where a trained model comes from: what a checkpoint or bundle records beside weights, configuration and contract.

The JSON form is that of a checkpoint's metadata, and of "metadata" in a bundle's policy.json. It may have further
entries (experiment, position, loop state), which are kept as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from pipelines.publishing.training_stores import (
    StoreReference,
    found_again,
    paths_alone,
    references_json,
    references_of,
    seen_from,
)
from preprocessing.store.json_files import JsonObject

Which = Literal["averaged", "last"]
"""The running average of the weights (EMA), or the weights as the last step left them."""


@dataclass(frozen=True, kw_only=True)
class ModelOrigin:
    """Training stores, code, MLflow run and kind of weights; defaults stand for what older files do not record."""

    stores: tuple[StoreReference, ...] = ()
    git_revision: str = "unknown"
    mlflow_run_id: str | None = None
    """Of its training; None if it was not trained here."""
    recipe: str | None = None
    """Name of the experiment that trained it."""
    weights: Which | None = None
    """None for weights that were not trained here."""
    document: Mapping[str, object] = field(default_factory=dict, repr=False)
    """The JSON that it was read from, which `to_json` writes again."""

    @staticmethod
    def from_json(data: JsonObject) -> ModelOrigin:
        return ModelOrigin(
            stores=tuple(references_of(data)),
            git_revision=str(data.get("git_revision", "unknown")),
            mlflow_run_id=data.get("mlflow_run_id"),
            recipe=(data.get("experiment") or {}).get("name"),
            weights=data.get("weights"),
            document=data,
        )

    def to_json(self) -> dict[str, object]:
        """Plain data, with the further entries that were read."""
        data = {**self.document, "git_revision": self.git_revision}
        data |= references_json(self.stores) if self._knows_files() else paths_alone(self.stores)
        if self.mlflow_run_id is not None:
            data["mlflow_run_id"] = self.mlflow_run_id
        return data if self.weights is None else {**data, "weights": self.weights}

    def found_from(self, folder: str) -> ModelOrigin:
        """The origin read in `folder`, with the stores' present paths if the project has moved."""
        return replace(self, stores=tuple(found_again(reference, folder) for reference in self.stores))

    def seen_from(self, folder: str) -> ModelOrigin:
        """The origin for another `folder`."""
        if not self._knows_files():
            return self
        return replace(self, stores=tuple(seen_from(reference, folder) for reference in self.stores))

    def _knows_files(self) -> bool:
        """Whether the stores' fingerprints were recorded; older metadata have their paths alone."""
        return all(reference.fingerprint for reference in self.stores)
