"""Rounding factors is refused where the machine has nothing of it, and said in the label."""

from pathlib import Path

import pytest
import torch

from agents.protocol import MatmulPrecision
from agents.registry import BUILT_IN, find_agent
from agents.speed import precision
from qsm_bench.comparable import protocol_hash
from qsm_bench.errors import UserError
from qsm_bench.experiment import parse_agents
from qsm_bench.protocol import Protocol
from qsm_bench.run import run_experiment
from tests.agents.fixed_critics import CPU


@pytest.mark.parametrize(("ratio", "refused"), [(0.5, False), (1.0, True), (3.0, True)])
def test_a_processor_that_is_slower_with_it_is_refused(
    monkeypatch: pytest.MonkeyPatch, ratio: float, refused: bool
) -> None:
    monkeypatch.setattr(precision, "time_ratio", lambda rows, width: ratio)
    reason = precision.why_not("bfloat16", "cpu", 256, 64)
    assert (reason is not None) == refused
    assert precision.why_not("float32", "cpu", 256, 64) is None


def test_tf32_is_refused_on_a_processor() -> None:
    assert "GPU" in str(precision.why_not("tf32", "cpu", 256, 64))


@pytest.mark.parametrize(("capability", "refused"), [((7, 5), True), ((8, 0), False)])
def test_an_older_gpu_is_refused(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], refused: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    for kind in ("bfloat16", "tf32"):
        assert (precision.why_not(kind, "cuda", 256, 64) is not None) == refused


def test_the_probe_times_both_products() -> None:
    assert 0 < precision.time_ratio(32, 16) < 1000


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


def run(folder: Path, agents: str, *settings: str) -> None:
    run_experiment(
        agents,
        tasks="bimodal-bandit",
        protocol=SHORT,
        seeds=(0,),
        settings=settings,
        device="cpu",
        results=folder,
    )


def test_a_run_that_gains_nothing_is_refused_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(precision, "time_ratio", lambda rows, width: 3.0)
    for setting in ("matmul_precision=bfloat16", "sac.matmul_precision=bfloat16"):
        with pytest.raises(UserError, match=r"takes 3 times as long with it .* use float32"):
            run(tmp_path, "td3,sac", setting)
    with pytest.raises(UserError, match="format of GPUs"):
        run(tmp_path, "sac", "matmul_precision=tf32")
    assert not list(tmp_path.iterdir())


def test_an_agent_that_would_round_nothing_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(precision, "time_ratio", lambda rows, width: 0.5)
    with pytest.raises(UserError, match="changes nothing"):
        run(tmp_path, "sac[hidden_sizes=[8],matmul_precision=bfloat16]")
    assert not list(tmp_path.iterdir())
