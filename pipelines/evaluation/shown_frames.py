"""How the simulator's frames are drawn for a policy: as those of its training data, which its contract says.

Where the contract does not say, or something else is asked for, or cannot be had, a sentence names it: it stands in the
terminal, the report and the page.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.evaluation.closed_loop_config import ClosedLoopConfig, ShownFrames, View
from preprocessing.simulation.environment import EnvironmentConfig
from preprocessing.simulation.metaworld_rollout import VIEWS, Camera
from rt_models.spec import Contract, DatasetContract, ImageRecipe, SimulatedSource

_VIEW: View = "side"
_JPEG_QUALITY = 85
_DEFAULTS = f"--view {_VIEW}, --jpeg-quality {_JPEG_QUALITY}"


def main_camera(frames: ShownFrames, image: ImageRecipe) -> Camera:
    """With pictures as large as the stored ones."""
    return Camera(view=VIEWS[frames.view], height=image.height, width=image.width, jpeg_quality=frames.jpeg_quality)


def simulated_source(contract: Contract, dataset: DatasetContract) -> SimulatedSource | None:
    """What the contract says of the simulator that the dataset is from, in whatever space it is trained in."""
    return dataset.acted(contract.action)[1].simulated


def shown_frames(config: ClosedLoopConfig, image: ImageRecipe, source: SimulatedSource | None) -> ShownFrames:
    """By the flags, else by the source, else as `rtp simulate` draws by itself. Raises ValueError for a view that the
    source names and nobody knows."""
    if str(config.env).startswith("dmc:"):  # one camera, pictures without loss
        return ShownFrames(view=_VIEW, jpeg_quality=_JPEG_QUALITY)
    if source is None or source.simulator != "metaworld":
        assumed = config.view is None or config.jpeg_quality is None
        where = "do not say how their frames were drawn" if source is None else f"are from {source.simulator}"
        return ShownFrames(
            view=config.view or _VIEW,
            jpeg_quality=config.jpeg_quality or _JPEG_QUALITY,
            remarks=(f"the training data {where}: {_DEFAULTS} are assumed where not given",) if assumed else (),
        )
    if source.view not in VIEWS and config.view is None:
        raise ValueError(
            f"the training data have view {source.view}, unknown here: give --view, one of {', '.join(VIEWS)}"
        )
    return ShownFrames(
        view=config.view or source.view,
        jpeg_quality=config.jpeg_quality or source.jpeg_quality,
        remarks=tuple(_differences(config, image, source)),
    )


def _differences(config: ClosedLoopConfig, image: ImageRecipe, source: SimulatedSource) -> Sequence[str]:
    asked = {
        "view": (config.view, source.view),
        "JPEG quality": (config.jpeg_quality, source.jpeg_quality),
    }
    found = [
        f"the training data have {name} {theirs}, and the policy is shown {mine}"
        for name, (mine, theirs) in asked.items()
        if mine is not None and mine != theirs
    ]
    if (image.height, image.width) != (source.height, source.width):
        found.append(
            f"the training data were drawn at {source.height}x{source.width} and resized to {image.height}x"
            f"{image.width}: the policy is shown frames that are drawn at the latter size"
        )
    return found


def remarks_on_limits(source: SimulatedSource | None, environments: Sequence[EnvironmentConfig]) -> tuple[str, ...]:
    """A sentence where episodes may last longer, or less long, than in the training data."""
    first = environments[0]
    if source is None or first.measure == "return" or first.max_steps == source.max_steps:
        return ()
    return (f"an episode lasts {first.max_steps} steps at most, and {source.max_steps} in the training data",)
