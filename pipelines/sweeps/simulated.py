"""Success, or return, as what a sweep compares: each trained model acts in a simulator, under the same seeds.

The seeds are others than those of `rtp evaluate --env`: the best of many trials owes part of its success to the seeds
that it was chosen by, so that its success under fresh ones is what to report.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.evaluation.closed_loop_config import ClosedLoopConfig
from pipelines.evaluation.closed_loop_report import POLICY
from pipelines.evaluation.statistics import Bootstrap
from preprocessing.simulation.gl_backend import require_gl_backend
from rt_models.spec import Contract
from tuning.sweep import Sweep

SIMULATED = ("success", "return")
"""Objectives that a simulator measures."""
_FIRST_SEED = 500_000  # beyond those of --env: 2,500,000 and up
_EPISODES = 20


@dataclass(frozen=True, kw_only=True)
class SimulatedScore:
    """What `rtp tune` acts in after each training, and how often in each task."""

    env: str
    episodes: int

    def of(self, model: str) -> dict[str, float]:
        """{"success": mean over tasks}, or the return, of the newest checkpoint of a run."""
        from pipelines.evaluation.closed_loop_setup import prepare  # the simulators take seconds to import

        config = ClosedLoopConfig(env=self.env, baselines=())
        report = prepare(model, config, episodes=self.episodes, seed=_FIRST_SEED).run(Bootstrap(samples=100))
        policy = report.actors[POLICY]
        return {report.measure: (policy.returns if report.measure == "return" else policy.rate).mean}


def simulated_score(sweep: Sweep) -> SimulatedScore | None:
    """None for a sweep that compares nothing in a simulator."""
    if sweep.env is None:
        return None
    return SimulatedScore(env=sweep.env, episodes=sweep.env_episodes or _EPISODES)


def check_simulated(sweep: Sweep, contract: Contract) -> None:
    """Raise ValueError unless objectives and simulator fit, and models under `contract` can act there; OSError if
    nothing draws."""
    asked = [objective for objective in sweep.objectives if objective.metric in SIMULATED]
    if not asked:
        if sweep.env is not None:
            raise ValueError(f"sweep {sweep.name} compares nothing in a simulator: leave --env out")
        return
    if sweep.env is None:
        raise ValueError(f"sweep {sweep.name} compares {asked[0].metric}: give --env, such as metaworld:faucet-open")
    if asked[0].direction == "min":
        raise ValueError(f"sweep {sweep.name}: more {asked[0].metric} is better, so its direction is max")
    if sweep.env_episodes is not None and sweep.env_episodes < 1:
        raise ValueError(f"--env-episodes must be 1 or more, got {sweep.env_episodes}")
    from pipelines.evaluation.closed_loop_setup import environments_of, require_fit

    dataset = contract.dataset()
    environments = environments_of(ClosedLoopConfig(env=sweep.env), contract, dataset)
    for environment in environments:
        require_fit(f"sweep {sweep.name}", contract.action, dataset, environment)
    measure = environments[0].measure
    if measure != asked[0].metric:
        raise ValueError(f"{sweep.env} is measured by {measure}, and sweep {sweep.name} compares {asked[0].metric}")
    require_gl_backend()
