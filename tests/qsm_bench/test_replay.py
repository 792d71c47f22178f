"""The replay buffer's n-step returns against a plain loop, and its sampling."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qsm_bench.replay import ReplayBuffer

CPU = torch.device("cpu")
NOTHING, TERMINATED, TRUNCATED, BOTH = range(4)


def filled(ends: list[int], capacity: int, n_step: int, discount: float) -> ReplayBuffer:
    """Fill a buffer: transition i has observation i, reward i + 1 (negated for seed 1)."""
    buffer = ReplayBuffer(capacity, 1, 1, (0, 1), CPU, n_step=n_step, discount=discount)
    for i, end in enumerate(ends):
        sign = torch.tensor([1.0, -1.0])
        buffer.add(
            observation=torch.full((2, 1), float(i)),
            action=torch.full((2, 1), float(i) / 100),
            reward=sign * (i + 1),
            next_observation=torch.full((2, 1), i + 0.5),
            terminated=torch.tensor([end in (TERMINATED, BOTH)] * 2),
            truncated=torch.tensor([end in (TRUNCATED, BOTH)] * 2),
        )
    return buffer


@settings(max_examples=200)
@given(
    ends=st.lists(st.sampled_from([NOTHING, NOTHING, TERMINATED, TRUNCATED, BOTH]), min_size=1),
    capacity=st.integers(1, 40),
    n_step=st.integers(1, 7),
    discount=st.floats(0, 1),
)
def test_n_step_returns_are_those_of_a_plain_loop(
    ends: list[int], capacity: int, n_step: int, discount: float
) -> None:
    buffer = filled(ends, capacity, n_step, discount)
    kept = range(max(0, len(ends) - capacity), len(ends))
    assert buffer.size == len(kept)
    index = torch.arange(buffer.size).expand(2, -1)
    batch = buffer.returns_from(index)
    for row, start in enumerate(kept):
        total, weight, i = 0.0, 1.0, start
        while True:
            total += weight * (i + 1)
            weight *= discount
            if ends[i] != NOTHING or i - start + 1 == n_step or i + 1 == len(ends):
                break
            i += 1
        bootstrap = 0.0 if ends[i] in (TERMINATED, BOTH) else weight
        assert batch.observation[0, row, 0] == start
        assert batch.number is not None
        assert (batch.number[:, row] == start).all()
        assert batch.reward[0, row].item() == pytest.approx(total, rel=1e-4, abs=1e-4)
        assert batch.reward[1, row].item() == pytest.approx(-total, rel=1e-4, abs=1e-4)
        assert batch.discount[0, row].item() == pytest.approx(bootstrap, rel=1e-4, abs=1e-6)
        assert batch.next_observation[0, row, 0] == i + 0.5


def test_sampling_is_uniform_over_what_is_kept() -> None:
    buffer = filled([NOTHING] * 25, capacity=10, n_step=1, discount=0.99)
    observed = buffer.sample(100_000).observation[0, :, 0].long()
    counts = torch.bincount(observed, minlength=25)
    assert counts[:15].sum() == 0
    # Each count is binomial(100000, 0.1): standard deviation 95.
    assert (counts[15:] - 10_000).abs().max() < 5 * 95


def test_seeds_sample_differently_and_each_its_own_records() -> None:
    buffer = filled([NOTHING] * 30, capacity=30, n_step=1, discount=0.99)
    batch = buffer.sample(64)
    assert not torch.equal(batch.observation[0], batch.observation[1])
    assert (batch.reward[0] > 0).all()
    assert (batch.reward[1] < 0).all()


def test_record_returns_what_was_added_and_refuses_what_is_gone() -> None:
    buffer = filled([NOTHING, TRUNCATED, NOTHING], capacity=2, n_step=1, discount=0.9)
    observation, action, reward, terminated, ended, _ = buffer.record(1)
    assert observation[0] == 1.0
    assert action[0].item() == pytest.approx(0.01)
    assert reward[1] == -2.0
    assert not terminated[0]
    assert ended[0]
    for gone in (0, 3):
        with pytest.raises(IndexError):
            buffer.record(gone)
