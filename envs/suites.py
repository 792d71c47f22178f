"""Named suites: tasks with a budget and an evaluation protocol, in one table."""

import difflib
from dataclasses import dataclass

from envs.tasks import TaskError


@dataclass(frozen=True)
class Suite:
    """A set of tasks and the protocol they are compared under. A step is one agent decision."""

    name: str
    description: str
    tasks: tuple[str, ...]
    steps: int = 1_000_000
    warmup_steps: int = 10_000
    """Uniformly random steps before the first update."""
    eval_every: int = 5_000
    eval_episodes: int = 10
    seeds: int = 5


DEFAULT_PROTOCOL = Suite("default", "The protocol of tasks named one by one.", ())

_SUITES = (
    Suite(
        "dmc_easy_medium",
        "Six DeepMind Control tasks from easy to medium difficulty. The paper's figure 3 names its "
        "six only in its pictures: cheetah-run, walker-run and hopper-hop are confirmed, the other "
        "three are this project's choice.",
        (
            "cartpole-swingup",
            "walker-walk",
            "cheetah-run",
            "walker-run",
            "hopper-hop",
            "quadruped-walk",
        ),
    ),
    Suite(
        "dmc_easy",
        "The easy tasks of DrQ-v2 (Yarats et al. 2021, arXiv 2107.09645), from states.",
        (
            "cartpole-balance",
            "cartpole-balance_sparse",
            "cartpole-swingup",
            "ball_in_cup-catch",
            "finger-spin",
            "hopper-stand",
            "pendulum-swingup",
            "walker-stand",
            "walker-walk",
        ),
    ),
    Suite(
        "dmc_medium",
        "The medium tasks of DrQ-v2, from states, without reach_duplo, which is no task of the "
        "control suite proper.",
        (
            "acrobot-swingup",
            "cartpole-swingup_sparse",
            "cheetah-run",
            "finger-turn_easy",
            "finger-turn_hard",
            "hopper-hop",
            "quadruped-run",
            "quadruped-walk",
            "reacher-easy",
            "reacher-hard",
            "walker-run",
        ),
        steps=3_000_000,
    ),
    Suite(
        "dmc_hard",
        "The hard tasks of DrQ-v2, from states.",
        ("humanoid-stand", "humanoid-walk", "humanoid-run"),
        steps=10_000_000,
        eval_every=20_000,
    ),
    Suite(
        "gym_mujoco",
        "Gymnasium's MuJoCo tasks, where episodes can terminate.",
        ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5"),
    ),
    Suite(
        "smoke",
        "Two DeepMind Control tasks with a budget of minutes: shows that everything works, and "
        "nothing about which agent is better.",
        ("cartpole-balance", "reacher-easy"),
        steps=5_000,
        warmup_steps=1_000,
        eval_every=1_000,
        eval_episodes=5,
        seeds=2,
    ),
)

SUITES = {suite.name: suite for suite in _SUITES}


def find_suite(name: str) -> Suite:
    """The suite of that name. Raises TaskError, with the nearest names, if there is none."""
    if name not in SUITES:
        close = difflib.get_close_matches(name, SUITES, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(SUITES)}"
        raise TaskError(f"unknown suite {name!r}: {hint}")
    return SUITES[name]
