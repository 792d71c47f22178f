"""Random numbers: one independent stream per (seed, purpose).

A seed's stream depends on nothing but its own seed and purpose, so neither another seed in the
batch nor another use of randomness can change what a learner draws. On a CPU each stream is a
generator of torch's. On a GPU that would be a launch for each seed and draw: there the streams are
counter-based, and all seeds draw at once.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from agents.common import philox
from agents.speed.program_cache import use_program_cache
from agents.speed.toolchain import why_no_kernels


def derive_seed(*parts: int | str, bits: int = 63) -> int:
    """Hash ``parts`` into a seed of ``bits`` bits, the same on every machine and Python version."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> (64 - bits)


class Source(Protocol):
    """What draws the numbers of S streams; see ``SeedStreams`` for its methods."""

    def normal(self, *shape: int) -> Tensor: ...

    def uniform(self, *shape: int, low: float, high: float) -> Tensor: ...

    def integers(self, *shape: int, high: int) -> Tensor: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


class Generators:
    """S generators of torch's, one per key, asked one after the other."""

    def __init__(self, keys: Sequence[int], device: torch.device) -> None:
        self.device = device
        self.generators = [torch.Generator(device).manual_seed(key) for key in keys]

    def normal(self, *shape: int) -> Tensor:
        out = torch.empty(len(self.generators), *shape, device=self.device)
        for row, generator in zip(out, self.generators, strict=True):
            row.normal_(generator=generator)
        return out

    def uniform(self, *shape: int, low: float, high: float) -> Tensor:
        out = torch.empty(len(self.generators), *shape, device=self.device)
        for row, generator in zip(out, self.generators, strict=True):
            row.uniform_(low, high, generator=generator)
        return out

    def integers(self, *shape: int, high: int) -> Tensor:
        out = torch.empty(len(self.generators), *shape, device=self.device, dtype=torch.int64)
        for row, generator in zip(out, self.generators, strict=True):
            row.random_(0, high, generator=generator)
        return out

    def state_dict(self) -> dict[str, Tensor]:
        return {str(i): generator.get_state() for i, generator in enumerate(self.generators)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if len(state) != len(self.generators):
            raise ValueError(f"state of {len(state)} streams, expected {len(self.generators)}")
        for i, generator in enumerate(self.generators):
            generator.set_state(state[str(i)])


class Counters:
    """S counter-based streams, one per key, whose whole state is the number of the next block.

    It lies on the device, so a compiled draw is one program whatever it is. All streams have drawn
    as much, so they share it.
    """

    def __init__(self, keys: Sequence[int], device: torch.device) -> None:
        self.keys = torch.tensor(keys, device=device)
        self.next_block = torch.zeros((), dtype=torch.int64, device=device)
        self.fused = device.type == "cuda" and why_no_kernels(device.type) is None

    def normal(self, *shape: int) -> Tensor:
        return self._draw(philox.draw_normal, shape, philox.WORDS)

    def uniform(self, *shape: int, low: float, high: float) -> Tensor:
        value = low + (high - low) * self._draw(philox.draw_unit, shape, philox.WORDS)
        return torch.where(value < high, value, low)  # a sum may be rounded up to the bound

    def integers(self, *shape: int, high: int) -> Tensor:
        return self._draw(philox.draw_integers, shape, philox.WORDS // 2, high)

    def state_dict(self) -> dict[str, Tensor]:
        return {"keys": self.keys, "next_block": self.next_block}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if len(state["keys"]) != len(self.keys):
            raise ValueError(f"state of {len(state['keys'])} streams, expected {len(self.keys)}")
        self.keys.copy_(state["keys"])
        self.next_block.copy_(state["next_block"])

    def _draw(
        self, draw: Callable[..., Tensor], shape: Sequence[int], per_block: int, *limits: int
    ) -> Tensor:
        if self.fused:
            draw = fused(draw)
        count = math.prod(shape)
        blocks = -(-count // per_block)
        drawn = draw(self.keys, self.next_block, blocks, *limits)
        self.next_block += blocks
        return drawn[:, :count].reshape(len(self.keys), *shape)


@cache
def fused(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compile a draw of counter-based numbers, for any number of blocks: some 250 kernels to a few.

    They are the same numbers; normal ones may be rounded in another way.
    """
    use_program_cache()
    return torch.compile(draw, dynamic=True, fullgraph=True)


class SeedStreams:
    """S streams of random numbers, one per seed, that fill the seed axis of a tensor."""

    def __init__(self, seeds: Sequence[int], purpose: str, device: torch.device) -> None:
        self.device = device
        self.keys = [derive_seed(seed, purpose) for seed in seeds]
        kind = Counters if device.type == "cuda" else Generators
        self.source: Source = kind(self.keys, device)

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal numbers, [S, *shape]."""
        return self.source.normal(*shape)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Draw uniform numbers in [low, high), [S, *shape]."""
        return self.source.uniform(*shape, low=low, high=high)

    def integers(self, *shape: int, high: int) -> Tensor:
        """Draw uniform int64 numbers in 0..high-1, [S, *shape]."""
        return self.source.integers(*shape, high=high)

    def state_dict(self) -> dict[str, Tensor]:
        """Return where the streams are."""
        return self.source.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a saved state. Raises ValueError if it is of another number of seeds.

        A state that was saved on a GPU goes on with the same numbers on a CPU.
        """
        kind = Counters if "next_block" in state else Generators
        if not isinstance(self.source, kind):
            self.source = kind(self.keys, self.device)
        self.source.load_state_dict(state)
