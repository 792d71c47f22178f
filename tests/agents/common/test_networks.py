"""The batched networks against torch's own, member by member."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from agents.common.diffusion import Denoiser
from agents.common.networks import (
    MLP,
    WIDE,
    Linear,
    TwinCritic,
    _NarrowAffine,
    mish,
    product_of_few,
    rounded_product,
)
from agents.common.optimizer import Adam, polyak_update
from agents.common.streams import SeedStreams
from agents.protocol import Initialization, NetworkOptions
from agents.registry import BUILT_IN, find_agent
from tests.agents.fixed_critics import make_batch

CPU = torch.device("cpu")


def streams(*seeds: int) -> SeedStreams:
    return SeedStreams(seeds, "test", CPU)


@given(st.floats(-100, 100))
def test_mish_is_torchs(x: float) -> None:
    value = torch.tensor([x])
    torch.testing.assert_close(mish(value), nn.functional.mish(value), rtol=1e-5, atol=1e-6)


def test_mish_gradient_is_the_finite_difference() -> None:
    x = torch.linspace(-30, 30, 301, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mish, x, eps=1e-6, atol=1e-7)


def test_each_member_of_a_linear_layer_is_torchs_linear() -> None:
    layer = Linear(4, 3, streams(0, 1))
    x = torch.randn(2, 5, 4)
    for member in range(2):
        own = nn.functional.linear(x[member], layer.weight[member].T, layer.bias[member, 0])
        torch.testing.assert_close(layer(x)[member], own)


@pytest.mark.parametrize("outputs", [1, 6])
def test_the_gradient_of_a_narrow_layer_is_the_finite_difference(outputs: int) -> None:
    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(3, *shape, dtype=torch.float64, requires_grad=True)

    arguments = normal(1, outputs), normal(5, 4), normal(4, outputs)
    assert torch.autograd.gradcheck(_NarrowAffine.apply, arguments)


@pytest.mark.parametrize("held", [(), (0,), (1,)])
def test_the_gradient_of_a_product_of_few_columns_is_the_finite_difference(
    held: tuple[int, ...],
) -> None:
    """Of both factors, or of one."""
    factors = [torch.randn(3, *shape, dtype=torch.float64) for shape in ((5, 2), (2, WIDE))]
    for number, factor in enumerate(factors):
        factor.requires_grad_(number not in held)
    assert torch.autograd.gradcheck(product_of_few, factors)
    assert torch.equal(product_of_few(*factors), torch.bmm(*factors))


@pytest.mark.parametrize("twins", [1, 2])
def test_at_fixed_observations_the_critics_have_the_same_values_and_gradients(twins: int) -> None:
    critic = TwinCritic(3, 2, (8, 8), streams(0, 1)).double()
    observation, action = torch.randn(2, 5, 3).double(), torch.rand(2, 5, 2).double()
    action.requires_grad_()
    value = critic(observation, action)[:twins]
    found = critic.at_observation(observation, twins)(action)
    torch.testing.assert_close(found, value)
    gradient, found_gradient = (torch.autograd.grad(q.sum(), action) for q in (value, found))
    torch.testing.assert_close(found_gradient, gradient)


def test_a_network_refuses_input_for_another_number_of_seeds() -> None:
    network = MLP((4, 8, 2), streams(0, 1, 2))
    for seeds in (1, 2, 4):
        with pytest.raises(RuntimeError):
            network(torch.randn(seeds, 5, 4))


def test_initial_weights_fill_their_range_and_differ_between_seeds_and_twins() -> None:
    layer = Linear(64, 64, streams(0, 1), twins=2)
    assert layer.weight.shape == (4, 64, 64)
    assert layer.weight.abs().max() <= 1 / math.sqrt(64)
    assert layer.weight.abs().max() > 0.99 / math.sqrt(64)
    for i in range(4):
        for j in range(i):
            assert not torch.equal(layer.weight[i], layer.weight[j])


def test_xavier_weights_fill_their_range_and_biases_are_zero() -> None:
    layer = Linear(64, 32, streams(0, 1), NetworkOptions("xavier"), twins=2)
    bound = math.sqrt(6 / 96)
    for member in layer.weight:
        assert 0.98 * bound < member.max() <= bound
        assert -bound <= member.min() < -0.98 * bound
    assert (layer.bias == 0).all()


@pytest.mark.parametrize("initialization", ["uniform", "xavier"])
def test_a_seeds_initial_weights_do_not_depend_on_the_other_seeds(
    initialization: Initialization,
) -> None:
    alone = MLP((3, 8, 1), streams(7), NetworkOptions(initialization))
    beside = MLP((3, 8, 1), streams(1, 7, 2), NetworkOptions(initialization))
    for one, many in zip(alone.parameters(), beside.parameters(), strict=True):
        assert torch.equal(one[0], many[1])


def spread(layer: Linear) -> float:
    """Return the standard deviation of all weights of all members."""
    return layer.weight.std().item()


OBSERVATION, ACTION, WIDTH, MEMBERS = 24, 6, 256, tuple(range(8))


@pytest.mark.parametrize("path", BUILT_IN)
def test_initial_weights_of_every_network_have_the_spread_of_the_closed_form(path: str) -> None:
    """Uniform: 1 / sqrt(3 i). Xavier: sqrt(2 / (i + o)). The ratio: sqrt(6 i / (i + o))."""
    agent = find_agent(path).agent

    def layers(initialization: Initialization) -> dict[str, Linear]:
        config = agent.config_class(initialization=initialization)
        built: Any = agent(config, OBSERVATION, ACTION, MEMBERS, CPU)
        return {
            f"{part}.{name}": module
            for part in built.parts
            if isinstance(getattr(built, part), nn.Module)
            for name, module in getattr(built, part).named_modules()
            if isinstance(module, Linear)
        }

    uniform, xavier = layers("uniform"), layers("xavier")
    expected = {
        "critic.mlp.layers.0": (OBSERVATION + ACTION, WIDTH),
        "critic.mlp.layers.1": (WIDTH, WIDTH),
        "critic.mlp.layers.2": (WIDTH, 1),
    }
    if "denoiser.first" in uniform:
        expected |= {
            "denoiser.time_mlp.layers.0": (64, 128),
            "denoiser.time_mlp.layers.1": (128, 128),
            # Of the three inputs together, though they are multiplied apart.
            "denoiser.first": (ACTION + OBSERVATION + 128, WIDTH),
            "denoiser.rest.layers.0": (WIDTH, WIDTH),
            "denoiser.rest.layers.1": (WIDTH, ACTION),
        }
    if "actor.layers.0" in uniform:
        expected |= {
            "actor.layers.0": (OBSERVATION, WIDTH),
            "actor.layers.1": (WIDTH, WIDTH),
            # SAC's mean and log standard deviation are two layers of that size, side by side.
            "actor.layers.2": (WIDTH, ACTION),
        }
    for name in set(uniform) - set(expected):
        kind, _, of_what = name.partition("_")
        assert kind in ("target", "copied")
        # It begins as its network.
        online = xavier[of_what]
        assert torch.equal(xavier[name].weight, online.weight)
    for name, (inputs, outputs) in expected.items():
        # Four standard errors of the spread of n uniform numbers, s sqrt(0.2 / n).
        error = 4 * math.sqrt(0.2 / uniform[name].weight.numel())
        assert spread(uniform[name]) == pytest.approx(1 / math.sqrt(3 * inputs), rel=error), name
        assert uniform[name].bias.abs().max() > 0
        closed = math.sqrt(2 / (inputs + outputs))
        assert spread(xavier[name]) == pytest.approx(closed, rel=error), name
        assert (xavier[name].bias == 0).all(), name


def test_twin_critics_are_two_networks_of_each_seed() -> None:
    critic = TwinCritic(3, 2, (8,), streams(0, 1, 2))
    observation, action = torch.randn(3, 5, 3), torch.randn(3, 5, 2)
    q = critic(observation, action)
    assert q.shape == (2, 3, 5)
    x = torch.cat([observation, action], dim=-1)
    layers: Any = critic.mlp.layers
    first, last = layers
    for twin in range(2):
        for seed in range(3):
            member = 3 * twin + seed
            hidden = (x[seed] @ first.weight[member] + first.bias[member]).relu()
            own = (hidden @ last.weight[member] + last.bias[member]).squeeze(-1)
            torch.testing.assert_close(q[twin, seed], own)


def test_polyak_update_is_the_weighted_mean() -> None:
    target, online = MLP((2, 2), streams(0)), MLP((2, 2), streams(1))
    before = [p.clone() for p in target.parameters()]
    polyak_update(target, online, 0.25)
    for new, old, other in zip(target.parameters(), before, online.parameters(), strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * other)


def test_adam_of_many_seeds_is_torchs_adam_of_each() -> None:
    start = torch.randn(3, 4)
    together = nn.Parameter(start.clone())
    adam = Adam([together], 1e-2)
    apart = [nn.Parameter(row.clone()) for row in start]
    references = [torch.optim.Adam([p], lr=1e-2) for p in apart]
    scale = torch.tensor([1.0, 10.0, 100.0])
    for _ in range(20):
        norm = adam.minimize(scale * (together.square() * torch.arange(4)).sum(dim=1))
        for s, (parameter, reference) in enumerate(zip(apart, references, strict=True)):
            reference.zero_grad()
            (scale[s] * (parameter.square() * torch.arange(4)).sum()).backward()
            assert parameter.grad is not None
            torch.testing.assert_close(norm[s], parameter.grad.norm(), rtol=1e-5, atol=1e-6)
            reference.step()
    for s, parameter in enumerate(apart):
        torch.testing.assert_close(together[s], parameter, rtol=1e-5, atol=1e-6)


def test_cosine_decay_ends_at_zero() -> None:
    parameter = nn.Parameter(torch.zeros(1, 1))
    adam = Adam([parameter], 1.0, decay_updates=4)
    positions = []
    for _ in range(6):
        adam.minimize(parameter[:, 0])
        positions.append(parameter.item())
    # A constant gradient moves Adam by its step size exactly.
    steps = -torch.tensor([0.0, *positions]).diff()
    expected = torch.tensor([0.5 * (1 + math.cos(math.pi * min(k / 4, 1))) for k in range(6)])
    torch.testing.assert_close(steps, expected, rtol=1e-4, atol=1e-5)


ROUNDED = NetworkOptions(matmul_precision="bfloat16")


@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 40))
def test_a_rounded_product_is_the_product_of_rounded_factors(
    members: int, rows: int, inputs: int, outputs: int
) -> None:
    """Forwards and backwards; the result is rounded once more, to 8 bits: half of 2^-8 at most."""
    x, w = torch.randn(members, rows, inputs), torch.randn(members, inputs, outputs)
    g = torch.randn(members, rows, outputs)
    x.requires_grad_(), w.requires_grad_()

    def rounded(factor: Tensor) -> Tensor:
        return factor.detach().bfloat16().double()

    product = rounded_product(x, w)
    assert product.dtype == torch.float32
    got = (product, *torch.autograd.grad(product, (x, w), g))
    expected = (
        rounded(x) @ rounded(w),
        rounded(g) @ rounded(w).mT,
        rounded(x).mT @ rounded(g),
    )
    for value, exact in zip(got, expected, strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), exact, rtol=2**-8, atol=1e-5)


def test_only_products_from_one_hidden_layer_to_the_next_are_rounded() -> None:
    def layers(network: nn.Module) -> list[bool]:
        return [layer.rounded for layer in network.modules() if isinstance(layer, Linear)]

    critic = TwinCritic(3, 2, (8, 8, 8), streams(0), ROUNDED)
    assert layers(critic) == [False, True, True, False]
    denoiser = Denoiser(3, 2, (8, 8), 5, streams(0), ROUNDED)
    assert layers(denoiser.time_mlp) == [False, False]
    assert not denoiser.first.rounded
    assert layers(denoiser.rest) == [True, False]
    assert not any(layers(TwinCritic(3, 2, (8, 8, 8), streams(0))))


@pytest.mark.parametrize("path", BUILT_IN)
def test_rounding_keeps_weights_moments_targets_and_metrics_in_float32(path: str) -> None:
    agent = find_agent(path).agent
    config = agent.config_class(hidden_sizes=(16, 16), matmul_precision="bfloat16")
    built: Any = agent(config, 3, 2, (0, 1), CPU)
    plain: Any = agent(agent.config_class(hidden_sizes=(16, 16)), 3, 2, (0, 1), CPU)
    batch = make_batch(2, 8, 3, 2, torch.float32)
    metrics = [trainer.update(batch) for trainer in (built, plain)]
    assert {value.dtype for value in metrics[0].values()} == {torch.float32}
    optimizers = [part for name in built.parts if isinstance(part := getattr(built, name), Adam)]
    for optimizer in optimizers:
        kept = [*optimizer.parameters, *optimizer.first_moments, *optimizer.second_moments]
        assert {tensor.dtype for tensor in kept} == {torch.float32}
    assert built.act(batch.observation, explore=True).dtype == torch.float32
    # It is another number than in float32, and not far from it.
    losses = [found["critic_loss"] for found in metrics]
    assert not torch.equal(*losses)
    torch.testing.assert_close(*losses, rtol=0.05, atol=0.01)
