"""Evaluation, the same for every agent: sampled actions, no exploration noise, no selection."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agents.common.streams import derive_seed
from envs import Environments
from qsm_bench.contract import Checked

LONGEST_EPISODE = 100_000
"""Steps after which an episode that does not end counts as a fault of its task."""

UNSEEN = 0.05
"""A truncated return-to-go counts as observed if what is missing is discounted to below this."""


class Interrupted(Exception):  # noqa: N818 - it is no error
    """A job was asked to stop; what it has is on disk."""


@dataclass(frozen=True)
class Episodes:
    """E evaluation episodes of each of S seeds, step by step."""

    reward: NDArray[np.float64]
    """[K, S, E] for K steps of the longest; 0 after an episode's end."""
    value: NDArray[np.float64]
    """[K, S, E] the critics' value of each decision; NaN for an agent that does not show it."""
    length: NDArray[np.int64]
    """[S, E]: how many steps each episode had."""
    terminated: NDArray[np.bool_]
    """[S, E]: whether the task ended it, not a time limit."""
    faults: dict[int, str] = field(default_factory=dict)
    """Why an environment failed, by the row of its seed. All returns of that seed are NaN."""

    @property
    def returns(self) -> NDArray[np.float64]:
        """The undiscounted returns, [S, E]."""
        total: NDArray[np.float64] = self.reward.sum(axis=0)
        return total

    def critic_bias(self, discount: float) -> NDArray[np.float64]:
        """Return the mean of Q minus the discounted return-to-go then observed, [S].

        Only decisions count whose return-to-go is known: those of terminated episodes, and those
        so long before a time limit that discount^(steps left) < UNSEEN. NaN where there is none.
        """
        to_go = np.zeros_like(self.reward)
        ahead = np.zeros(self.length.shape)
        for k in range(len(self.reward) - 1, -1, -1):
            ahead = self.reward[k] + discount * ahead
            to_go[k] = ahead
        left = self.length - np.arange(len(self.reward)).reshape(-1, 1, 1)
        known = (left > 0) & (self.terminated | (discount ** np.maximum(left, 0) < UNSEEN))
        count = known.sum(axis=(0, 2))
        error = np.where(known, self.value - to_go, 0.0).sum(axis=(0, 2))
        return np.where(count > 0, error / np.maximum(count, 1), np.nan)


def evaluate(
    agent: Checked,
    environments: Environments,
    seeds: Sequence[int],
    episodes: int,
    *,
    start_key: int,
    device: torch.device,
    stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[], None] = lambda: None,
    playing: NDArray[np.bool_] | None = None,
) -> Episodes:
    """Play ``episodes`` episodes with each seed's policy.

    ``environments`` are S * episodes in number, a seed's beside each other. Episode k of seed s
    starts from a state that (s, ``start_key``, k) alone decides; while training, ``start_key`` is
    the step. ``on_step`` is called after every step taken. A seed that is not ``playing`` [S] plays
    none, and one whose action is not finite, or one of whose environments fails, no further: their
    returns are NaN. Raises Interrupted as soon as ``stop()`` is true.
    """
    shape = (len(seeds), episodes)
    rewards: list[NDArray[Any]] = []
    values: list[NDArray[Any]] = []
    length = np.zeros(shape, dtype=np.int64)
    terminated = np.zeros(shape, dtype=bool)
    playing = np.ones(len(seeds), bool) if playing is None else playing.copy()
    observation = np.zeros((environments.count, environments.observation_size), np.float32)
    for row in np.flatnonzero(playing).tolist():
        for k in range(episodes):
            seed = derive_seed(seeds[row], "evaluation", start_key, k, bits=31)
            observation[row * episodes + k] = environments.reset(row * episodes + k, seed)
    faults: dict[int, str] = {}

    def note_faults() -> None:
        """Take out the seeds one of whose environments has failed."""
        for index, fault in environments.faults.items():
            if playing[index // episodes]:
                faults[index // episodes] = fault
                playing[index // episodes] = False

    note_faults()
    active = np.broadcast_to(playing[:, np.newaxis], shape).copy()
    while active.any():
        if stop():
            raise Interrupted
        batch = torch.from_numpy(observation).view(*shape, -1).to(device)
        action = agent.act(batch, explore=False)
        playing &= (action.isfinite().all(dim=-1).cpu().numpy() | ~active).all(axis=1)
        active &= playing[:, np.newaxis]
        value = agent.action_value(batch, action)
        values.append(np.full(shape, np.nan) if value is None else value.cpu().numpy())
        step = environments.step(
            action.cpu().numpy().reshape(-1, environments.action_size), active.ravel()
        )
        on_step()
        note_faults()
        observation = step.observation
        reward = step.reward.reshape(shape)  # 0 where the episode has ended
        rewards.append(np.where(playing[:, np.newaxis], reward, np.nan))
        length += active
        terminated |= step.terminated.reshape(shape)
        active &= ~(step.terminated | step.truncated).reshape(shape) & playing[:, np.newaxis]
        for row in np.flatnonzero((active & (length >= LONGEST_EPISODE)).any(axis=1)).tolist():
            faults[row] = (
                f"task {environments.task.name!r}: an episode ran past {LONGEST_EPISODE} steps "
                "without ending; give the task a time limit"
            )
            playing[row] = False
            active[row] = False
            rewards[-1][row] = np.nan
    if not rewards:
        rewards, values = [np.full(shape, np.nan)], [np.full(shape, np.nan)]
    return Episodes(
        np.stack(rewards).astype(np.float64),
        np.stack(values).astype(np.float64),
        length,
        terminated,
        faults,
    )
