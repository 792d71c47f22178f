"""Rounding factors is refused where the machine has nothing of it, and said in the label."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from agents.common.networks import Linear
from agents.common.streams import SeedStreams
from agents.protocol import MatmulPrecision, NetworkOptions
from agents.registry import BUILT_IN, find_agent
from agents.speed import precision
from qsm_bench.comparable import protocol_hash
from qsm_bench.errors import UserError
from qsm_bench.experiment import Job, parse_agents
from qsm_bench.job_folder import JobFolder
from qsm_bench.protocol import Protocol
from qsm_bench.run import run_experiment
from qsm_bench.training import Training, build_agent
from tests.agents.fixed_critics import CPU
from tests.qsm_bench.jobs import make_job


@pytest.mark.parametrize(("ratio", "refused"), [(0.5, False), (1.0, True), (3.0, True)])
def test_a_processor_that_is_slower_with_it_is_refused(
    monkeypatch: pytest.MonkeyPatch, ratio: float, refused: bool
) -> None:
    monkeypatch.setattr(precision, "time_ratio", lambda rows, sizes: ratio)
    reason = precision.slows_down(256, (64, 64))
    assert (reason is not None) == refused
    assert precision.slows_down(256, (64,)) is None  # which rounds nothing


def test_the_probe_of_the_largest_networks_ends_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes before the memory is looked at, so it takes little itself."""
    timed: list[Sequence[tuple[Tensor, Tensor]]] = []

    def seconds(product: object, layers: Sequence[tuple[Tensor, Tensor]]) -> float:
        timed.append(layers)
        return 1.0

    clock = itertools.count()  # every look at it takes a second
    monkeypatch.setattr(precision, "_seconds", seconds)
    monkeypatch.setattr("agents.speed.precision.time.perf_counter", lambda: next(clock))
    assert precision.time_ratio(10**12, (10**7, 10**7)) == 1.0
    assert len(timed) < 10
    ((x, w),) = timed[0]
    assert x.shape == w.shape == (1, 512, 512)


def test_tf32_is_refused_on_a_processor() -> None:
    assert "GPU" in str(precision.lacks("tf32", "cpu"))
    assert precision.lacks("bfloat16", "cpu") is None


@pytest.mark.parametrize(("capability", "refused"), [((7, 5), True), ((8, 0), False)])
def test_an_older_gpu_is_refused(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], refused: bool
) -> None:
    assert precision.lacks("tf32", "cuda") is None  # there is none here
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    for kind in ("bfloat16", "tf32"):
        assert (precision.lacks(kind, "cuda") is not None) == refused


def test_the_probe_times_the_networks_products_on_one_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shapes, threads = [], torch.get_num_threads()

    def product(x: Tensor, w: Tensor) -> Tensor:
        shapes.append((*x.shape[1:], w.shape[-1], torch.get_num_threads()))
        return torch.bmm(x, w)

    monkeypatch.setattr(precision, "rounded_product", product)
    assert 0 < precision.time_ratio(32, (16, 8, 4)) < 1000
    assert {*shapes} == {(32, 16, 8, 1), (32, 8, 4, 1)}
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("path", BUILT_IN)
def test_the_setting_reaches_every_network_of_a_trainer(path: str) -> None:
    agent = find_agent(path).agent

    def built(kind: MatmulPrecision) -> bool:
        config = agent.config_class(matmul_precision=kind, hidden_sizes=(8, 8))
        return precision.rounds(agent(config, 3, 2, (0,), CPU))

    assert built("bfloat16")
    assert not built("float32")


def test_whoever_asks_for_it_the_label_and_the_protocols_hash_say_so() -> None:
    entry, own = parse_agents("sac,sac[matmul_precision=bfloat16]", {})
    shared = {"matmul_precision": "bfloat16"}
    label = "sac[matmul_precision=bfloat16]"
    assert entry.label(entry.config("walker-walk", {})) == "sac"
    assert entry.label(entry.config("walker-walk", shared)) == label
    assert own.label(own.config("walker-walk", {})) == label
    assert protocol_hash(Protocol(settings=shared)) != protocol_hash(Protocol())


