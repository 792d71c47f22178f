"""The stretches of a run: each from a start to its end, with what it ran on."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict


class Stretch(BaseModel):
    """A run without a break, or a part between two breaks."""

    model_config = ConfigDict(extra="forbid")

    started: str | None = None
    ended: str | None = None
    """None while it goes on, and where its process was killed and nobody has looked since."""
    first_step: int = 0
    last_step: int = 0
    """As far as it came; what of it was not saved is done again by the next."""
    versions: dict[str, str] = {}
    commit: str | None = None
    hardware: dict[str, Any] = {}
    command: str = ""


TOP_LEVEL = {"started", "finished", "versions", "commit", "hardware", "command"}
"""Where a manifest said this before runs had stretches."""


def from_top_level(manifest: Any) -> Any:
    """A manifest's JSON with what earlier versions wrote as one stretch."""
    if not isinstance(manifest, dict) or not TOP_LEVEL & manifest.keys():
        return manifest
    rest = {key: value for key, value in manifest.items() if key not in TOP_LEVEL}
    told = {key: manifest[key] for key in TOP_LEVEL & manifest.keys() if manifest[key]}
    ended = told.pop("finished", None)
    if (told.keys() - {"command"}) or ended:
        only = told | {"ended": ended, "last_step": manifest.get("step", 0)}
        rest.setdefault("stretches", [only])
    return rest


def conditions(stretch: Mapping[str, Any]) -> dict[str, str]:
    """What can make a number differ: commit, hardware and versions, by name, where known."""
    facts = {
        "commit": stretch["commit"] or "unknown",
        **stretch["hardware"],
        **stretch["versions"],
    }
    return {name: str(value) for name, value in facts.items() if value is not None}


def varying(stretches: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The conditions that are not the same in all stretches that tell them, with their values."""
    values: dict[str, list[str]] = {}
    for stretch in stretches:
        for name, value in conditions(stretch).items() if stretch["versions"] else ():
            values.setdefault(name, []).append(value)
    unique = {name: list(dict.fromkeys(told)) for name, told in values.items()}
    return {name: told for name, told in unique.items() if len(told) > 1}


def changes(before: Sequence[Stretch], now: Stretch) -> str:
    """What is other now than in the last stretch, in words; empty if nothing is."""
    if not before:
        return ""
    differing = varying([before[-1].model_dump(), now.model_dump()])
    return ", ".join(f"{name} {old} -> {new}" for name, (old, new) in differing.items())
