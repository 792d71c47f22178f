"""The harness: experiment, training loop, store, statistics, report.

What a script or notebook calls and what an outside author of an agent needs is here under one name.
It is imported on first use, so that the command line starts without loading torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what an editor and mypy see; ``_EXPORTS`` is where it comes from when it runs
    from agents.common.diffusion import Denoiser, DiffusionPolicy, Schedule
    from agents.common.diffusion_agent import DiffusionAgent, DiffusionConfig
    from agents.common.learner import Learner, TwinCriticLearner, critic_loss
    from agents.common.networks import MLP, Linear, TwinCritic, mish
    from agents.common.optimizer import Adam, polyak_update
    from agents.common.streams import SeedStreams, derive_seed
    from agents.protocol import Agent, AgentConfig, Batch, StateDict
    from qsm_bench.beside import place_beside
    from qsm_bench.errors import UserError
    from qsm_bench.executors import Executor, Local, Ray, Slurm
    from qsm_bench.policy import Policy, load_policy
    from qsm_bench.protocol import Protocol
    from qsm_bench.record import LoadedRecord, load_record
    from qsm_bench.report import write_report
    from qsm_bench.results import Results, load_results
    from qsm_bench.run import run_experiment

_EXPORTS = {
    "Agent": "agents.protocol",
    "AgentConfig": "agents.protocol",
    "Batch": "agents.protocol",
    "StateDict": "agents.protocol",
    "Learner": "agents.common.learner",
    "TwinCriticLearner": "agents.common.learner",
    "critic_loss": "agents.common.learner",
    "Adam": "agents.common.optimizer",
    "Linear": "agents.common.networks",
    "MLP": "agents.common.networks",
    "TwinCritic": "agents.common.networks",
    "mish": "agents.common.networks",
    "polyak_update": "agents.common.optimizer",
    "DiffusionAgent": "agents.common.diffusion_agent",
    "DiffusionConfig": "agents.common.diffusion_agent",
    "Denoiser": "agents.common.diffusion",
    "DiffusionPolicy": "agents.common.diffusion",
    "Schedule": "agents.common.diffusion",
    "SeedStreams": "agents.common.streams",
    "derive_seed": "agents.common.streams",
    "place_beside": "qsm_bench.beside",
    "UserError": "qsm_bench.errors",
    "Executor": "qsm_bench.executors",
    "Local": "qsm_bench.executors",
    "Ray": "qsm_bench.executors",
    "Slurm": "qsm_bench.executors",
    "Policy": "qsm_bench.policy",
    "load_policy": "qsm_bench.policy",
    "Protocol": "qsm_bench.protocol",
    "LoadedRecord": "qsm_bench.record",
    "load_record": "qsm_bench.record",
    "write_report": "qsm_bench.report",
    "Results": "qsm_bench.results",
    "load_results": "qsm_bench.results",
    "run_experiment": "qsm_bench.run",
}

__all__ = [
    "MLP",
    "Adam",
    "Agent",
    "AgentConfig",
    "Batch",
    "Denoiser",
    "DiffusionAgent",
    "DiffusionConfig",
    "DiffusionPolicy",
    "Executor",
    "Learner",
    "Linear",
    "LoadedRecord",
    "Local",
    "Policy",
    "Protocol",
    "Ray",
    "Results",
    "Schedule",
    "SeedStreams",
    "Slurm",
    "StateDict",
    "TwinCritic",
    "TwinCriticLearner",
    "UserError",
    "critic_loss",
    "derive_seed",
    "load_policy",
    "load_record",
    "load_results",
    "mish",
    "place_beside",
    "polyak_update",
    "run_experiment",
    "write_report",
]


if not TYPE_CHECKING:  # with it, a type checker would take any name for an export

    def __getattr__(name: str) -> Any:
        if name in _EXPORTS:
            return getattr(importlib.import_module(_EXPORTS[name]), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
