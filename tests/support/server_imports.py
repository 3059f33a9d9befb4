"""What processes that tests fork from a server need, imported once, by the server; the server skips what is missing."""

from __future__ import annotations

import os

from cluster.quick_imports import quick_imports

os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed decides as it is imported, and the ranks are of CPUs

with quick_imports():
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    import torch._dynamo  # which a rank's first optimizer imports

    import pipelines.publishing.registration
    import pipelines.train_loop  # noqa: F401
    import tests.support.ranks  # noqa: F401

    # isort: split
    import deepspeed  # noqa: F401
    import torch._inductor.compile_fx  # noqa: F401  # which DeepSpeed's engine imports

    # isort: split
    import transformers.integrations.deepspeed  # noqa: F401  # which its ZeRO-3 imports
