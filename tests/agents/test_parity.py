"""Every way to run a step against whole updates written plainly, in float64, seed by seed.

The plain update knows one seed and no tricks: see ``plain_updates``. After several updates every
parameter of every network agrees to 1e-9 of its size; in the first updates Adam divides by square
roots of tiny second moments, so a difference anywhere shows.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agents.common.diffusion import Denoiser
from agents.common.diffusion_agent import DiffusionAgent
from agents.dipo import DIPO
from agents.protocol import Batch
from agents.registry import built_in_agents, built_in_trainers, find_agent
from agents.sac import Noise as SACNoise
from agents.speed import seed_by_seed
from agents.speed.acceleration import accelerate
from agents.speed.captured_update import CapturedUpdate
from agents.speed.compiled_function import CompiledFunction
from agents.speed.seed_by_seed import SeedBySeed
from agents.speed.toolchain import why_not_compiled
from tests.agents.fixed_critics import CPU, doubled, in_float64, make_batch, perturb
from tests.agents.plain_updates import PLAIN, flat

SEEDS, OBSERVATION, ACTION, BATCH, UPDATES = (3, 4), 3, 2, 16, 6
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in built_in_agents()),
    ("qsm", {"gradient_of": "min", "diffusion_steps": 1}),
    ("qsm", {"target_scale": "noised"}),
    ("diffusion_ql", {"climbed": "random", "cloning_weight": 0.5, "ema_target": True}),
    ("diffusion_pg", {"chains": 3, "scale_advantage": False, "exploration_noise": 0.4}),
    ("qsm", {"schedule": "cosine", "sampler": "x0_clip", "variance": "posterior"}),
    ("diffusion_ql", {"candidates_target": 3, "ema_acts": True, "schedule": "linear"}),
    ("dipo", {"action_norm": 0.0, "action_steps": 3, "action_step_size": 0.3, "write_back": False}),
    ("dpmd", {"copy_updates": 2, "samples": 5, "target_kl": 1.0, "error_limit": None}),
    ("langevin", {"gradient_of": "min", "noise_levels": 3, "langevin_steps": 2, "step_size": 1e-4}),
    (
        "dacer",
        {"policy_delay": 3, "initial_alpha": 1.0, "candidates_target": 3, "ema_target": True},
    ),
    ("sdac", {"estimator": "mixture", "proposal": "clipped", "samples": 5}),
    ("sdac", {"noised_actions": "policy", "candidates_target": 3, "ema_target": True}),
    ("qvpo", {"uniform_decay_updates": 8, "uniform_weight_end": 0.01, "uniform_weight": 0.5}),
    ("sac", {"temperature_loss": "tau", "initial_temperature": 0.3, "log_std_max": -0.5}),
    ("td3", {"policy_delay": 3, "actor_learning_rate": 1e-2}),
]
NAMES = [f"{find_agent(name).name}[{','.join(settings)}]" for name, settings in CASES]
each_case = pytest.mark.parametrize(("name", "settings"), CASES, ids=NAMES)
each_trainer = pytest.mark.parametrize("name", built_in_trainers())
needs_compiler = pytest.mark.skipif(
    why_not_compiled() is not None, reason=why_not_compiled() or "it compiles"
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="it takes a GPU")


def build(name: str, device: torch.device = CPU, **settings: Any) -> Any:
    registered = find_agent(name)
    asked = {**registered.preset, "learning_rate": 3e-3, **settings, "hidden_sizes": (12, 10)}
    if issubclass(registered.agent, DiffusionAgent):
        # The learning rate falls to 0 within the updates that are made.
        asked = {"diffusion_steps": 3, **asked, "actor_decay_updates": UPDATES - 1}
        # Presets have up to 500 draws and 20 steps: of so many there is nothing else to see.
        most = {"samples": 20, "diffusion_steps": 5}
        asked |= {name: min(asked[name], most[name]) for name in most if name in asked}
    if registered.agent is DIPO:
        asked = {"action_steps": 5, **asked}
    agent: Any = registered.agent(
        registered.agent.config_class(**asked), OBSERVATION, ACTION, SEEDS, device
    )
    in_float64(agent)
    # Biases that are not zero, targets that are not their networks, means outside the box.
    for part in agent.parts:
        if isinstance(getattr(agent, part), nn.Module):
            perturb(getattr(agent, part))
    if agent.name == "qvpo":
        # Samples that lie in one corner of the box have no best, but for rounding.
        shrink(agent.denoiser)
    return agent


@torch.no_grad()
def shrink(denoiser: Denoiser) -> None:
    """Let the denoiser predict little noise, so that what is sampled stays apart."""
    for parameter in denoiser.rest.layers[-1].parameters():
        parameter.mul_(0.05)


def draw(agent: Any, update: int) -> tuple[Any, ...]:
    """Draw what ``step`` takes beside the batch: noise in float64, and if the actor waits, when."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(len(SEEDS), *shape, dtype=torch.float64)

    entries = BATCH, ACTION
    if agent.name == "td3":
        return normal(*entries), update % agent.config.policy_delay == 0
    if agent.name == "sac":
        return (SACNoise(normal(*entries), normal(*entries)),)
    if agent.name == "dacer":
        noise, _ = agent.draw_inputs(BATCH)
        return doubled(noise), update % agent.config.policy_delay == 0
    (noise,) = agent.draw_inputs(BATCH)
    if agent.name == "dipo" and agent.config.write_back:
        noise = noise._replace(actor=noise.actor._replace(start=normal(*entries).tanh()))
    return (doubled(noise),)


