"""A training whose cluster loses its head, and what one command then does: against the same training left alone.

Two Ray nodes on this machine, one worker on each. In mid-training every process of the head (GCS, raylet, its worker)
gets SIGKILL. The program records that the driver and the second node end by themselves, and how soon; starts a new head
and a new second node; runs the same `rtp train` with --resume; and fails unless the outcome has the weights, losses and
samples of the undisturbed training to the last bit.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import torch
from chaos import differences
from measure import positive
from ray_nodes import PATIENCE_S, Training, running_nodes, store

RECONNECT_S = 10  # Ray's own default is 60: so long a node looks for its head before it ends


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--steps", type=positive, default=60, help="optimizer steps (default: 60)")
    arguments = made.parse_args()
    torch.set_num_threads(1)
    os.environ["RAY_gcs_rpc_server_reconnect_timeout_s"] = str(RECONNECT_S)  # noqa: SIM112, as Ray spells it
    with tempfile.TemporaryDirectory(prefix="head-") as scratch, running_nodes(Path(scratch), 2) as nodes:
        stores = [store(split, scratch) for split in ("train", "val")]
        calm, wild = Path(scratch, "calm"), Path(scratch, "wild")
        Training(nodes, stores, calm, arguments.steps, {"num_workers": 2}).finish()
        training = Training(nodes, stores, wild, arguments.steps, {"num_workers": 2})
        training.wait_for_step(arguments.steps // 2)
        nodes.kill_head()
        began = time.monotonic()
        exit_code = training.driver.wait(timeout=PATIENCE_S)
        driver_s = time.monotonic() - began
        assert nodes.second is not None
        nodes.second.wait(timeout=PATIENCE_S)
        node_s = time.monotonic() - began
        reached = training.last_step()
        nodes.start_head()
        nodes.start_second()
        training.resume()
        training.finish()
        complaints = differences(calm, wild, arguments.steps)
    if exit_code == 0:
        complaints.append("the driver of a training without a head ended with exit code 0")
    results = {"driver": {"exit_code": exit_code, "seconds": driver_s}, "node_s": node_s, "reached": reached}
    print(
        f"the head died after step {reached}: the driver ended {driver_s:.0f} s later with exit code {exit_code}, the"
    )
    print(f"other node after {node_s:.0f} s; one command on a new cluster went on to step {arguments.steps}")
    print(json.dumps({"benchmark": "head_dies", "results": results | {"complaints": complaints}}))
    if complaints:
        raise SystemExit("; ".join(complaints))


if __name__ == "__main__":
    main()