SHORT = Protocol(steps=60, warmup_steps=20, batch_size=8, eval_every=60, eval_episodes=1)


def run(folder: Path, agents: str, *settings: str, seeds: int = 1, steps: int = 60) -> None:
    run_experiment(
        agents,
        tasks="bimodal-bandit",
        protocol=SHORT.but(steps=steps),
        seeds=range(seeds),
        settings=settings,
        device="cpu",
        results=folder,
    )


def test_a_run_that_gains_nothing_is_refused_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(precision, "time_ratio", lambda rows, sizes: 3.0)
    for setting in ("matmul_precision=bfloat16", "sac.matmul_precision=bfloat16"):
        with pytest.raises(UserError, match=r"it takes 3 times as long as float32 .* use float"):
            run(tmp_path, "td3,sac", setting)
    with pytest.raises(UserError, match="only GPUs have tf32, and a CPU may have bfloat16: use f"):
        run(tmp_path, "sac", "matmul_precision=tf32")
    assert not list(tmp_path.iterdir())


def test_an_agent_that_would_round_nothing_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(precision, "time_ratio", lambda rows, sizes: 0.5)
    with pytest.raises(UserError, match="changes nothing"):
        run(tmp_path, "sac[hidden_sizes=[8],matmul_precision=bfloat16]")
    assert not list(tmp_path.iterdir())


class Helper:
    def __init__(self, network: Linear) -> None:
        self.kept = {"networks": [network]}


@pytest.mark.parametrize("rounded", [True, False])
def test_a_network_is_found_wherever_an_agent_keeps_it(rounded: bool) -> None:
    options = NetworkOptions(matmul_precision="bfloat16" if rounded else "float32")
    layer = Linear(8, 8, SeedStreams((0,), "weights", CPU), options, between_hidden=True)
    for kept in (layer, [layer], {"actor": (layer,)}, Helper(layer)):
        agent: Any = SimpleNamespace(kept=kept, itself=None)
        agent.itself = agent
        assert precision.rounds(agent) == rounded


def test_the_first_calls_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first product of a kind may take many times as long as later ones."""
    called: list[object] = []

    def seconds(product: object, _: object) -> float:
        called.append(product)
        return 1.0 if called.count(product) > 1 else 1e3 if product is torch.bmm else 1e6

    monkeypatch.setattr(precision, "_seconds", seconds)
    assert precision.time_ratio(8, (8, 8)) == 1.0


def test_what_has_begun_goes_on_where_rounding_is_slower_now(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    agent = "sac[hidden_sizes=[8,8],matmul_precision=bfloat16]"
    monkeypatch.setattr(precision, "time_ratio", lambda rows, sizes: 0.5)
    run(tmp_path, agent)
    monkeypatch.setattr(precision, "time_ratio", lambda rows, sizes: 3.0)
    run(tmp_path, agent, steps=80)
    with pytest.raises(UserError, match="it takes 3 times as long"):
        run(tmp_path, agent, steps=80, seeds=2)


def in_precision(kind: MatmulPrecision) -> Job:
    job = make_job("sac")
    return job.model_copy(update={"settings": job.settings | {"matmul_precision": kind}})


def test_a_gpus_sums_are_float32_and_its_products_as_the_newest_agent_has_them() -> None:
    products = torch.backends.cuda.matmul
    kinds: tuple[MatmulPrecision, ...] = ("tf32", "float32")
    for kind in kinds:
        build_agent(in_precision(kind), 2, 2)
        assert products.allow_tf32 == (kind == "tf32")
        assert not products.allow_bf16_reduced_precision_reduction


def test_a_job_that_reaches_a_processor_with_tf32_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="matmul_precision of sac: 'tf32': only GPUs have tf32"):
        Training(in_precision("tf32"), JobFolder(tmp_path), checkpoint_every=10)
