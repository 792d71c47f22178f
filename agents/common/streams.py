"""Random numbers: one independent stream per (seed, purpose).

A seed's stream depends on nothing but its own seed and purpose, so neither another seed in the
batch nor another use of randomness can change what a learner draws.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def derive_seed(*parts: int | str, bits: int = 63) -> int:
    """Hash ``parts`` into a seed of ``bits`` bits, the same on every machine and Python version."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> (64 - bits)


class SeedStreams:
    """S random number generators, one per seed, that fill the seed axis of a tensor."""

    def __init__(self, seeds: Sequence[int], purpose: str, device: torch.device) -> None:
        self.device = device
        self.generators = [
            torch.Generator(device).manual_seed(derive_seed(seed, purpose)) for seed in seeds
        ]

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal numbers, [S, *shape]."""
        out = torch.empty(len(self.generators), *shape, device=self.device)
        for row, generator in zip(out, self.generators, strict=True):
            row.normal_(generator=generator)
        return out

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Draw uniform numbers in [low, high), [S, *shape]."""
        out = torch.empty(len(self.generators), *shape, device=self.device)
        for row, generator in zip(out, self.generators, strict=True):
            row.uniform_(low, high, generator=generator)
        return out

    def integers(self, *shape: int, high: int) -> Tensor:
        """Draw uniform int64 numbers in 0..high-1, [S, *shape]."""
        out = torch.empty(len(self.generators), *shape, device=self.device, dtype=torch.int64)
        for row, generator in zip(out, self.generators, strict=True):
            row.random_(0, high, generator=generator)
        return out

    def state_dict(self) -> dict[str, Tensor]:
        """Return the states of the generators."""
        return {str(i): generator.get_state() for i, generator in enumerate(self.generators)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from saved states. Raises ValueError if they are of another number of seeds."""
        if len(state) != len(self.generators):
            raise ValueError(f"state of {len(state)} streams, expected {len(self.generators)}")
        for i, generator in enumerate(self.generators):
            generator.set_state(state[str(i)])
