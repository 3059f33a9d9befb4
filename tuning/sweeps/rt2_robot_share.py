"""What the share of robot data costs and gains: accuracy of actions against that of answers to questions on images.

Needs a store of robot episodes and one of image-text examples, both to train and to validate on.
"""

from __future__ import annotations

from tuning.search import GridSearch
from tuning.space import Choice
from tuning.sweep import Budget, Objective, Sweep


def sweep() -> Sweep:
    """The sweep of this file's name."""
    return Sweep(
        name="rt2_robot_share",
        recipe="rt2_tiny",
        space={"co_fine_tuning.robot_share": Choice(values=(0.2, 0.35, 0.5, 0.65, 0.8, 0.95))},
        objectives=(
            Objective(metric="token_accuracy", direction="max"),
            Objective(metric="vqa_accuracy", direction="max"),
        ),
        search=GridSearch(),
        budget=Budget(trials=6),
    )
