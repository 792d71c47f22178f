"""QSM with critics chosen apart from its actor."""

import torch

from agents.protocol import Batch
from agents.qsm import QSM, QSMConfig
from agents.registry import find_agent
from qsm_bench.studies.objections import OTHER_CRITICS
from qsm_bench.studies.other_critics import OtherCriticsConfig, QSMWithOtherCritics
from tests.agents.fixed_critics import CPU, make_batch

SEEDS = (3, 4)


def build(**settings: object) -> QSMWithOtherCritics:
    config = OtherCriticsConfig(hidden_sizes=(8, 8), **settings)  # type: ignore[arg-type]
    return QSMWithOtherCritics(config, 3, 2, SEEDS, CPU)


def batch() -> Batch:
    return make_batch(len(SEEDS), 16, 3, 2, torch.float32)


def test_it_is_found_by_its_path() -> None:
    assert find_agent(OTHER_CRITICS).agent is QSMWithOtherCritics


def test_with_the_usual_critics_it_is_qsm_bit_for_bit() -> None:
    plain = QSM(QSMConfig(hidden_sizes=(8, 8)), 3, 2, SEEDS, CPU)
    other = build(critics=2, critic_hidden_sizes=(8, 8))
    for _ in range(3):
        torch.manual_seed(0)
        same = batch()
        first, second = plain.update(same), other.update(same)
        assert all(torch.equal(first[name], second[name]) for name in first)
    torch.testing.assert_close(plain.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_one_critic_has_its_own_width_and_learns() -> None:
    agent = build(critics=1, critic_hidden_sizes=(16, 12))
    sizes = [tuple(p.shape) for name, p in agent.critic.named_parameters() if "weight" in name]
    assert sizes == [(2, 5, 16), (2, 16, 12), (2, 12, 1)]
    assert agent.denoiser.first.weight.shape[-1] == 8
    same = batch()
    before = agent.critic(same.observation, same.action).detach()
    assert before.shape == (1, 2, 16)
    losses = torch.stack([agent.update(same)["critic_loss"] for _ in range(200)])
    assert (losses[-1] < losses[0]).all()
    # The only critic is the mean of all critics, and the smallest.
    torch.testing.assert_close(
        agent.action_value(same.observation, same.action),
        agent.critic(same.observation, same.action)[0],
    )


def test_what_is_saved_goes_on_bit_for_bit() -> None:
    first, second = build(), build()
    same = batch()
    first.update(same)
    second.load_state_dict(first.state_dict())
    now, later = first.update(same), second.update(same)
    assert all(torch.equal(now[name], later[name]) for name in now)
