"""Where a training starts: a fresh model or another training's weights, its frozen parts, or the run it continues."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from textwrap import shorten

import torch
from torch import Tensor, nn

from cluster.shards import require_same_shapes
from cluster.storage import Checkpoint
from pipelines.config.arguments import absolute
from pipelines.config.experiment import Experiment
from pipelines.config.serialization import did_you_mean, flatten, to_plain
from pipelines.families.models import Model, family_of
from pipelines.publishing.registered import is_registered, version_of
from pipelines.publishing.trained_model import Description, describe_trained, load_trained
from pipelines.publishing.training_stores import StoreReference
from pipelines.training.checkpoint_metadata import CheckpointMetadata
from pipelines.training.co_fine_tuning import plans_fingerprint
from pipelines.training.imagenet_start import IMAGENET, load_into_backbone, require_imagenet_usable
from preprocessing.store.json_files import JsonObject
from rt_models.blocks.batch_norm import BatchNorm
from rt_models.blocks.compiled import has_compiled
from rt_models.blocks.initial_values import weights_follow
from rt_models.spec import Contract, ContractMismatch

log = logging.getLogger(__name__)

# Settings of a model that only training knows of: fine-tuning may choose its own.
_TRAINING_ONLY = ("dropout", "noise", "stochastic_depth", "crop", "crop_seed", "loss_on", "compile")
_TRAINING_ONLY_PARTS = ("compute", "batch_norm")


def located(init: str) -> str:
    """`--init` as every worker finds it: a path is made absolute, an alias is the version it points at now."""
    if init.startswith(IMAGENET):
        return IMAGENET + absolute(init.removeprefix(IMAGENET))
    return version_of(init) if is_registered(init) else absolute(init)


def model_factory(
    experiment: Experiment,
    weights_from: str | None,
    tracking: str | None = None,
    *,
    device: torch.device | None = None,
    resumed: bool = False,
) -> Callable[[], Model]:
    """Builds the model: fresh, or with the weights of a trained model, or with ImageNet weights in its backbone.

    `tracking`: the MLflow server that a registered model comes from.
    `device`: where a checkpoint of transformers is read to; the CPU by default, and always for a trained model.
    `resumed`: a checkpoint's weights are put into the model afterwards, so it needs no others.
    """
    is_trained = weights_from is not None and not weights_from.startswith(IMAGENET)

    def build() -> Model:
        family = family_of(experiment.model)
        with weights_follow() if resumed or is_trained else nullcontext():
            model = family.built(experiment.model, device or torch.device("cpu"))
        if weights_from is not None and weights_from.startswith(IMAGENET):
            load_into_backbone(model, weights_from)
        elif weights_from is not None:
            # On the CPU: on the device, every rank would have two models at once, and under ZeRO-3 not one need fit.
            saved = load_trained(weights_from, tracking=tracking).model.state_dict()
            require_same_shapes(_shapes(saved), _shapes(model.state_dict()), weights_from)
            model.load_state_dict(saved)
        freeze(model, experiment.freeze)
        widen_trained(model, experiment.engine.precision)
        return model

    return build


def require_trainable(experiment: Experiment, *, is_new: bool) -> None:
    """Raise ValueError if the trained parameters could not learn with the others frozen, or the engine cannot run the
    model.

    is_new: the run begins with neither a checkpoint nor another run's weights.
    """
    with torch.device("meta"), torch.random.fork_rng(devices=[]), weights_follow():
        model = experiment.model.build()
    freeze(model, experiment.freeze)
    widen_trained(model, experiment.engine.precision)
    if has_compiled(model) and getattr(getattr(experiment.engine, "zero", None), "stage", 0) == 3:
        raise ValueError(
            "zero.stage 3 gathers weights inside the blocks of a model, which torch.compile cannot trace: set compile "
            "to off, or another stage"
        )
    if is_new:
        _require_new_tokens_trained(model)


def _require_new_tokens_trained(model: nn.Module) -> None:
    """Rows of added tokens are all alike: frozen, the loss could not fall below ln(bins)."""
    new = getattr(model, "new_token_parameters", list)()
    frozen = {id(parameter) for parameter in new if not parameter.requires_grad}
    names = [name for name, parameter in model.named_parameters() if id(parameter) in frozen]
    if names:
        raise ValueError(
            f"{names[0]} holds the new tokens of model.text.vocabulary AddedTokens and is not trained, so no action "
            f"could be told from another: leave it out of freeze, or with LoRA set model.tuning.embeddings new"
        )


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


def freeze(model: nn.Module, beginnings: Sequence[str]) -> None:
    """Train no parameter whose name begins with one of these; BatchNorm that lies there keeps its averages too.

    Raises ValueError if that means none, or all.
    """
    names = [name for name, _ in model.named_parameters()]
    for beginning in beginnings:
        if not any(name.startswith(beginning) for name in names):
            parts = sorted({".".join(name.split(".")[:depth]) for name in names for depth in (1, 2)})
            raise ValueError(f"freeze: no parameter's name begins with {beginning!r}{did_you_mean(beginning, parts)}")
    for name, parameter in model.named_parameters():
        if name.startswith(tuple(beginnings)):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"freeze {', '.join(beginnings)} leaves nothing to train: name fewer parts")
    for part in model.modules():
        if isinstance(part, BatchNorm) and not any(parameter.requires_grad for parameter in part.parameters()):
            part.freeze()


def widen_trained(model: nn.Module, precision: str) -> None:
    """Convert trained parameters to float32, also if the model's weights are bf16. In bf16 an update below the eighth
    bit of a weight is lost, a running average does not move, and DeepSpeed does not look for NaN.

    Raises ValueError if such a model could not be computed.
    """
    narrow = [p for p in model.parameters() if p.dtype in (torch.bfloat16, torch.float16)]
    trained = [parameter for parameter in narrow if parameter.requires_grad]
    if any(hasattr(parameter, "ds_tensor") for parameter in trained):
        raise ValueError("weights that are trained under zero.stage 3 are float32: set model.dtype float32")
    if precision == "fp32" and len(narrow) > len(trained):
        raise ValueError(
            "frozen weights in bf16 beside trained ones in float32 are computed under autocast: set engine.precision "
            "bf16, or model.dtype float32"
        )
    for parameter in trained:
        parameter.data = parameter.data.float()


def require_usable(weights_from: str, experiment: Experiment, contract: Contract) -> None:
    """Raise ValueError unless these weights mean the same in this training's model and under its contract."""
    if weights_from.startswith(IMAGENET):
        require_imagenet_usable(weights_from, experiment.model)
        return
    description = describe_trained(weights_from)
    _require_same_model(description, weights_from, experiment)
    theirs = description.contract
    if theirs.encoder != contract.encoder:
        raise ContractMismatch(
            f"{weights_from} was trained with instruction vectors of {theirs.encoder}, these stores have those of "
            f"{contract.encoder}: preprocess them with that encoder"
        )
    if theirs.action != contract.action:
        raise ContractMismatch(
            f"{weights_from} (contract {theirs.id}) acts in {theirs.action}, this training (contract {contract.id}) in "
            f"{contract.action}: choose the model settings of those weights"
        )
    if theirs.image != contract.image:
        log.warning("%s was trained on frames of %s, these stores hold %s", weights_from, theirs.image, contract.image)


