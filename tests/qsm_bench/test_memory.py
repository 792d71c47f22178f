"""What does not fit into memory is refused in one line before anything starts."""

import subprocess
import sys
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.registry import AgentError, built_in_agents
from agents.speed.toolchain import why_not_compiled
from qsm_bench import memory, plan
from qsm_bench.errors import UserError
from qsm_bench.timing import ready_to_learn, state_bytes
from qsm_bench.training import AT_ONCE
from tests.qsm_bench.jobs import make_job
from tests.qsm_bench.plain_agents import Plain
from tests.qsm_bench.update_memory import BATCH, SEEDS, SIZES, large_job

KIB = 1024
GIB = 2**30


def test_the_peak_of_a_chain_of_products_is_known_without_running_it() -> None:
    """At its most: the weights, the input, and two of the products, [size, 64] each."""

    def work(size: int) -> None:
        weights = torch.zeros(64, 64)
        x = torch.zeros(size, 64)
        y = x @ weights
        del x
        z = y @ weights
        del y
        _ = z @ weights

    assert memory.estimate_peak(work, 10_000_000) == 4 * 64 * (64 + 2 * 10_000_000)


def test_the_peak_of_what_is_run_is_counted() -> None:
    given = torch.zeros(64, 64)

    def work() -> None:
        x = given + 1
        x = x + 1  # two at once
        del x
        _ = torch.zeros(8)

    assert memory.measure_peak(work) == 2 * 4 * 64 * 64


def test_saved_bytes_are_those_that_the_graph_still_keeps() -> None:
    weight, x = torch.ones(64, 8, requires_grad=True), torch.ones(32, 64)

    def loss() -> torch.Tensor:
        (x @ weight).exp().sum()  # of a graph that is gone
        product = x @ weight  # saves x and the weight
        return (product.exp() * product).sum()  # saves the result of exp, twice, and the product

    assert memory.saved_bytes(loss, [weight, x]) == 2 * 4 * 32 * 8
    assert memory.saved_bytes(loss, [weight]) == 2 * 4 * 32 * 8 + 4 * 32 * 64
    assert memory.saved_bytes(lambda: x.exp().sum(), []) == 0


def test_more_chains_or_a_larger_batch_take_more_memory_in_proportion() -> None:
    def needed(chains: int, batch_size: int) -> int:
        job = make_job(f"diffusion_pg[hidden_sizes=[64],chains={chains}]", batch_size=batch_size)
        return plan.estimate_memory([job])[0].rest

    base, wide, large = needed(2, 64), needed(2002, 64), needed(2, 64_064)
    assert wide - base == pytest.approx(large - base, rel=0.1)
    assert wide - base > 2_000 * 64 * 64 * 4


