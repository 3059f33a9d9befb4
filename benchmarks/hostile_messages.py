"""Ten thousand malformed messages to a policy server: every one is refused or answered, robots beside them go on, and
memory stays bounded. The messages are those of tests/support/hostile_messages.py.

    python benchmarks/hostile_messages.py --store STORE --messages 10000
"""

from __future__ import annotations

import argparse
import base64
import random
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
from websockets.sync.client import connect

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.serving.limits import Limits
from pipelines.serving.service import ServiceConfig
from preprocessing.store.episode_store import EpisodeStore
from tests.support import hostile_messages
from tests.support.policy_clients import OpenpiRobot, post
from tests.support.policy_server import running, untrained


def main() -> None:
    arguments = _arguments()
    store = EpisodeStore.open(arguments.store, split="val")
    text = store.instruction_texts[0]
    limits = Limits(max_rate_hz=1e6, max_message_mib=1)
    with running(untrained(store), ServiceConfig(limits=limits)) as server:
        stop, served = threading.Event(), Counter[str]()
        good = threading.Thread(target=well_behaved, args=(server.websocket, text, stop, served))
        good.start()
        each = arguments.messages // 3
        _send(server.websocket, server.address, text, each // 10)  # caches fill
        before = psutil.Process().memory_info().rss
        outcomes = _send(server.websocket, server.address, text, each)
        grown = psutil.Process().memory_info().rss - before
        stop.set()
        good.join()
    print(f"{sum(outcomes.values())} malformed messages: {dict(outcomes)}")
    print(f"the robot beside them: {dict(served)}; memory grew by {grown / 2**20:.1f} MiB")
    assert served["answered"] > 0 and not served["failed"]


def well_behaved(url: str, text: str, stop: threading.Event, served: Counter[str]) -> None:
    """A robot that asks until it is told to stop."""
    with OpenpiRobot(url) as robot:
        while not stop.is_set():
            answer = robot.infer({"image": hostile_messages.frame(served["answered"]), "prompt": text})
            served["answered" if answer["tokens"].shape[0] == 1 else "failed"] += 1
            time.sleep(0.05)


def _send(websocket: str, address: str, text: str, count: int) -> Counter[str]:
    """So many messages over each of the three ways in; what came back."""
    draw, outcomes = random.Random(count), Counter[str]()
    frame = hostile_messages.frame(0)
    picture = base64.b64encode(frame.tobytes()).decode()
    openpi = hostile_messages.openpi({"image": frame, "prompt": text, "reset": False})
    harness = hostile_messages.harness({"images": {"primary": frame}, "task_description": text})
    in_json = hostile_messages.in_json({"image": picture, "instruction": text, "stateless": True})
    for name, url, message in (("openpi", websocket, openpi), ("vla", f"{websocket}/vla", harness)):
        with connect(url, max_size=None, compression=None) as robot:
            if name == "openpi":
                robot.recv(timeout=60)
            for _ in range(count):
                robot.send(message(draw))
                outcomes[f"{name} {type(robot.recv(timeout=60)).__name__}"] += 1
    for _ in range(count):
        outcomes[f"act {post(f'{address}/act', in_json(draw))[0]}"] += 1
    return outcomes


def _arguments() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--store", required=True, help="a store of robot episodes")
    made.add_argument("--messages", type=int, default=10_000, help="in all (default: 10000)")
    return made.parse_args()


if __name__ == "__main__":
    main()