def _require_same_model(description: Description, weights_from: str, experiment: Experiment) -> None:
    theirs, ours = (_meaning(to_plain(config)) for config in (description.model, experiment.model))
    different = sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key))
    if different:
        key = different[0]
        raise ValueError(
            f"{weights_from} is another model: {len(different)} settings differ, such as model.{key}, "
            f"{theirs.get(key)} there and {ours.get(key)} here; choose a recipe or flags with its settings"
        )


def _meaning(model: JsonObject) -> dict[str, object]:
    """The settings that decide what the model computes with its weights."""
    return {
        key: value
        for key, value in flatten(model).items()
        if key.split(".")[-1] not in _TRAINING_ONLY and not set(key.split(".")) & set(_TRAINING_ONLY_PARTS)
    }


def require_same_run(
    checkpoint: Checkpoint, contract: Contract, experiment: Experiment, stores: Sequence[StoreReference] | None = None
) -> None:
    """Raise ValueError if continuing would silently train something else.

    `stores`: those of this run, in order, to be compared with the checkpoint's.
    """
    before = CheckpointMetadata.of(checkpoint)
    if before.contract != contract:
        raise ValueError(
            f"checkpoint {checkpoint.path} was trained under contract {before.contract.id}, this run has "
            f"{contract.id}: give the stores and settings of that run, or another --output"
        )
    if stores is not None:
        _require_same_stores(checkpoint.path, before.stores, stores)
    if before.plans is not None and before.plans != plans_fingerprint(experiment.co_fine_tuning):
        raise ValueError(
            f"--resume continues the run in {checkpoint.path}, but co_fine_tuning.plans says something else than then: "
            f"give the plans of that run, or another --output"
        )
    _require_same_settings(checkpoint.path, before, experiment)


def _require_same_settings(path: str, saved: CheckpointMetadata, experiment: Experiment) -> None:
    before, now = flatten(saved.experiment), flatten(to_plain(experiment))
    # What the file of plans says counts, where that is known, not where the file lies.
    free = () if saved.plans is None else ("co_fine_tuning.plans",)
    changed = [key for key in now if key.startswith(FIXED) and key in before and before[key] != now[key]]
    weights = [key for key in {**before, **now} if key.startswith("mixture.weights.")]  # any of which may be missing
    changed += [key for key in weights if before.get(key) != now.get(key)]
    changed = [key for key in changed if key not in free and not key.endswith(MEMORY_ALONE)]
    if changed:
        key = changed[0]
        was, now_is = (shorten(str(side.get(key)), 120, placeholder=" ...") for side in (before, now))
        raise ValueError(
            f"--resume continues the run in {path}, but {key} was {was} and is now {now_is}: "
            f"leave it as it was, or give another --output"
        )


def _require_same_stores(path: str, before: Sequence[StoreReference], stores: Sequence[StoreReference]) -> None:
    """The same records in the same order. The contract cannot show that: it does not cover web data."""
    if not all(store.source for store in before):
        log.warning("%s does not say what its stores held: whether these are the same is not checked", path)
        return
    if [store.source for store in before] == [store.source for store in stores]:
        return
    then, now = (", ".join(store.dataset for store in side) for side in (before, stores))
    difference = "these hold other records" if then == now else f"these are {now}"
    raise ValueError(
        f"--resume continues the run in {path}, which was trained on {then}, in this order, and {difference}: give "
        f"the stores of that run in that order (wherever they lie now), or another --output"
    )


# Beginnings of the settings that a resumed run must not change.
FIXED = (
    *("model.", "freeze", "mixture.", "co_fine_tuning"),
    *("loop.seed", "loop.lanes", "loop.global_batch", "loop.segment_windows", "loader.mask_flags"),
)
MEMORY_ALONE = "activation_checkpointing"  # of these, what changes memory and no number
