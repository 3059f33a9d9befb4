"""What a sweep is, as its sweep.json keeps it: `rtp tune --resume` continues the same sweep only."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from pipelines.config.experiment import Experiment
from pipelines.config.serialization import flatten, from_plain, to_plain
from pipelines.training.job import TrainJob
from preprocessing.store.json_files import JsonObject
from preprocessing.store.lineage import fingerprint
from preprocessing.store.web_store import open_store
from tuning.sweep import Sweep

log = logging.getLogger(__name__)

_FREE = ("budget", "concurrency", "retries", "resources")  # of a sweep that is resumed
_FREE_SETTINGS = ("loader.where", "loader.remote_readers", "launch.wait_for_nodes_s")  # of its experiment


@dataclass(frozen=True, kw_only=True)
class SweepIdentity:
    """The sweep and its base experiment as plain data, its stores, and the MLflow run that it reports to.

    fingerprints: of the stores, then of the validation stores; None in older records, which have their paths alone.
    """

    sweep: JsonObject
    experiment: JsonObject
    stores: tuple[str, ...]
    validation: tuple[str, ...]
    fingerprints: tuple[str, ...] | None
    mlflow_run_id: str | None = None

    @staticmethod
    def of(sweep: Sweep, job: TrainJob) -> SweepIdentity:
        """Reads the stores' manifests."""
        roots = [open_store(path, split="train").root for path in job.stores]
        roots += [open_store(path, split="val").root for path in job.validation]
        return SweepIdentity(
            sweep=to_plain(sweep),
            experiment=to_plain(job.experiment),
            stores=job.stores,
            validation=job.validation,
            fingerprints=tuple(map(fingerprint, roots)),
        )

    @staticmethod
    def from_json(data: JsonObject, path: str) -> SweepIdentity:
        try:
            return SweepIdentity(
                sweep=data["sweep"],
                experiment=data["experiment"],
                stores=tuple(data["stores"]),
                validation=tuple(data["validation"]),
                fingerprints=tuple(data["fingerprints"]) if "fingerprints" in data else None,
                mlflow_run_id=data["mlflow_run_id"],
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a record of a sweep: remove it, or give another --output") from error

    def to_json(self) -> dict[str, object]:
        data: dict[str, object] = {
            "sweep": self.sweep,
            "experiment": self.experiment,
            "stores": list(self.stores),
            "validation": list(self.validation),
        }
        if self.fingerprints is not None:
            data["fingerprints"] = list(self.fingerprints)
        return data if self.mlflow_run_id is None else {**data, "mlflow_run_id": self.mlflow_run_id}

    def require_same(self, earlier: SweepIdentity, output: str) -> None:
        """Raise ValueError unless the `earlier` sweep in `output` may be continued as this one."""
        free = ("fingerprints", *(f"sweep.{name}" for name in _FREE))
        free += tuple(f"experiment.{name}" for name in _FREE_SETTINGS)
        if earlier.fingerprints is not None:  # the same stores may lie elsewhere by now
            self._require_same_stores(earlier, output)
            free += ("stores", "validation")
        earlier = replace(earlier, experiment=_with_later_settings(earlier.experiment))
        old, new = (flatten(replace(each, mlflow_run_id=None).to_json()) for each in (earlier, self))
        changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
        for key in changed:
            if not key.startswith(free):
                raise ValueError(
                    f"--resume continues the sweep in {output}, but {key} was {old.get(key)} and is now "
                    f"{new.get(key)}: leave it as it was, or give another --output"
                )

    def _require_same_stores(self, earlier: SweepIdentity, output: str) -> None:
        if earlier.fingerprints != self.fingerprints:
            before, now = (", ".join([*each.stores, *each.validation]) for each in (earlier, self))
            raise ValueError(
                f"--resume continues the sweep in {output}, whose stores were {before}: {now} hold something else; "
                f"give those, or another --output"
            )


def _with_later_settings(experiment: JsonObject) -> JsonObject:
    """An older record with the settings that there were not yet, at their defaults; as it is if it cannot be read."""
    try:
        return to_plain(from_plain(Experiment, experiment))
    except ValueError as error:
        log.debug("the experiment of the sweep is compared as it was written: %s", error)
        return experiment