def test_only_updates_that_are_made_at_once_are_in_memory_together() -> None:
    def needed(updates: int) -> int:
        job = make_job("td3[hidden_sizes=[8]]", batch_size=100_000, updates_per_step=updates)
        return plan._learning_bytes(job, 2, 2)

    one, half, whole, twice = map(needed, (1, AT_ONCE // 2, AT_ONCE, 2 * AT_ONCE))
    assert one < half < whole == twice
    batch = 100_000 * (2 * 2 + 2 + 2) * 4  # observations, action, reward, discount
    assert whole - half >= plan.HEAP * AT_ONCE // 2 * batch


class Grouped(Plain):
    """An agent whose update takes its batch in groups of eight."""

    def metrics(self, batch: Any) -> Any:
        return {"loss": batch.reward.unflatten(1, (-1, 8)).mean(dim=(1, 2))}


def test_an_agent_that_cannot_take_a_small_batch_is_measured_at_its_own() -> None:
    job = make_job(f"{__name__}:Grouped", batch_size=16_000)
    batch = 16_000 * (2 * 2 + 2 + 2) * 4
    assert plan._learning_bytes(job, 2, 2) >= plan.HEAP * batch
    with pytest.raises(AgentError, match=r"update\(batch\) raised RuntimeError"):
        plan._learning_bytes(make_job(f"{__name__}:Grouped", batch_size=12), 2, 2)


LARGE = ("maxentdp_reference", "qvpo_reference")
"""Presets with 500 draws of an action, and with 64 candidates and a chain of 20 steps."""
each_agent = pytest.mark.parametrize(
    "agent",
    ["qsm", "sdac", *(pytest.param(agent, marks=pytest.mark.slow) for agent in ("qvpo", *LARGE))],
)


@each_agent
def test_the_tensors_of_an_update_are_known_without_running_it(agent: str) -> None:
    """Candidates of an update are counted: they are most of it."""
    job = large_job(agent, seeds=1)
    learner, replay = ready_to_learn(job, SIZES)
    held = state_bytes(learner)
    estimated = plan._learning_bytes(job, *SIZES) - 3 * held
    measured = memory.measure_peak(lambda: learner.update(replay.sample(BATCH)))
    # Those of the agent that an update returns count as made in it, at most.
    assert measured - held <= estimated / plan.HEAP <= 1.1 * measured


def most_in_updates(agent: str, *how: str) -> tuple[int, int]:
    """Return the bytes that a process of its own has before, and at most as the agent learns."""
    command = [sys.executable, "-m", "tests.qsm_bench.update_memory", agent, *how]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    before, most = map(int, said.split())
    return before, most


on_linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc")


@on_linux
@each_agent
def test_the_memory_of_a_process_that_learns_is_known_and_below_4_gib(agent: str) -> None:
    # The C library's heap is not the same in each process: of one update 1.4 to 2.8 GB were seen.
    runs = [most_in_updates(agent) for _ in range(1 if agent in LARGE else 4)]
    before, most = max(runs, key=itemgetter(1))
    known = before + SEEDS * plan._learning_bytes(large_job(agent), *SIZES)
    assert most <= 1.25 * known
    middle = before + (known - before) * 2 / plan.HEAP
    if agent in LARGE:
        assert most >= 0.6 * middle
    else:
        assert most == pytest.approx(middle, rel=0.25)
    assert known < 4 * GIB


@pytest.mark.slow
@pytest.mark.parametrize("agent", built_in_agents())
def test_no_agent_or_preset_is_said_to_need_4_gib_to_learn(agent: str) -> None:
    assert SEEDS * plan._learning_bytes(large_job(agent), *SIZES) < 4 * GIB


@on_linux
@pytest.mark.slow
@pytest.mark.skipif(why_not_compiled() is not None, reason="there is no compiler")
@pytest.mark.parametrize("agent", ["qsm", "sdac", "qvpo"])
def test_a_compiled_update_takes_no_more_and_the_compiler_what_is_said(agent: str) -> None:
    before, most = most_in_updates(agent, "compiled")
    plain = before + SEEDS * plan._learning_bytes(large_job(agent), *SIZES)
    assert most <= 1.25 * (plain + plan.COMPILER_BYTES)
    assert most > before + plan.COMPILER_BYTES / 2


def test_what_an_agent_remembers_of_each_transition_counts_for_the_whole_run() -> None:
    """Improved actions: 4 bytes for each of two entries, and 1, in a fourth more than the steps.

    With a checkpoint they are there three times.
    """

    def needed(steps: int, **settings: Any) -> int:
        asked = ",".join(f"{name}={value}" for name, value in settings.items())
        job = make_job(f"dipo[hidden_sizes=[8],action_steps=2,{asked}]", steps=steps)
        return plan._learning_bytes(job, 2, 2)

    more = needed(2_000_000, write_back="true") - needed(1_000_000, write_back="true")
    assert more == pytest.approx(3 * 9 * 1_250_000, rel=1e-3)
    assert needed(2_000_000, write_back="false") == needed(1_000_000, write_back="false")


def test_a_replay_buffer_counts_in_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobs = [make_job(steps=1_000_000), make_job(steps=10_000)]
    needs = plan.estimate_memory(jobs)
    assert needs[0].replay == 1_000_000 * 2 * (2 * 2 + 2 + 3) * 4
    monkeypatch.setattr(plan, "available_bytes", lambda device: needs[0].total)
    plan.refuse_what_does_not_fit(jobs, needs, workers=1)
    with pytest.raises(UserError, match="2 jobs at a time need") as refused:
        plan.refuse_what_does_not_fit(jobs, needs, workers=2)
    assert "\n" not in str(refused.value)


def test_a_refusal_says_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [make_job(steps=1_000_000), make_job(steps=10_000), make_job(seeds=1)]
    needs = plan.estimate_memory(jobs)

    def advice(free: int, *numbers: int) -> str:
        monkeypatch.setattr(plan, "available_bytes", lambda device: free)
        given = [jobs[k] for k in numbers], [needs[k] for k in numbers]
        with pytest.raises(UserError) as refused:
            plan.refuse_what_does_not_fit(*given, workers=len(numbers))
        return str(refused.value).partition(": give ")[2]

    half = needs[0].rest + 500_000 * 2 * 9 * 4
    seeds = "fewer --seeds-per-job"
    assert advice(half, 0) == f"{seeds}, or --replay-capacity 500000 or less"
    assert advice(2 * half, 0, 0) == f"--workers 1, or {seeds}, or --replay-capacity 500000 or less"
    assert advice(2 * needs[0].total, 0, 0, 0).startswith(f"--workers 2, or {seeds}")
    assert advice(half, 0, 0) == f"--workers 1 and --replay-capacity 500000 or less, or {seeds}"
    assert advice(0, 0, 1) == seeds
    assert advice(0, 2) == "fewer --eval-episodes, or a smaller --batch-size"


def test_networks_that_cannot_be_built_are_refused_unbuilt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = make_job("td3[hidden_sizes=[1000000,1000000]]")
    with pytest.raises(UserError, match="its networks alone need"):
        plan.estimate_memory([job])


def test_a_containers_limit_counts_and_that_of_the_group_above_it(tmp_path: Path) -> None:
    for folder, limit, used in (("", "max", 9), ("a", "1000", 300), ("a/b", "800", 500)):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "memory.max").write_text(f"{limit}\n")
        (tmp_path / folder / "memory.current").write_text(f"{used}\n")
        (tmp_path / folder / "memory.stat").write_text("anon 7\ninactive_file 100\n")
    assert sorted(memory._left_in_groups(tmp_path, "a/b")) == [400, 800]
    assert memory._left_in_groups(tmp_path / "absent", "") == []
