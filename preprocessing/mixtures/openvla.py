"""OpenVLA's mixture ("oxe_magic_soup_plus"): 27 datasets, weights that multiply each one's number of steps.

Source: openvla/openvla `prismatic/vla/datasets/rlds/oxe/mixtures.py`. It is Octo's without the door opening, which is
seen from the wrist alone, and with FMB, Dobb-E and DROID; DROID was taken out for the last third of the training. Their
bridge_orig is bridge_dataset here. Their fmb_dataset has the name that they gave it: a store made with the spec fmb
needs `name: fmb_dataset` in a .yaml file of its own.
"""

from preprocessing.mixture import Mixture
from preprocessing.mixtures import octo

WRIST_ALONE = "nyu_door_opening_surprising_effectiveness"

MIXTURE = Mixture(
    name="openvla",
    unit="per_transition",
    weights={name: weight for name, weight in octo.MIXTURE.weights.items() if name != WRIST_ALONE}
    | {"fmb_dataset": 1, "dobbe": 0.2, "droid": 0.06},
)
