"""Evaluation, the same for every agent: sampled actions, no exploration noise, no selection."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from agents.protocol import Agent
from agents.streams import derive_seed
from envs import Lockstep
from qsm_bench.errors import UserError

LONGEST_EPISODE = 100_000


class Interrupted(Exception):  # noqa: N818 - it is no error
    """A job was asked to stop; what it has is on disk."""


def evaluate(
    agent: Agent,
    environments: Lockstep,
    seeds: Sequence[int],
    episodes: int,
    occasion: int,
    device: torch.device,
    stop: Callable[[], bool] = lambda: False,
    watch: Callable[[], None] = lambda: None,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Play ``episodes`` episodes with each seed's policy: returns and lengths, [S, episodes].

    ``environments`` are S * episodes in number, a seed's beside each other. Episode k of seed s
    starts from a state drawn for (s, ``occasion``, k) alone; ``occasion`` is the training step.
    ``watch`` is called after every step taken. Raises Interrupted as soon as ``stop()`` is true,
    and UserError if an episode does not end.
    """
    shape = (len(seeds), episodes)
    observation = np.stack(
        [
            environments.reset(
                row * episodes + k, derive_seed(seed, "evaluation", occasion, k, bits=31)
            )
            for row, seed in enumerate(seeds)
            for k in range(episodes)
        ]
    )
    total = np.zeros(shape)
    length = np.zeros(shape, dtype=np.int64)
    active = np.ones(shape, dtype=bool)
    while active.any():
        if stop():
            raise Interrupted
        batch = torch.from_numpy(observation).view(*shape, -1).to(device)
        action = agent.act(batch, explore=False).cpu().numpy()
        step = environments.step(action.reshape(-1, environments.action_size), active.ravel())
        watch()
        observation = step.observation
        total += np.where(active, step.reward.reshape(shape), 0.0)
        length += active
        active &= ~(step.terminated | step.truncated).reshape(shape)
        if length.max() > LONGEST_EPISODE:
            raise UserError(
                f"task {environments.task.name!r}: an episode ran past {LONGEST_EPISODE} steps "
                "without ending; give the task a time limit"
            )
    return total, length
