"""What processes that tests fork from a server need, imported once, by the server."""

from __future__ import annotations

from cluster.quick_imports import quick_imports

with quick_imports():
    import deepspeed  # noqa: F401
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    import torch._dynamo  # noqa: F401  # else imported by each rank's first optimizer

    import pipelines.publishing.registration
    import pipelines.train_loop  # noqa: F401
    import tests.support.ranks  # noqa: F401
