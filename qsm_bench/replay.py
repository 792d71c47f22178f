"""The replay buffer of S seeds in lockstep, with exact n-step returns.

One transition of one seed is one packed float32 record, so that inserting is one copy, sampling
is one gather, and a slice of the memory can be appended to a file as it is.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from agents.common.streams import SeedStreams
from agents.protocol import Batch


class ReplayBuffer:
    """The last ``capacity`` transitions of each seed, sampled uniformly.

    A record is (observation, action, reward, terminated, ended, next observation), where
    ``ended`` marks the last transition of an episode for any reason: a return never reaches past
    it. After a termination nothing is bootstrapped; after a truncation the value of the last
    observation is.
    """

    def __init__(
        self,
        capacity: int,
        observation_size: int,
        action_size: int,
        seeds: Sequence[int],
        device: torch.device,
        *,
        n_step: int = 1,
        discount: float = 0.99,
    ) -> None:
        self.capacity = capacity
        self.n_step = n_step
        self.discount = discount
        self.sizes = [observation_size, action_size, 1, 1, 1, observation_size]
        # Pages of the allocation that were never written cost no memory.
        self.records = torch.empty(capacity, len(seeds), sum(self.sizes), device=device)
        self.added = 0
        self.stream = SeedStreams(seeds, "replay", device)

    @property
    def size(self) -> int:
        """How many transitions of each seed can be sampled."""
        return min(self.added, self.capacity)

    def add(
        self,
        observation: Tensor,
        action: Tensor,
        reward: Tensor,
        next_observation: Tensor,
        terminated: Tensor,
        truncated: Tensor,
    ) -> None:
        """Store one transition of every seed: [S, obs], [S, act], [S], [S, obs], [S], [S] bool."""
        flags = torch.stack([reward, terminated.float(), (terminated | truncated).float()], dim=-1)
        record = self.records[self.added % self.capacity]
        torch.cat([observation, action, flags, next_observation], dim=-1, out=record)
        self.added += 1

    def record(self, number: int) -> tuple[Tensor, ...]:
        """Return the transition added as the ``number``-th, counted from 0: six tensors [S, field].

        Raises IndexError if it is not kept any more, or not there yet.
        """
        if not self.added - self.size <= number < self.added:
            raise IndexError(f"transition {number} of {self.added}, of which {self.size} are kept")
        return torch.split(self.records[number % self.capacity], self.sizes, dim=-1)

    def sample(self, batch_size: int) -> Batch:
        """Draw ``batch_size`` transitions of each seed, uniformly and with replacement."""
        index = self.stream.integers(batch_size, high=self.size)
        return self.returns_from(index)

    def sample_several(self, batch_size: int, count: int) -> list[Batch]:
        """Draw what ``count`` calls of ``sample`` would, bit for bit, with one gather."""
        drawn = [self.stream.integers(batch_size, high=self.size) for _ in range(count)]
        together = self.returns_from(torch.cat(drawn, dim=1))
        fields = [x.split(batch_size, dim=1) for x in together if x is not None]
        return [Batch(*of_one) for of_one in zip(*fields, strict=True)]

    def returns_from(self, index: Tensor) -> Batch:
        """Return the n-step transitions that start at the records ``index`` [S, B], 0 the oldest.

        A return stops early at an episode's last transition and at the newest record; its
        ``discount`` and ``next_observation`` are then those of the steps it took.
        """
        number = index + (self.added - self.size)
        observation, action, reward, terminated, ended, next_observation = self._gather(number)
        continues = 1.0 - ended
        discount = self.discount * (1.0 - terminated)
        for k in range(1, self.n_step):
            inside = (index + k < self.size).unsqueeze(-1)
            _, _, later_reward, terminated, ended, later_observation = self._gather(
                (number + k).clamp(max=self.added - 1)
            )
            take = continues * inside
            reward = reward + take * self.discount**k * later_reward
            discount = torch.where(
                take > 0, self.discount ** (k + 1) * (1.0 - terminated), discount
            )
            next_observation = torch.where(take > 0, later_observation, next_observation)
            continues = take * (1.0 - ended)
        return Batch(
            observation, action, reward.squeeze(-1), discount.squeeze(-1), next_observation, number
        )

    def _gather(self, number: Tensor) -> tuple[Tensor, ...]:
        """Return the transitions ``number`` [S, B], which are kept: six tensors [S, B, field]."""
        row = number % self.capacity
        seeds, batch = row.shape
        flat = row * seeds + torch.arange(seeds, device=row.device).unsqueeze(-1)
        records = self.records.view(-1, self.records.shape[-1]).index_select(0, flat.flatten())
        return torch.split(records.view(seeds, batch, -1), self.sizes, dim=-1)
