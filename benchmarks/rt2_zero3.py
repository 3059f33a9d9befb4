"""Memory of two ranks that train RT-2 on a vision-language model: ZeRO-3 against a whole model on each rank (DDP).

A PaliGemma with random weights is saved to a folder; with ZeRO-3 transformers reads it into sharded parameters. Each
side runs in fresh processes. Reported are each rank's highest resident memory above what it had after its imports, once
when the model stands and once after three optimizer steps, in bytes a parameter, and the losses of both sides.

glibc keeps holes between blocks that were freed, which hides what is in use: at this size as much again. Both sides
therefore give freed memory back at once.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import socket
import tempfile
from pathlib import Path
from typing import Any

import torch
from measure import parser, positive, print_json, start
from rt2_training import IMAGE_SIZE, WORDS, save_model
from torch import multiprocessing

from cluster.context import TorchrunContext
from cluster.engine import DeepSpeedEngineConfig, TorchEngineConfig
from cluster.zero import ZeroConfig
from pipelines.config.optimizer import AdamWConfig
from rt_models.language.action_vocabulary import IntegerTokens
from rt_models.language.prompts import RT2TextConfig
from rt_models.rt2_vlm import RT2VLMConfig

RANKS, STEPS, VOCABULARY = 2, 3, 8000
ENGINES = {
    "replicated (DDP)": TorchEngineConfig(),
    "ZeRO-3": DeepSpeedEngineConfig(
        zero=ZeroConfig(
            stage=3, bucket_elements=2_000_000, prefetch_elements=2_000_000, persist_elements=0, live_elements=4_000_000
        )
    ),
}


def main() -> None:
    arguments = _arguments()
    start(arguments)
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "131072"  # for the ranks: a fixed threshold, where glibc's grows to 32 MB
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder) / "model", VOCABULARY, width=arguments.width, layers=arguments.layers)
        results = {name: _run(name, Path(folder)) for name in ENGINES}
    for name, ranks in results.items():
        print(f"\n{name}: {ranks[0]['parameters'] / 1e6:.1f} million parameters, {RANKS} ranks")
        for moment in ("created", "trained"):
            print(f"  {moment}: " + ", ".join(f"{rank[moment]:.1f}" for rank in ranks) + " bytes a parameter")
        print("  losses: " + ", ".join(f"{loss:.6f}" for loss in ranks[0]["losses"]))
    print_json("rt2_zero3", arguments, results)


def _run(name: str, folder: Path) -> list[dict[str, Any]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(_rank, (name, folder, port), nprocs=RANKS)
    return [json.loads((folder / f"result-{rank}.json").read_text()) for rank in range(RANKS)]


def _rank(rank: int, name: str, folder: Path, port: int) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS), DS_ACCELERATOR="cpu")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    context = TorchrunContext("cpu", timeout_s=300)
    (folder / f"result-{rank}.json").write_text(json.dumps(measure(context, name, str(folder / "model"))))
    context.close()


def measure(context: TorchrunContext, name: str, path: str) -> dict[str, Any]:
    """What this rank used, after everything that both sides import was imported."""
    import deepspeed  # noqa: F401
    import transformers.models.gemma.modeling_gemma
    import transformers.models.paligemma.modeling_paligemma
    import transformers.models.siglip.modeling_siglip  # noqa: F401

    config = RT2VLMConfig(path=path, text=RT2TextConfig(vocabulary=IntegerTokens()))
    text = config.build_text()
    before = _peak_bytes()
    engine = ENGINES[name].build(context, micro_batch=2, accumulation=1)
    model = engine.build(config.build, AdamWConfig(lr=1e-4).build)
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())
    created = _peak_bytes()
    action, present = torch.zeros(text.spec.size).numpy(), torch.ones(text.spec.size, dtype=torch.bool).numpy()
    batch = text.collate([text.robot(" ".join(WORDS[n : n + 5]), action, present) for n in range(2)])
    generator = torch.Generator().manual_seed(context.rank)
    batch["frames"] = torch.randint(256, (2, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=torch.uint8, generator=generator)
    batch["image_index"] = torch.arange(2)[:, None]
    losses = []
    for _ in range(STEPS):
        loss = engine.forward(batch)
        engine.backward(loss)
        engine.step()
        losses.append(sum(context.gather(float(loss.detach()))) / RANKS)
    used = {"created": created - before, "trained": _peak_bytes() - before}
    engine.close()
    return {"parameters": parameters, "losses": losses, **{k: v / parameters for k, v in used.items()}}


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _arguments() -> argparse.Namespace:
    made = parser(__doc__, rounds=None)
    made.add_argument("--width", type=positive, default=512, help="of the language model (default: 512)")
    made.add_argument("--layers", type=positive, default=24, help="of the language model (default: 24)")
    return made.parse_args()


if __name__ == "__main__":
    main()
