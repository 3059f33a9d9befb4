"""RT-2 on PaliGemma-3B with the published hyperparameters of RT-2-PaLI-X-5B, the nearest in size.

Published are batch 2048, rate 1e-3, 270,000 steps and about 50 % robot data; the optimizer is not. With AdamW and few
data a rate of 2e-5 and far fewer steps (`--optimizer.lr 2e-5 --loop.steps 20000`) are the safer beginning.
`--model.path` names a folder with the weights, or hub:OWNER/MODEL; `--model.weights random` takes only the sizes from
it.
"""

from __future__ import annotations

from cluster.engine import DeepSpeedEngineConfig
from cluster.launch import RayLaunch
from cluster.zero import ZeroConfig
from pipelines.config.experiment import Experiment, LoopConfig
from pipelines.config.optimizer import AdamWConfig
from pipelines.config.schedule import ConstantSchedule
from pipelines.training.co_fine_tuning import CoFineTuningConfig
from rt_models.rt2_vlm import RT2VLMConfig
from rt_models.spec import Quantiles


def recipe() -> Experiment:
    """The experiment of this file's name."""
    return Experiment(
        name="rt2_paligemma_3b",
        model=RT2VLMConfig.paligemma("hub:google/paligemma-3b-pt-224", activation_checkpointing="blocks"),
        scaling=Quantiles(),
        co_fine_tuning=CoFineTuningConfig(robot_share=0.5),
        optimizer=AdamWConfig(lr=1e-3, weight_decay=0.0),
        schedule=ConstantSchedule(warmup_steps=1000),
        engine=DeepSpeedEngineConfig(zero=ZeroConfig(stage=3), precision="bf16", clip_norm=1.0),
        launch=RayLaunch(num_workers=8, use_gpu=True),
        loop=LoopConfig(steps=270_000, global_batch=2048, micro_batch=16, checkpoint_every=2000, log_every=20),
    )
