"""Octo's mixture ("oxe_magic_soup"): 25 datasets, weights that multiply each one's number of steps.

Source: octo-models/octo `octo/data/oxe/oxe_dataset_mixes.py`, where they are used with `balance_weights`. The constants
of fractal and kuka have no published derivation (openvla/openvla issue 254). Stores that are not given leave their
share to the others.
"""

from preprocessing.mixture import Mixture

MIXTURE = Mixture(
    name="octo",
    unit="per_transition",
    weights={
        "fractal20220817_data": 0.54087122203,
        "kuka": 0.8341046294,
        "bridge_dataset": 1,
        "taco_play": 2,
        "jaco_play": 1,
        "berkeley_cable_routing": 1,
        "roboturk": 2,
        "nyu_door_opening_surprising_effectiveness": 1,
        "viola": 2,
        "berkeley_autolab_ur5": 2,
        "toto": 1,
        "language_table": 0.1,
        "stanford_hydra_dataset_converted_externally_to_rlds": 2,
        "austin_buds_dataset_converted_externally_to_rlds": 1,
        "nyu_franka_play_dataset_converted_externally_to_rlds": 3,
        "furniture_bench_dataset_converted_externally_to_rlds": 0.1,
        "ucsd_kitchen_dataset_converted_externally_to_rlds": 2,
        "austin_sailor_dataset_converted_externally_to_rlds": 1,
        "austin_sirius_dataset_converted_externally_to_rlds": 1,
        "bc_z": 0.2,
        "dlr_edan_shared_control_converted_externally_to_rlds": 1,
        "iamlab_cmu_pickup_insert_converted_externally_to_rlds": 1,
        "utaustin_mutex": 1,
        "berkeley_fanuc_manipulation": 2,
        "cmu_stretch": 1,
    },
)
