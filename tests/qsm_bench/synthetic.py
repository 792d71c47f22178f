"""Results of made-up experiments, for tests of statistics and reports."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from qsm_bench.protocol import Protocol
from qsm_bench.results import SLICE_COLUMNS, Results

Returns = Callable[[str, str, int, int], float]
"""Mean return of an agent on a task for a seed at a step."""


def made_up_returns(agent: str, task: str, seed: int, step: int) -> float:
    """Draw from noisy saturating curves; earlier letters of the alphabet learn faster."""
    noise = np.random.default_rng([seed, step, *f"{agent}/{task}".encode()]).normal()
    pace = 1 + sum(agent.encode()) % 7
    return float(900 * (1 - np.exp(-step * pace / 60_000)) + 25 * noise)


def make_results(
    agents: Sequence[str] = ("qsm", "sac", "td3"),
    tasks: Sequence[str] = ("cartpole-swingup", "walker-walk", "cheetah-run"),
    seeds: int = 3,
    evaluations: int = 4,
    episodes: int = 2,
    returns: Returns = made_up_returns,
    metrics: Sequence[str] = ("critic_loss", "q"),
    name: str = "made-up",
) -> Results:
    """Make a finished experiment with an evaluation every 5,000 steps."""
    steps = [5_000 * (i + 1) for i in range(evaluations)]
    cells = [make_cell(agent, task, seeds, steps, episodes) for task in tasks for agent in agents]
    evaluation_rows = [
        (c["agent"], c["task"], seed, step, k, returns(c["agent"], c["task"], seed, step), 1000)
        for c in cells
        for step in steps
        for seed in range(seeds)
        for k in range(episodes)
    ]
    training_rows = [
        (
            c["agent"],
            c["task"],
            seed,
            step,
            step / 40,
            100.0 + step / 100,
            *tuple(step / 1000 + seed + i for i, _ in enumerate(metrics)),
        )
        for c in cells
        for step in steps
        for seed in range(seeds)
    ]
    keys = ["agent", "task", "seed", "step"]
    return Results(
        name=name,
        experiment={
            "name": name,
            "agents": list(agents),
            "tasks": list(tasks),
            "seeds": list(range(seeds)),
            "steps": steps[-1],
            "command": "python -m qsm_bench run",
        },
        cells=cells,
        evaluations=pd.DataFrame(evaluation_rows, columns=[*keys, "episode", "return", "length"]),
        training=pd.DataFrame(
            training_rows, columns=[*keys, "wall_clock", "training_return", *metrics]
        ),
        diagnostics=pd.DataFrame(columns=keys),
        slices=pd.DataFrame(columns=["agent", "task", *SLICE_COLUMNS]),
    )


def make_cell(
    agent: str, task: str, seeds: int, steps: Sequence[int], episodes: int
) -> dict[str, Any]:
    """Make the manifest of a finished cell."""
    protocol = Protocol(
        steps=steps[-1], warmup_steps=2_500, eval_every=5_000, eval_episodes=episodes
    ).model_dump(mode="json")
    return {
        "protocol": protocol,
        **protocol,
        "agent": agent,
        "agent_name": agent.partition("[")[0],
        "settings": {"discount": 0.99, "hidden_sizes": [256, 256]}
        | ({"alpha": 50.0} if agent.startswith("qsm") else {"delay": 2}),
        "task": task,
        "gymnasium_id": f"dm_control/{task}-v0",
        "score_range": (0.0, 1000.0),
        "seeds": list(range(seeds)),
        "device": "cpu",
        "compiled": False,
        "status": "finished",
        "reason": None,
        "step": steps[-1],
        "stretches": [make_stretch(agent, task, steps[-1])],
        "train_seconds": steps[-1] / 50,
        "evaluation_seconds": steps[-1] / 200,
        "updates": steps[-1] - 2_500,
    }


def make_stretch(agent: str, task: str, last_step: int, **changes: Any) -> dict[str, Any]:
    """Make a stretch of a cell, from its first step on."""
    stretch: dict[str, Any] = {
        "started": "2026-01-02T03:04:05+00:00",
        "ended": "2026-01-02T04:04:05+00:00",
        "first_step": 0,
        "last_step": last_step,
        "versions": {"python": "3.12.1", "torch": "2.13.0"},
        "commit": "0123456789abcdef",
        "hardware": {"cpu": "a processor", "cores": 2, "memory_gib": 8, "gpu": None},
        "command": f"python -m qsm_bench run --agents {agent} --tasks {task}",
    }
    return stretch | changes


def with_diagnostics(results: Results) -> Results:
    """The same experiment with what each agent shows: TD3 has no entropy, SAC and TD3 no score."""
    rng = np.random.default_rng(0)
    keys = ["agent", "task", "seed", "step"]
    diagnostics = results.training[keys].copy()
    for measure in ("score_gradient_cosine", "clipped_share", "action_entropy", "critic_bias"):
        diagnostics[measure] = rng.random(len(diagnostics))
    of_td3 = diagnostics["agent"].str.startswith("td3")
    of_sac = diagnostics["agent"].str.startswith("sac")
    diagnostics.loc[of_td3, "action_entropy"] = np.nan
    diagnostics.loc[of_td3 | of_sac, "score_gradient_cosine"] = np.nan
    last = diagnostics["step"].max()
    slices = [
        (agent, task, seed, last, 0, action, np.sin(3 * action), np.exp(-(action**2)))
        for agent, task, seed in dict.fromkeys(
            diagnostics[["agent", "task", "seed"]].itertuples(index=False, name=None)
        )
        for action in np.linspace(-1, 1, 21)
    ]
    columns = ["agent", "task", *SLICE_COLUMNS]
    return replace(results, diagnostics=diagnostics, slices=pd.DataFrame(slices, columns=columns))
