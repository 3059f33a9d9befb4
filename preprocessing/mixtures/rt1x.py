"""The mixture of RT-1-X: twelve datasets, the "nine manipulators" of the Open X-Embodiment paper.

Weights of the authors' training notebook, `Minimal_Training_Example.ipynb`, where they are sampling weights: a share of
samples, not of transitions. It has kuka and language_table commented out because their mapping was never released;
train without those stores to follow it.
"""

from preprocessing.mixture import Mixture

MIXTURE = Mixture(
    name="rt1x",
    unit="per_sample",
    weights={
        "fractal20220817_data": 150,
        "bridge": 50,
        "language_table": 30,
        "kuka": 20,
        "jaco_play": 20,
        "berkeley_cable_routing": 20,
        "roboturk": 10,
        "taco_play": 5,
        "nyu_door_opening_surprising_effectiveness": 5,
        "berkeley_autolab_ur5": 5,
        "toto": 5,
        "viola": 3,
    },
)
