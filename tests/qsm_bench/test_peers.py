"""stable-baselines3's trainers behind our protocol: their updates, on our batches, resumable."""

import random
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from agents.protocol import Batch
from agents.registry import PLUGIN_GROUP, find_agent
from agents.sac import SAC, Noise, SACConfig
from qsm_bench.errors import UserError
from qsm_bench.job_folder import JobFolder
from qsm_bench.peers import PeerConfig, PeerSAC, PeerTD3, PeerTD3Config
from qsm_bench.results import load_results
from qsm_bench.training import Training
from tests.qsm_bench.jobs import WARMUP, kill, make_job, train, written
from tests.qsm_bench.test_cli import assert_refused, call, run

pytest.importorskip("stable_baselines3")
CPU = torch.device("cpu")
OBSERVATION, ACTION, BATCH = 3, 2, 64
PEERS = ("qsm_bench.peers:PeerSAC[hidden_sizes=[8]]", "qsm_bench.peers:PeerTD3[hidden_sizes=[8]]")
each_peer = pytest.mark.parametrize("peer", PEERS, ids=("sac", "td3"))


def random_batch(seeds: int) -> Batch:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(seeds, BATCH, *shape, generator=generator)

    terminated = normal() > 1
    return Batch(
        normal(OBSERVATION),
        normal(ACTION).tanh(),
        normal(),
        torch.where(terminated, 0.0, 0.9),
        normal(OBSERVATION),
    )


def test_the_package_announces_them_under_their_names() -> None:
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
    announced = pyproject["project"]["entry-points"][PLUGIN_GROUP]
    loaded = {name: EntryPoint(name, path, PLUGIN_GROUP).load() for name, path in announced.items()}
    assert loaded == {"sb3_sac": PeerSAC, "sb3_td3": PeerTD3}
    assert all(agent.name == name for name, agent in loaded.items())
    assert find_agent("sb3_sac").agent is PeerSAC


@each_peer
def test_interrupted_and_resumed_it_is_as_uninterrupted(peer: str, tmp_path: Path) -> None:
    job = make_job(peer, seeds=3)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    assert train(job, whole)
    for stop_at in (WARMUP - 2, 5, 15):
        assert not train(job, cut, stop_at=stop_at, checkpoint_every=7)
    kill(job, cut, checkpoint_every=7, at=9)
    assert train(job, cut)
    assert written(cut) == written(whole)


@each_peer
def test_a_seed_learns_the_same_whoever_learns_beside_it(peer: str, tmp_path: Path) -> None:
    told = []
    for seeds in (1, 2):
        folder = tmp_path / str(seeds)
        folder.mkdir()
        assert train(make_job(peer, seeds=seeds), folder)
        rows = JobFolder(folder).evaluations_file.read_text().splitlines()
        told.append([row for row in rows if row.startswith("0,")])
    assert told[0] == told[1]
    assert len(told[0]) == 6


@pytest.mark.parametrize(("agent", "config"), [(PeerSAC, PeerConfig), (PeerTD3, PeerTD3Config)])
def test_the_randomness_of_the_process_is_left_alone(agent: Any, config: Any) -> None:
    def drawn() -> tuple[Any, ...]:
        return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())

    before = drawn()
    peer = agent(config(), OBSERVATION, ACTION, (0, 1), CPU)
    batch = random_batch(2)
    for explore in (True, False):
        assert peer.act(batch.observation, explore=explore).shape == (2, BATCH, ACTION)
    peer.update(batch)
    assert drawn() == before


def copied(layers: nn.ModuleList, theirs: list[list[nn.Linear]]) -> None:
    """Give our layers the weights of theirs: of each layer, of each member, its heads."""
    for layer, members in zip(layers, theirs, strict=True):
        layer.weight.data = torch.stack([m.weight.data.T for m in members]).clone()
        layer.bias.data = torch.stack([m.bias.data.unsqueeze(0) for m in members]).clone()


def beside(first: nn.Linear, second: nn.Linear) -> nn.Linear:
    both = nn.Linear(first.in_features, 2 * first.out_features)
    both.weight.data = torch.cat([first.weight.data, second.weight.data])
    both.bias.data = torch.cat([first.bias.data, second.bias.data])
    return both


