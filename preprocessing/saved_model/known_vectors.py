"""Whether a model is USE-large/5: it gives the vectors that Open X-Embodiment's episodes ship.

The vectors are those of `language_embedding` in BridgeData V2's own RLDS release (bridge_dataset 1.0.0, CC BY 4.0),
which its authors computed with TF-Hub's universal-sentence-encoder-large/5. Every 32nd value of four of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

_USE_LARGE_5 = {
    "put cup from counter or drying rack into sink": (
        *(0.0509, 0.0064, -0.0303, 0.0145, -0.0134, -0.0490, 0.0464, 0.0635),
        *(-0.0294, 0.0301, 0.0102, -0.0373, 0.0142, 0.0513, -0.0506, -0.0605),
    ),
    "flip pot upright which is in sink": (
        *(0.0999, 0.0915, 0.0130, 0.0077, -0.0022, 0.0020, 0.0839, 0.0399),
        *(-0.0160, 0.0269, -0.0421, -0.0214, 0.0541, 0.0423, -0.0620, -0.0159),
    ),
    "turn lever vertical to front": (
        *(0.0694, -0.0054, -0.0381, -0.0208, 0.0277, 0.0440, 0.0511, 0.0227),
        *(-0.0059, 0.0150, -0.0036, -0.0440, -0.0079, -0.0088, 0.0205, 0.0019),
    ),
    "put carrot on plate": (
        *(-0.0600, -0.0299, 0.0333, -0.0852, 0.0430, 0.0402, 0.0554, 0.0075),
        *(0.0284, -0.0012, -0.0761, 0.0130, -0.0357, 0.0295, -0.0318, -0.0329),
    ),
}
_TOLERANCE = 2e-3  # values have a spread of 0.044; rounding above moves them by 5e-5


def is_use_large_5(embed: Callable[[Sequence[str]], np.ndarray]) -> bool:
    """Whether `embed` gives the known sentences the vectors of USE-large/5."""
    sampled_ND = embed(list(_USE_LARGE_5))[:, ::32]
    return bool(np.abs(sampled_ND - np.array(list(_USE_LARGE_5.values()))).max() <= _TOLERANCE)
