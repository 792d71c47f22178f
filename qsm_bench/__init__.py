"""The harness: experiment, training loop, store, statistics, report.

Everything an outside author of an agent needs is here under one name; it is imported on first
use, so that the command line starts without loading torch.
"""

import importlib
from typing import Any

_EXPORTS = {
    "Agent": "agents.protocol",
    "AgentConfig": "agents.protocol",
    "Batch": "agents.protocol",
    "StateDict": "agents.protocol",
    "Learner": "agents.learner",
    "critic_loss": "agents.learner",
    "Adam": "agents.optimiser",
    "Linear": "agents.networks",
    "MLP": "agents.networks",
    "TwinCritic": "agents.networks",
    "mish": "agents.networks",
    "polyak_update": "agents.optimiser",
    "DiffusionAgent": "agents.diffusion_agent",
    "DiffusionConfig": "agents.diffusion_agent",
    "Denoiser": "agents.diffusion",
    "Schedule": "agents.diffusion",
    "sample": "agents.diffusion",
    "SeedStreams": "agents.streams",
    "derive_seed": "agents.streams",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