def linear(network: nn.Module) -> list[nn.Linear]:
    return [module for module in network.modules() if isinstance(module, nn.Linear)]


def test_their_sac_and_ours_make_the_same_update() -> None:
    """From equal weights, batch and noise; theirs halves the critics' loss, which Adam undoes."""
    theirs = PeerSAC(PeerConfig(hidden_sizes=(16, 16)), OBSERVATION, ACTION, (0,), CPU)
    config = SACConfig(hidden_sizes=(16, 16), log_std_min=-20.0)
    ours = SAC(config, OBSERVATION, ACTION, (0,), CPU)
    (model,) = theirs.models

    def copy_all() -> None:
        policy = [*linear(model.actor.latent_pi), beside(model.actor.mu, model.actor.log_std)]
        copied(ours.actor.layers, [[layer] for layer in policy])
        for mine, its in ((ours.critic, model.critic), (ours.target_critic, model.critic_target)):
            pairs = zip(*(linear(network) for network in its.q_networks), strict=True)
            copied(mine.mlp.layers, [list(pair) for pair in pairs])

    copy_all()
    batch = random_batch(1)
    generator = torch.Generator()
    generator.set_state(theirs.streams["update"][0].state)
    action, next_action = (torch.randn(1, BATCH, ACTION, generator=generator) for _ in range(2))
    mine, its = ours.pure_update(batch, Noise(next_action, action)), theirs.update(batch)
    assert its["critic_loss"].item() == pytest.approx(mine["critic_loss"].item() / 2, rel=1e-4)
    assert its["actor_loss"].item() == pytest.approx(mine["actor_loss"].item(), rel=1e-3)
    after = [
        parameter.clone() for parameter in (*ours.actor.parameters(), *ours.critic.parameters())
    ]
    copy_all()
    for one, other in zip(
        after, (*ours.actor.parameters(), *ours.critic.parameters()), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5)
    torch.testing.assert_close(ours.temperature["log"].flatten(), model.log_ent_coef.detach())


def test_a_seed_that_diverges_does_not_end_the_others(tmp_path: Path) -> None:
    job = make_job(PEERS[0], task="linear-quadratic", seeds=2)
    well, ill = tmp_path / "well", tmp_path / "ill"
    well.mkdir()
    ill.mkdir()
    assert train(job, well)
    training = Training(job, JobFolder(ill), checkpoint_every=1000)
    assert isinstance(training.agent.bare, PeerSAC)
    for parameter in training.agent.bare.models[1].policy.parameters():
        parameter.data.fill_(np.nan)
    training.run()
    training.close()
    assert set(training.status.diverged) == {1}
    healthy, sick = (
        [row for row in written(folder)["training"] if row["seed"] == "0"] for folder in (well, ill)
    )
    assert healthy == sick


@pytest.mark.parametrize(
    "setting", ["initialization=xavier", "actor_learning_rate=0.1", "matmul_precision=bfloat16"]
)
def test_a_setting_that_the_library_lacks_is_refused(setting: str) -> None:
    with pytest.raises(UserError, match="stable-baselines3 has"):
        make_job(f"sb3_td3[{setting}]")


def test_without_the_library_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    monkeypatch.chdir(tmp_path)
    assert_refused(call(*run(agents="sb3_sac")), "pip install 'qsm_bench[sb3]'")
    assert list(tmp_path.iterdir()) == []
    listed = call("list", "agents")
    assert "SAC of stable-baselines3 (needs the extra qsm_bench[sb3])" in listed.out
    assert call("describe", "sb3_td3").status == 0


def test_they_are_columns_beside_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = call(*run("--name=peers", agents="sac,sb3_sac,sb3_td3"))
    assert outcome.status == 0, outcome
    results = load_results(tmp_path / "results", "peers")
    counts = results.evaluations.groupby("agent").size()
    assert set(counts.index) == {"sac", "sb3_sac", "sb3_td3"}
    assert counts.nunique() == 1
    assert {"stable_baselines3", "torch"} <= results.cells[0]["stretches"][0]["versions"].keys()
    assert call("report", "peers").status == 0
    assert "sb3_td3" in (tmp_path / "reports" / "peers" / "report.md").read_text()
