"""The commands of `rtp`, in the order in which a project meets them. Light to import: `rtp --help` answers at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

JsonSummary = Mapping[str, object]
"""What a command reports: the JSON object that --json prints. `exit_code`, where it is in it, is the command's."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command. `summary` and a name fit a line of 80 columns together; `example` is a line that can be copied."""

    summary: str
    example: str
    module: str = ""
    """Its file in pipelines/, if that has another name."""
    first: str = ""
    """The word that must come first: RECIPE or SWEEP, whose settings become flags."""

    def file(self, name: str) -> str:
        return self.module or name


COMMANDS = {
    "demo": Command(
        summary="the whole path on the shipped robot episodes, in minutes",
        example="rtp demo --output runs/demo",
    ),
    "simulate": Command(
        summary="experts of Meta-World or dm_control -> episodes",
        example="rtp simulate data --tasks drawer-open-v3 faucet-open-v3 --episodes 50",
    ),
    "preprocess": Command(
        summary="RLDS, LeRobot or web data -> a store; run again, it resumes",
        example="rtp preprocess examples/metaworld_sample/1.0.0 stores --split train",
    ),
    "store": Command(
        summary="append, delete, merge, split episodes; the log of a store",
        example="rtp store append stores/metaworld_sample/1.0.0/train more/metaworld_sample/1.0.0/train",
    ),
    "filter": Command(
        summary="the best image-text pairs of a store, each once; resumes",
        example="rtp filter stores/laion/1.0.0/train filtered --keep 0.1 --languages en und",
        module="filter_pairs",  # a module called filter would shadow the builtin for its readers
    ),
    "mask": Command(
        summary="marks of the objects meant (MOO) beside a store's frames",
        example="rtp mask stores/metaworld_sample/1.0.0/train --detector boxes:boxes.jsonl",
    ),
    "inspect": Command(
        summary="what is in a store, run, checkpoint or bundle; pictures, audit",
        example="rtp inspect stores/metaworld_sample/1.0.0/train --html store.html",
    ),
    "train": Command(
        summary="train a recipe on stores; --resume continues",
        example="rtp train rt1_metaworld --data stores/metaworld_sample/1.0.0/train --output runs/first",
        first="RECIPE",
    ),
    "tune": Command(
        summary="a sweep over a recipe's settings; --resume continues",
        example="rtp tune rt1_lr_wd --data STORES/train --validation STORES/val --output runs/sweep",
        first="SWEEP",
    ),
    "import-weights": Command(
        summary="a JAX checkpoint of RT-1 or RT-1-X -> a model of ours",
        example="rtp import-weights rt_1_x_jax models/rt1x --data stores/fractal20220817_data/0.1.0/train",
        module="import_weights",
    ),
    "import-encoder": Command(
        summary="your SavedModel of USE-large/5 -> vectors without TensorFlow",
        example="rtp import-encoder universal-sentence-encoder-large_5 encoders/use-large-5",
        module="import_encoder",
    ),
    "export": Command(
        summary="a checkpoint -> one model.safetensors with its contract",
        example="rtp export runs/first models/first",
    ),
    "export-lerobot": Command(
        summary="a store of episodes -> a LeRobot v3.0 dataset",
        example="rtp export-lerobot stores/metaworld_sample/1.0.0/train lerobot/sample",
        module="export_lerobot",
    ),
    "evaluate": Command(
        summary="score a model on held-out episodes or in a simulator",
        example="rtp evaluate runs/first --data stores/metaworld_sample/1.0.0/val",
    ),
    "agreement": Command(
        summary="whether offline scores rank checkpoints as success does",
        example="rtp agreement runs/first/evaluations",
    ),
    "register": Command(
        summary="a checkpoint -> the MLflow registry; gates guard an alias",
        example="rtp register runs/first --name my-policy --alias champion",
    ),
    "registry": Command(
        summary="the lineage of registered models; roll an alias back",
        example="rtp registry show my-policy",
    ),
    "serve": Command(
        summary="answer robots: openpi, vla-eval, OpenVLA, HTTP",
        example="rtp serve models:/my-policy@champion --port 5001",
    ),
    "replay": Command(
        summary="recorded episodes through a served policy, compared",
        example="rtp replay runs/first --data stores/metaworld_sample/1.0.0/val",
    ),
    "submit": Command(
        summary="run a command on a Ray cluster and follow it",
        example="rtp submit --address http://HEAD:8265 -- train rt1_fractal --data s3://BUCKET/STORE ...",
    ),
    "cluster": Command(
        summary="files that start a cluster: KubeRay, ray up, Slurm, Docker",
        example="rtp cluster render kuberay --gpu-nodes 2 --gpus 8 --cpu-nodes 4 --output cluster",
        module="cluster_files",  # a module called cluster would be confused with the package
    ),
    "list": Command(
        summary="recipes, sweeps, datasets and encoders",
        example="rtp list",
        module="catalogue",  # a module called list would shadow the builtin for its readers
    ),
    "doctor": Command(
        summary="the machine or cluster, and whether a recipe will fit",
        example="rtp doctor rt1_metaworld --data stores/metaworld_sample/1.0.0/train --measure",
    ),
}
