"""A trainer that ``test_built_in`` adds to the built-in ones."""

from collections.abc import Mapping
from typing import Any, ClassVar

from agents.td3 import TD3


class Sixth(TD3):
    """TD3 under another name."""

    name: ClassVar[str] = "sixth"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"sixth_slow": {"learning_rate": 1e-5}}
    small_task_settings: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "*": {"policy_delay": 3},
        "four-*": {"target_noise": 0.1},
    }
