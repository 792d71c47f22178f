"""Counter-based random numbers: the published words, their distributions, and independence."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from agents.common import philox
from agents.common.streams import Counters, Generators, SeedStreams, derive_seed, fused
from agents.speed.toolchain import why_not_compiled
from tests.agents.fixed_critics import CPU

DRAWS = 200_000
UNLIKELY = 1e-4
"""The level of each test of a distribution; the draws are always the same, so nothing flickers."""
PI = 0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0


def counters(*seeds: int, purpose: str = "test") -> Counters:
    return Counters([derive_seed(seed, purpose) for seed in seeds], CPU)


def drawn(source: Counters | Generators, kind: str, *shape: int) -> Tensor:
    if kind == "normal":
        return source.normal(*shape)
    if kind == "uniform":
        return source.uniform(*shape, low=-2.0, high=3.0)
    return source.integers(*shape, high=1_000_003)


KINDS = "normal", "uniform", "integers"


@pytest.mark.parametrize(
    ("inputs", "block"),
    [
        ([0] * 6, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([philox.MASK] * 6, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (PI, "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_a_block_has_the_words_that_its_authors_publish(inputs: list[int], block: str) -> None:
    """The known answers of Random123, philox4x32 with 10 rounds: counter, key, words."""
    words = [torch.tensor(word) for word in inputs]
    got = philox.philox(tuple(words[:4]), tuple(words[4:]))
    assert [f"{int(word):08x}" for word in got] == block.split()


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**62))
def test_words_are_those_of_the_key_and_the_number_of_the_block(key: int, first: int) -> None:
    signed = key - 2**64 if key >= 2**63 else key
    got = philox.words(torch.tensor([signed]), torch.tensor(first), 3)
    for place in range(3):
        number = first + place
        counter = number & philox.MASK, number >> 32, 0, 0
        split = key & philox.MASK, key >> 32
        expected = philox.philox(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, split)))
        assert got[0, place].tolist() == [int(word) for word in expected]


def test_the_numbers_of_extreme_words_are_in_bounds() -> None:
    ends = torch.tensor([[0, 0, philox.MASK, philox.MASK, 0, philox.MASK, philox.MASK, 0]])
    unit = philox.unit(ends)
    assert unit.min() == 0.0
    assert unit.max() < 1.0
    normal = philox.normal(ends)
    assert normal.isfinite().all()
    assert normal.abs().max() == pytest.approx(math.sqrt(2 * 33 * math.log(2)), rel=1e-6)
    high = 2**31 - 1
    assert philox.integers(ends, high).tolist() == [[0, high - 1, 0, high - 1]]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (-0.1, 0.1), (1.0, 1.0 + 2e-7)])
def test_uniform_numbers_lie_below_their_upper_bound(low: float, high: float) -> None:
    low, high = (float(torch.tensor(bound)) for bound in (low, high))  # as float32 has them
    value = counters(0).uniform(DRAWS, low=low, high=high)
    assert value.min() >= low
    assert value.max() < high


def test_normal_numbers_are_normal() -> None:
    z = counters(5).normal(DRAWS)[0].double().numpy()
    assert stats.kstest(z, "norm").pvalue > UNLIKELY
    # Four moments, each within four of its standard errors, sqrt(var(z^k) / n).
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - moment) < 4 * math.sqrt(variance / DRAWS)
    # Both numbers of a pair share a radius; neither they nor their squares are correlated.
    for pairs in (z.reshape(-1, 2), z.reshape(-1, 2) ** 2):
        assert abs(np.corrcoef(pairs.T)[0, 1]) < 4 / math.sqrt(DRAWS / 2)


def test_uniform_numbers_and_integers_are_uniform() -> None:
    unit = counters(5).uniform(DRAWS, low=0.0, high=1.0)[0].double().numpy()
    assert stats.kstest(unit, "uniform").pvalue > UNLIKELY
    counts = counters(5).integers(DRAWS, high=20)[0].bincount(minlength=20)
    assert len(counts) == 20
    assert stats.chisquare(counts).pvalue > UNLIKELY
    wide = counters(5).integers(DRAWS, high=1_000_000)[0].double().numpy()
    assert stats.kstest((wide + 0.5) / 1e6, "uniform").pvalue > UNLIKELY


def test_seeds_and_purposes_are_independent() -> None:
    """Also neighbors: of one seed, of one purpose, and of one stream's numbers in time."""
    rows = [
        *counters(*range(6)).normal(DRAWS // 10),
        *counters(0, 1, purpose="other").normal(DRAWS // 10),
    ]
    rows += [rows[0].roll(1), rows[0].roll(4)]
    for transformed in (torch.stack(rows), torch.stack(rows).square()):
        off = np.corrcoef(transformed.numpy()) - np.eye(len(rows))
        # 45 pairs: beyond 4.5 standard errors in less than one of 3,000 such tables.
        assert abs(off).max() < 4.5 / math.sqrt(DRAWS // 10)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_draws_among_others_what_it_draws_alone(kind: str) -> None:
    together, alone = counters(3, 8, 2**40), counters(8)
    for shape in ((5,), (3, 7), (1,), (2, 0, 4), (2, 2, 4)):
        mine = drawn(together, kind, *shape)[1]
        assert mine.shape == shape
        assert torch.equal(mine, drawn(alone, kind, *shape)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_draws_go_on_from_a_saved_state_and_never_repeat(kind: str) -> None:
    source, other = counters(3, 8), counters(1, 2)
    drawn(source, kind, 5)
    saved = {name: value.clone() for name, value in source.state_dict().items()}
    place = other.next_block.data_ptr()
    other.load_state_dict(saved)
    assert other.next_block.data_ptr() == place  # where a captured graph goes on writing
    ahead, again = (torch.cat([drawn(x, kind, n) for n in (1, 2, 3)], 1) for x in (source, other))
    assert torch.equal(ahead, again)
    if kind != "integers":  # of which a few agree by chance
        assert ahead.unique().numel() == ahead.numel()


@given(st.integers(1, 50))
def test_no_block_is_drawn_from_twice(count: int) -> None:
    source = counters(0)
    for kind, per_block in (("normal", 4), ("uniform", 4), ("integers", 2)):
        before = int(source.next_block)
        drawn(source, kind, count)
        assert int(source.next_block) - before == math.ceil(count / per_block)


def test_a_cpu_keeps_the_generators_it_had() -> None:
    streams = SeedStreams((3, 8), "test", CPU)
    generator = torch.Generator().manual_seed(derive_seed(8, "test"))
    assert torch.equal(streams.normal(4, 3)[1], torch.randn(4, 3, generator=generator))
    assert isinstance(streams.source, Generators)


def test_what_a_gpu_has_saved_goes_on_on_a_cpu() -> None:
    there, here = counters(3, 8), SeedStreams((3, 8), "test", CPU)
    there.normal(7)
    here.load_state_dict(there.state_dict())
    assert torch.equal(here.normal(2, 5), there.normal(2, 5))
    with pytest.raises(ValueError, match="2 streams, expected 1"):
        SeedStreams((3,), "test", CPU).load_state_dict(there.state_dict())


@pytest.mark.slow
@pytest.mark.skipif(why_not_compiled() is not None, reason="it compiles")
def test_fused_draws_are_those_of_the_operations_one_by_one() -> None:
    first = torch.tensor(2**33 + 5)
    keys = counters(1, 2, 3).keys
    for blocks, high in ((2, 5), (57, 1_000_003)):
        integers, normal = philox.draw_integers, philox.draw_normal
        expected = integers(keys, first, blocks, high)
        assert torch.equal(fused(integers)(keys, first, blocks, high), expected)
        torch.testing.assert_close(fused(normal)(keys, first, blocks), normal(keys, first, blocks))
