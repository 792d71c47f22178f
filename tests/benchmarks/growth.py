"""Does an experiment that grew hold the bytes of one that was as large from the start?

    python tests/benchmarks/growth.py

Trains 2 seeds for 20,000 steps, then 4 seeds, then 40,000 steps, and beside it 4 seeds for 40,000
steps at once. Compares every table of every job, but for times.
"""

import tempfile
from pathlib import Path

import pandas as pd

from qsm_bench import Protocol, Results, run_experiment

PROTOCOL = Protocol(
    steps=20_000,
    warmup_steps=1_000,
    batch_size=64,
    eval_every=5_000,
    eval_episodes=2,
    settings={"hidden_sizes": [64, 64]},
)
AGENT, TASK = "td3", "Pendulum-v1"
TIMES = ["wall_clock"]


def run(folder: Path, seeds: int, steps: int) -> Results:
    """Train what is missing."""
    return run_experiment(
        AGENT,
        tasks=TASK,
        protocol=PROTOCOL.but(steps=steps),
        name="growth",
        seeds=range(seeds),
        seeds_per_job=1,
        device="cpu",
        compiled="off",
        results=folder,
    )


def tables(results: Results) -> dict[str, pd.DataFrame]:
    """What was measured, but for times."""
    return {
        name: getattr(results, name).drop(columns=TIMES, errors="ignore")
        for name in ("evaluations", "training", "diagnostics")
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as grown, tempfile.TemporaryDirectory() as whole:
        for seeds, steps in ((2, 20_000), (4, 20_000), (4, 40_000)):
            mine = run(Path(grown), seeds, steps)
            print(f"{seeds} seeds, {steps:,} steps: {[c['status'] for c in mine.cells]}")
        theirs = run(Path(whole), 4, 40_000)
        for name, table in tables(mine).items():
            same = table.equals(tables(theirs)[name])
            print(f"{name}: {len(table)} rows, {'equal' if same else 'DIFFERENT'}")
        files = sorted(Path(grown).rglob("evaluations.csv"))
        equal = [
            file.read_bytes() == (Path(whole) / file.relative_to(grown)).read_bytes()
            for file in files
        ]
        print(f"evaluations.csv: {sum(equal)} of {len(equal)} byte for byte equal")
