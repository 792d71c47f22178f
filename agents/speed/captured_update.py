"""A pure update recorded as a CUDA graph: one launch for all of its kernels."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from agents.protocol import Agent


class CapturedUpdate:
    """A pure update that is recorded once as a CUDA graph and then replayed.

    There is one graph for every combination of shapes and of arguments that are no tensors.
    """

    WARM_UPS = 3
    """Runs before the capture: in the first, CUDA's libraries allocate their workspaces."""

    def __init__(
        self, agent: Agent, update: Callable[..., dict[str, Tensor]], device: torch.device
    ) -> None:
        self.agent = agent
        self.update = update
        self.device = device
        self.graphs: dict[
            tuple[Any, ...], tuple[torch.cuda.CUDAGraph, list[Tensor], dict[str, Tensor]]
        ] = {}

    def __call__(self, *inputs: Any) -> dict[str, Tensor]:
        leaves = pytree.tree_leaves(inputs)
        key = tuple((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in leaves)
        with torch.cuda.device(self.device):
            if key not in self.graphs:
                self.graphs[key] = self._capture(inputs)
            graph, held, outputs = self.graphs[key]
            torch._foreach_copy_(held, [x for x in leaves if isinstance(x, Tensor)])
            graph.replay()
            return {name: value.clone() for name, value in outputs.items()}

    def _capture(
        self, inputs: tuple[Any, ...]
    ) -> tuple[torch.cuda.CUDAGraph, list[Tensor], dict[str, Tensor]]:
        held = pytree.tree_map_only(Tensor, Tensor.clone, inputs)
        state = copy.deepcopy(self.agent.state_dict())
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(self.WARM_UPS):
                self.update(*held)
        torch.cuda.current_stream().wait_stream(stream)
        # The warm-ups were no updates; parameters are restored where they lie.
        self.agent.load_state_dict(state)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self.update(*held)
        return graph, [x for x in pytree.tree_leaves(held) if isinstance(x, Tensor)], outputs
