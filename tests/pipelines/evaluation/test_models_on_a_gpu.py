"""A GPU holds one model of a command at a time: those that are compared lie on the CPU until they are at work.

Watched on this machine by what `load_trained` is asked for: the device stands for a GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.cli import main
from pipelines.config.compute import Compute
from pipelines.evaluation.closed_loop_config import ClosedLoopConfig
from pipelines.evaluation.closed_loop_setup import prepare
from pipelines.publishing import registration
from pipelines.publishing.registration import PromotionPolicy, register
from tests.support.untrained import write_untrained

DEVICE = torch.device("cpu", 0)
TRAINED = "pipelines.publishing.trained_model.load_trained"


class Enough(Exception):
    """All that is watched has been seen."""


@pytest.fixture(scope="module")
def bundle(store: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_untrained(store, tmp_path_factory.mktemp("models") / "untrained"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[torch.device | None]:
    """Where each model was to be read to, in turn."""
    from pipelines.publishing import trained_model

    monkeypatch.chdir(tmp_path)
    devices: list[torch.device | None] = []
    load = trained_model.load_trained

    def watched(source: str, *given: Any, device: torch.device | None = None, **settings: Any) -> Any:
        devices.append(device)
        return load(source, *given, **settings)

    monkeypatch.setattr(Compute, "resolved", lambda self: DEVICE)
    for place in (TRAINED, f"{registration.__name__}.load_trained", f"{prepare.__module__}.load_trained"):
        monkeypatch.setattr(place, watched)
    return devices


@pytest.mark.parametrize(("others", "expected"), [([], [DEVICE]), (["--before"], [None, None])])
def test_scores_on_stores(
    others: list[str], expected: list[Any], bundle: str, store: str, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def enough(*given: object) -> None:
        raise Enough

    monkeypatch.setattr("pipelines.evaluation.store_evaluations.scored", enough)
    with pytest.raises(Enough):
        main(["evaluate", bundle, "--data", store, *(word for flag in others for word in (flag, bundle))])
    assert asked == expected


def test_episodes_in_a_simulator(bundle: str, asked: list[Any]) -> None:
    config = ClosedLoopConfig(env="metaworld:door-lock", against=bundle, baselines=())
    prepare(bundle, config, episodes=1, seed=0)
    assert asked == [DEVICE, None]


def test_a_champion_is_scored_where_the_new_model_is_not(
    bundle: str, store: str, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def enough(*given: object) -> None:
        raise Enough

    monkeypatch.setattr(registration, "connect", enough)
    with pytest.raises(Enough):
        register(bundle, name="arm")
    policy = PromotionPolicy.of("champion", ["scaled_error<=champion"], [store])
    with pytest.raises(ValueError, match="cannot be compared with"):
        monkeypatch.setattr(registration.PromotionPolicy, "evaluations", lambda self, trained: {})
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///none.db")
        policy._of_holder("arm", "1")
    assert asked == [None, DEVICE]
