"""Whether runs of two experiments may be compared: all of their protocols but the length is equal.

How far runs are trained does not matter: they are compared at a step that both have.
"""

import hashlib
import json
from typing import Any

from agents.protocol import AgentConfig
from qsm_bench.protocol import Protocol
from qsm_bench.settings import as_json, validated


def protocol_hash(protocol: Protocol) -> str:
    """SHA-256 of what is not as by default in a protocol, but its steps.

    Equal hashes mean that runs may be compared. A field that the protocol gets later, with a
    default that changes nothing, leaves the hashes of earlier protocols as they are.
    """
    usual = _content(Protocol())
    chosen = {name: value for name, value in _content(protocol).items() if value != usual[name]}
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()


def protocol_differences(first: Protocol, second: Protocol) -> dict[str, tuple[Any, Any]]:
    """What differs between two protocols but their steps: both values, by the field's name.

    It is empty where their hashes are equal, and only there.
    """
    one, other = _content(first), _content(second)
    return {name: (one[name], other[name]) for name in one if one[name] != other[name]}


def _content(protocol: Protocol) -> dict[str, Any]:
    """The fields, and the settings of every agent, whether they were given or are as by default."""
    settings = as_json("every agent", validated("every agent", AgentConfig, protocol.settings))
    return {**protocol.model_dump(mode="json", exclude={"steps", "settings"}), **settings}
