"""What the stores of a job decide, computed once: the resolved experiment, the contract, references to the stores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from pipelines.publishing.training_stores import StoreReference
from pipelines.training.co_fine_tuning import plans_fingerprint
from pipelines.training.data import resolved, training_contract
from pipelines.training.job import PreparedJob, TrainJob
from preprocessing.store.web_store import Store, open_store


def prepared(job: TrainJob, stores: Sequence[Store] | None = None) -> PreparedJob:
    """The job with all that its stores decide. `stores`: those of the job, if they are open already.

    Raises ValueError if the stores cannot be mixed or do not fit the experiment.
    """
    if stores is None:
        stores = [open_store(path, split="train") for path in job.stores]
    experiment = resolved(job.experiment, stores)
    settings = {field.name: getattr(job, field.name) for field in fields(TrainJob)}
    return PreparedJob(
        **{**settings, "experiment": experiment},
        contract=training_contract(experiment, stores),
        references=tuple(StoreReference.of(store, job.output) for store in stores),
        plans=plans_fingerprint(experiment.co_fine_tuning),
    )


def open_stores(job: PreparedJob) -> list[Store]:
    """The stores of the job on a worker, where the driver has found them: nothing is searched for again.

    Raises ValueError for one that is not what the job was prepared with.
    """
    stores = [open_store(reference.path) for reference in job.references]
    for store, reference in zip(stores, job.references, strict=True):
        if not reference.is_of(store):
            raise ValueError(
                f"{store.root} is another store than the one that the training was prepared with: every node must see "
                f"the same stores, and none may be changed during a training"
            )
    return stores
