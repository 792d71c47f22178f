"""Faster ways to run an agent's pure update: compiled, and replayed as a CUDA graph.

Both wrap ``agent.pure_update`` of an agent whose class says ``promises_pure_update = True``. It is
a function of (parameters, batch, noise, switches) that draws no random numbers. All that it changes
are tensors, in place, and no method of the agent replaces one by another tensor. Python numbers
that it reads are built into its program. Its batch and noise are tensors whose first axis is the
seed's, in tuples, and its metrics are such tensors. What the agent holds beside its ``parts`` is
the same for every seed. Neither way is needed for a correct result: compiled numbers are the plain
ones up to the order of operations.

Such an agent may have ``pure_training_action`` and ``pure_evaluation_action``, too, for a policy
whose action takes many operations. They are functions of (parameters, observation, noise) that
change nothing and return actions. They are compiled where updates are.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from agents.protocol import Agent
from agents.speed.captured_update import CapturedUpdate
from agents.speed.compiled_function import CompiledFunction
from agents.speed.program import Program
from agents.speed.seed_by_seed import SeedBySeed, is_large

PURE_ACTIONS = "pure_training_action", "pure_evaluation_action"


def accelerate(agent: Agent, device: torch.device, *, seeds: int, compiled: bool) -> None:
    """Wrap the agent's ``pure_update``: compiled if asked, and captured in CUDA graphs on a GPU.

    Its pure actions, if it has any, are compiled if asked.
    """
    # A subclass has to say it for itself: what it adds may not be pure.
    if not vars(type(agent)).get("promises_pure_update"):
        return
    update: Callable[..., dict[str, Tensor]] = agent.pure_update  # type: ignore[attr-defined]
    if compiled:
        program = Program(type(agent).pure_update, device)  # type: ignore[attr-defined]
        bind = partial(CompiledFunction, program)
        if device.type == "cpu" and seeds > 1 and is_large(agent):
            update = SeedBySeed(agent, seeds, bind)
        else:
            update = bind(agent)
    if device.type == "cuda":
        update = CapturedUpdate(agent, update, device)
    agent.pure_update = update  # type: ignore[attr-defined]
    for name in PURE_ACTIONS if compiled else ():
        if plain := getattr(type(agent), name, None):
            setattr(agent, name, CompiledFunction(Program(plain, device), agent))
