"""A pure update stays on the device: a CUDA graph cannot be recorded of one that waits for it."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from agents.registry import BUILT_IN, find_agent
from tests.agents.fixed_critics import CPU, make_batch


class ReadsNoNumber(TorchDispatchMode):
    """Raises an error where a number is read on the host, or decides the size of a result."""

    FORBIDDEN = "_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique"

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        assert name not in self.FORBIDDEN, f"{name} waits for the device"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("path", BUILT_IN)
def test_an_update_reads_no_number_on_the_host(path: str) -> None:
    agent_class = find_agent(path).agent
    agent: Any = agent_class(agent_class.config_class(hidden_sizes=(8, 8)), 3, 2, (3, 4), CPU)
    batch = make_batch(2, 16, 3, 2, torch.float32)
    for _ in range(2):  # TD3's updates are of two kinds
        with ReadsNoNumber():  # type: ignore[no-untyped-call]
            if path == "agents.dipo:DIPO":  # its memory grows, by the highest number of a batch
                agent.pure_update(*agent.with_inputs(batch))
            else:
                agent.update(batch)


def test_reading_a_number_is_noticed() -> None:
    with pytest.raises(AssertionError, match="_local_scalar_dense"), ReadsNoNumber():  # type: ignore[no-untyped-call]
        torch._foreach_add_([torch.ones(2)], torch.tensor(1.0))