def placed(value: Any, device: torch.device) -> Any:
    return torch.utils._pytree.tree_map_only(Tensor, lambda x: x.to(device), value)


def of_seed(value: Any, row: int) -> Any:
    return torch.utils._pytree.tree_map_only(Tensor, lambda x: x[row].cpu(), value)


def assert_parity(agent: Any, device: torch.device = CPU, tolerance: float = 1e-9) -> None:
    """Compare the agent's step, however it is run, with the plain update of each seed alone."""
    count = len(SEEDS)
    plain = [PLAIN[agent.name](agent, row, count) for row in range(count)]
    before = [p.clone() for p in agent.critic.parameters()]
    for update in range(1, UPDATES + 1):
        batch = make_batch(count, BATCH, OBSERVATION, ACTION, torch.float64)
        inputs = draw(agent, update)
        agent.pure_update(*placed((batch, *inputs), device))
        for row, learner in enumerate(plain):
            learner.update(Batch(*of_seed(tuple(batch), row)), *of_seed(inputs, row))
    assert not any(map(torch.equal, before, agent.critic.parameters()))
    for row, learner in enumerate(plain):
        for part, network in learner.networks().items():
            mine = list(getattr(agent, part).parameters())
            if "critic" in part:
                half = len(flat(network)) // 2
                theirs = [
                    torch.stack(pair)
                    for pair in zip(flat(network)[:half], flat(network)[half:], strict=True)
                ]
            else:
                theirs = [p.unsqueeze(0) for p in flat(network)]
            for ours, wanted in zip(mine, theirs, strict=True):
                torch.testing.assert_close(
                    ours[row::count].cpu(), wanted, rtol=tolerance, atol=tolerance, msg=part
                )


@each_case
def test_a_plain_step_is_the_update_as_written(name: str, settings: dict[str, Any]) -> None:
    assert_parity(build(name, **settings))


@each_case
def test_a_step_seed_by_seed_is_the_update_as_written(name: str, settings: dict[str, Any]) -> None:
    agent = build(name, **settings)
    agent.pure_update = SeedBySeed(agent, len(SEEDS), lambda one: one.pure_update)
    assert_parity(agent)


@pytest.mark.slow
@needs_compiler
@each_trainer
def test_a_compiled_step_is_the_update_as_written(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seed by seed; ``test_acceleration`` has compiled updates of several seeds together."""
    monkeypatch.setattr(seed_by_seed, "LARGE", 0)
    agent = build(name)
    accelerate(agent, CPU, seeds=len(SEEDS), compiled=True)
    assert_parity(agent)
    for update in agent.pure_update.updates:
        assert isinstance(update, CompiledFunction)
        assert update.direct
        assert all(update.direct.values())  # the third update of a kind, and every later one


@needs_gpu
@each_trainer
@pytest.mark.parametrize("compiled", [False, True])
def test_a_captured_step_is_the_update_as_written(name: str, compiled: bool) -> None:
    device = torch.device("cuda")
    agent = build(name, device)
    accelerate(agent, device, seeds=len(SEEDS), compiled=compiled)
    assert isinstance(agent.pure_update, CapturedUpdate)
    assert_parity(agent, device)
