"""Counter-based random numbers: Philox4x32-10, of all seeds at once, in integer tensor operations.

J. Salmon, M. Moraes, R. Dror, D. Shaw: Parallel random numbers: as easy as 1, 2, 3 (SC 2011). A
block of four 32-bit words is a function of a key and of the block's number alone. So the words of S
streams are one tensor operation after another on [S, blocks], as many for one seed as for 64, and
a compiled program makes one kernel of them. No generator is there that would be asked seed by seed.

Words are int64 tensors with values in 0..2^32-1: torch has no arithmetic of unsigned numbers.
"""

import math

import torch
from torch import Tensor

ROUNDS = 10
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
KEY_STEPS = 0x9E3779B9, 0xBB67AE85
WORDS = 4
"""The words of a block."""
MASK = 0xFFFFFFFF


def philox(counter: tuple[Tensor, ...], key: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the four words of a block, of a counter of four words and a key of two.

    All are broadcast to one shape.
    """
    a, b, c, d = counter
    left, right = key
    for _ in range(ROUNDS):
        high_a, low_a = _product(a, MULTIPLIERS[0])
        high_c, low_c = _product(c, MULTIPLIERS[1])
        a, b, c, d = high_c ^ b ^ left, low_c, high_a ^ d ^ right, low_a
        left, right = (left + KEY_STEPS[0]) & MASK, (right + KEY_STEPS[1]) & MASK
    return [a, b, c, d]


def _product(word: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Return the high and the low word of a product of two words."""
    # By halves of the factor: the whole product may not fit into an int64.
    low = word * (factor & 0xFFFF)
    high = word * (factor >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def words(keys: Tensor, first: Tensor, blocks: int) -> Tensor:
    """Return the words of so many blocks in a row: [S, blocks, 4].

    ``keys`` [S] int64 are the streams' keys; ``first`` [] int64 is the first block's number.
    """
    number = (first + torch.arange(blocks, device=keys.device)).expand(len(keys), -1)
    zero = torch.zeros_like(number)
    keys = keys.unsqueeze(-1)
    counter = number & MASK, (number >> 32) & MASK, zero, zero
    return torch.stack(philox(counter, (keys & MASK, (keys >> 32) & MASK)), dim=-1)


def unit(words: Tensor) -> Tensor:
    """Turn words into uniform float32 numbers in [0, 1), one of each: [...] -> [...]."""
    drawn: Tensor = (words >> 8).float() * 2.0**-24
    return drawn


def normal(words: Tensor) -> Tensor:
    """Turn words into standard normal float32 numbers, two of two: [..., 2 n] -> [..., 2 n].

    They are G. Box's and M. Muller's (1958): a radius from the first of two words, an angle from
    the second. The largest possible size is 6.8.
    """
    first, second = words.unflatten(-1, (-1, 2)).unbind(dim=-1)
    radius = (-2.0 * ((first.float() + 0.5) * 2.0**-32).log()).sqrt()
    angle = second.float() * (2.0 * math.pi * 2.0**-32)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).flatten(-2)


def integers(words: Tensor, high: int) -> Tensor:
    """Turn words into int64 numbers in 0..high-1, one of two words each: [..., 2 n] -> [..., n].

    high < 2^31. No number is more likely than another by more than a share of high / 2^64.
    """
    first, second = words.unflatten(-1, (-1, 2)).unbind(dim=-1)
    drawn: Tensor = (first * high + (second * high >> 32)) >> 32
    return drawn


def draw_unit(keys: Tensor, first: Tensor, blocks: int) -> Tensor:
    """Draw uniform numbers in [0, 1) of every stream, four of each block: [S, 4 blocks]."""
    return unit(words(keys, first, blocks).flatten(1))


def draw_normal(keys: Tensor, first: Tensor, blocks: int) -> Tensor:
    """Draw standard normal numbers of every stream, four of each block: [S, 4 blocks]."""
    return normal(words(keys, first, blocks).flatten(1))


def draw_integers(keys: Tensor, first: Tensor, blocks: int, high: int) -> Tensor:
    """Draw integers in 0..high-1 of every stream, two of each block: [S, 2 blocks]."""
    return integers(words(keys, first, blocks).flatten(1), high)
