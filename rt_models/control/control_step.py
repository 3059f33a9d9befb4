"""The two networks of RT-1's control step, for several robots in one pass; on a GPU replayed as a CUDA graph.

Launched kernel by kernel, a step of an RT-1 waits for Python: 25 to 44 ms on an H200, of which the device works 3. A
graph is launched once. It has a fixed number of rows: there is one for 1, 8 and 32 robots each, captured when it is
first needed, and the rows that no robot needs pad. What is not on a GPU is computed as it is.

Axes: R robots, T steps that are kept, of which a window takes each `stride`th, M cameras, J tokens of a step before its
actions, P values of a state, D width, HWC pixels, A actions, V bins.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from rt_models.rt1 import RT1

CAPACITIES = (1, 8, 32)
"""Robots of a graph; more robots are computed in pieces of the last."""
_WARM_UP = 3  # passes before a capture: cuDNN chooses its kernels, constants are copied to the device

_ONE_RECORDING = threading.Lock()  # at a time in this process: a server lays out a new model while the old one acts

Inputs = Mapping[str, Tensor]
"""image_RHWC in [0, 1] at model resolution, of several cameras (R, M, H, W, C); embedding_RD; tokens_RTJD of the last T
steps, oldest first; real_RT bool, of the steps that end with the image; where the model sees earlier actions,
action_tokens_RTA; where it reads more than the main camera, present_RM bool; and a state's state_RP, state_mask_RP."""
Outputs = tuple[Tensor, Tensor]


class ControlStep:
    """Inputs -> (tokens of the steps that end with the image (R, T, J, D), logits (R, A, V)).

    The results of a graph are the caller's own; the next step does not touch them.
    """

    def __init__(self, model: RT1, *, cuda_graph: bool) -> None:
        self._model, self._cuda_graph = model, cuda_graph
        self._graphs: dict[int, StepGraph] = {}

    def __call__(self, inputs: Inputs) -> Outputs:
        if not (self._cuda_graph and self._model.transformer.output.weight.is_cuda):
            return self.run(inputs)
        robots, largest = len(inputs["image_RHWC"]), CAPACITIES[-1]
        pieces = [_rows(inputs, first, min(first + largest, robots)) for first in range(0, robots, largest)]
        tokens, logits = zip(*(self._replayed(piece) for piece in pieces), strict=True)
        return torch.cat(tokens), torch.cat(logits)

    @torch.no_grad()
    def run(self, inputs: Inputs) -> Outputs:
        """Kernel by kernel."""
        image_RHWC, embedding_RD, past_RTJD = (inputs[key] for key in ("image_RHWC", "embedding_RD", "tokens_RTJD"))
        state = (inputs["state_RP"][:, None], inputs["state_mask_RP"]) if "state_RP" in inputs else None
        present_R1M = inputs["present_RM"][:, None] if "present_RM" in inputs else None
        tokens_R1JD = self._model.step_tokens(image_RHWC[:, None], embedding_RD[:, None], state, present_R1M)
        kept_RTJD = torch.cat([past_RTJD[:, 1:], tokens_R1JD.to(past_RTJD.dtype)], dim=1)
        steps = (kept_RTJD, inputs.get("action_tokens_RTA"), inputs["real_RT"])
        window = [None if step is None else step[:, :: self._model.config.stride] for step in steps]
        return kept_RTJD, self._model.action_logits(*window, "last")[:, 0]  # type: ignore[arg-type]

    def _replayed(self, inputs: Inputs) -> Outputs:
        robots = len(inputs["image_RHWC"])
        capacity = next(size for size in CAPACITIES if size >= robots)
        with torch.cuda.device(self._model.transformer.output.weight.device):
            if capacity not in self._graphs:
                with _ONE_RECORDING:
                    self._graphs[capacity] = StepGraph(self.run, inputs, capacity)
            return self._graphs[capacity](inputs)


class StepGraph:
    """`run` on rows of a fixed number, as one CUDA graph of the current device."""

    def __init__(self, run: Callable[[Inputs], Outputs], inputs: Inputs, capacity: int) -> None:
        device = torch.device("cuda", torch.cuda.current_device())
        self._inputs = {
            name: torch.zeros(capacity, *rows.shape[1:], dtype=rows.dtype, device=device)
            for name, rows in inputs.items()
        }
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UP):
                run(self._inputs)
        torch.cuda.current_stream().wait_stream(aside)
        torch.clear_autocast_cache()  # weights cast before the capture would be read after they are gone
        self._graph = torch.cuda.CUDAGraph()
        # On a stream of this device: torch's own is of the GPU that this process first recorded on.
        with torch.cuda.graph(self._graph, stream=aside, capture_error_mode="thread_local"):
            self._outputs = run(self._inputs)
        torch.clear_autocast_cache()

    def __call__(self, inputs: Inputs) -> Outputs:
        robots = len(inputs["image_RHWC"])
        for name, rows in inputs.items():
            self._inputs[name][:robots].copy_(rows)
        self._graph.replay()
        tokens, logits = (rows[:robots].clone() for rows in self._outputs)
        return tokens, logits


def _rows(inputs: Inputs, first: int, end: int) -> Inputs:
    return {name: rows[first:end] for name, rows in inputs.items()}
