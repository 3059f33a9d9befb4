"""Actors elsewhere in the cluster that answer questions, each with what a picklable factory makes on its node.

A question that is lost with its actor or node is asked again once Ray has started the actor anew, so that whoever asks
sees a longer wait and nothing else. One that ends its actor every time is given up.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

from cluster.quick_imports import resume_collection

Asked = ParamSpec("Asked")
Answer = TypeVar("Answer")

WARN_S = 60.0
RETRIES = 5  # of a question whose actor died
log = logging.getLogger(__name__)


class _Worker:
    """The actor."""

    def __init__(self, factory: Callable[[], Callable[..., Any]]) -> None:
        import torch

        resume_collection()
        torch.set_num_threads(1)
        self._factory = factory
        self._making = threading.Lock()
        self._answer: Callable[..., Any] | None = None

    def prepare(self) -> None:
        """Not in the constructor, whose errors Ray would tell as the actor's death."""
        with self._making:
            if self._answer is None:
                self._answer = self._factory()

    def answer(self, arguments: tuple[Any, ...], settings: dict[str, Any]) -> Any:
        self.prepare()
        assert self._answer is not None
        return self._answer(*arguments, **settings)


class RemoteWorkers(Generic[Asked, Answer]):
    """`count` actors of `cpus` CPU cores, each answering so many questions at once; `offset` turns their places.

    They go to nodes without GPUs, one after another, or where there are none to any node but this one, or to this one.
    `factory` is called once in each, and what it returns answers: a pure function of what it is asked. Must be made in
    a process that is connected to Ray, and the actors end with it.
    """

    def __init__(
        self, factory: Callable[[], Callable[Asked, Answer]], *, count: int, cpus: int, offset: int = 0
    ) -> None:
        import ray

        actor: Any = ray.remote(_Worker)
        places = _places()
        self._busy = [0] * count
        self._choosing = threading.Lock()
        self._actors = [
            actor.options(
                num_cpus=cpus,
                max_concurrency=cpus,
                max_restarts=-1,
                max_task_retries=RETRIES,
                scheduling_strategy=places[(offset + number) % len(places)] if places else "DEFAULT",
            ).remote(factory)
            for number in range(count)
        ]
        for each in self._actors:
            each.prepare.remote()  # before the first question; an error in it meets that question too

    def ask(self, *arguments: Asked.args, **settings: Asked.kwargs) -> Answer:
        """The answer of the actor that has the least to do. Raises what the function raises, and ChildProcessError if
        the actor died of the question again and again. Any thread may ask."""
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        with self._choosing:
            chosen = self._busy.index(min(self._busy))
            self._busy[chosen] += 1
        try:
            question = self._actors[chosen].answer.remote(arguments, settings)
            waited_s = 0.0
            while not ray.wait([question], timeout=WARN_S)[0]:
                waited_s += WARN_S
                log.warning("a remote reader has not answered for %.0f s: has its node room for it?", waited_s)
            return ray.get(question)
        except RayActorError as error:
            reason = " ".join(str(error).split())
            raise ChildProcessError(
                f"a remote reader died {RETRIES + 1} times over one batch, perhaps for lack of memory on its node "
                f"({reason:.300}): give it less (--loader.memory-mb, --loader.decode-threads), or the node more"
            ) from error
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else error) from None
        finally:
            with self._choosing:
                self._busy[chosen] -= 1

    def close(self) -> None:
        """End the actors."""
        import ray

        for actor in self._actors:
            ray.kill(actor)


def _places() -> list[Any]:
    """Where actors are to run: softly bound to nodes, so that another takes one whose node has gone."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
    without = [node for node in nodes if not node["Resources"].get("GPU", 0)]
    others = [node for node in without if node["NodeID"] != here] or [n for n in nodes if n["NodeID"] != here]
    return [NodeAffinitySchedulingStrategy(node["NodeID"], soft=True) for node in others]
