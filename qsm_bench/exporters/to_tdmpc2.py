"""CSV as TD-MPC2's repository publishes results: <agent>/<task>.csv with step, reward and seed.

Its steps are environment steps: where an action is held for several, a step of ours counts as so
many. The reward is the mean return over an evaluation's episodes.
"""

from collections.abc import Iterator
from functools import partial

from qsm_bench.exporters.folder import Output, digest
from qsm_bench.exporters.runs import mean_returns
from qsm_bench.results import Results
from qsm_bench.store import as_folder
from qsm_bench.tables import as_csv

COLUMNS = ("step", "reward", "seed")


def outputs(results: Results) -> Iterator[Output]:
    """Yield the table of each cell that has been evaluated; nan where a run had diverged."""
    returns = mean_returns(results)
    repeats = {(c["agent"], c["task"]): c["action_repeat"] for c in results.cells}
    for (agent, task), repeat in repeats.items():
        part = returns[(returns["agent"] == agent) & (returns["task"] == task)]
        rows = [
            {"step": row["step"] * repeat, "reward": row["return"], "seed": row["seed"]}
            for row in part.sort_values(["seed", "step"]).to_dict("records")
        ]
        if not rows:
            continue
        text = as_csv(rows, COLUMNS).encode()
        path = f"{as_folder(agent)}/{as_folder(task)}.csv"
        yield Output(path, digest(text), partial(bytes, text))
