"""Weights & Biases beside MLflow, if configured: the same parameters and metrics under the MLflow run's id."""

from __future__ import annotations

from collections.abc import Mapping


class WandbRun:
    """One W&B run per training, however often it is resumed. W&B itself buffers while its server is unreachable.

    Raises ImportError if the package is missing and ConnectionError if the login fails.
    """

    def __init__(self, *, project: str, name: str, run_id: str, params: Mapping[str, object], folder: str) -> None:
        try:
            import wandb
            from wandb.errors import Error
        except ImportError as error:
            raise ImportError(
                "tracking.wandb_project needs the package wandb: pip install 'rt-pipelines[wandb]'"
            ) from error
        settings = wandb.Settings(console="off", silent=True)
        try:
            self._run = wandb.init(
                project=project,
                name=name,
                id=run_id,
                resume="allow",
                config=dict(params),
                dir=folder,
                settings=settings,
            )
        except Error as error:
            raise ConnectionError(f"W&B does not start: {error}; log in, or set WANDB_MODE=offline") from error
        self._run.define_metric("*", step_metric="step")  # a resumed run repeats steps; W&B's own counter cannot

    def add(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
