"""The stretches of a run: each from a start to an interruption or the end, with its conditions."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict


class Stretch(BaseModel):
    """The part of a run from a start to the next interruption, or to the end."""

    model_config = ConfigDict(extra="forbid")

    started: str | None = None
    ended: str | None = None
    """When it ended; None while it goes on, or where its process was killed unseen."""
    first_step: int = 0
    last_step: int = 0
    """The step it reached; what of it was not saved is done again by the next."""
    versions: dict[str, str] = {}
    commit: str | None = None
    hardware: dict[str, Any] = {}
    command: str = ""


TOP_LEVEL = {"started", "finished", "versions", "commit", "hardware", "command"}
"""The keys at the top of a manifest that said this before runs had stretches."""


def from_top_level(manifest: Any) -> Any:
    """Return a manifest's JSON in which what earlier versions wrote at its top is a stretch."""
    if not isinstance(manifest, dict) or not TOP_LEVEL & manifest.keys():
        return manifest
    rest = {key: value for key, value in manifest.items() if key not in TOP_LEVEL}
    old = {key: manifest[key] for key in TOP_LEVEL & manifest.keys() if manifest[key]}
    ended = old.pop("finished", None)
    if (old.keys() - {"command"}) or ended:
        only = old | {"ended": ended, "last_step": manifest.get("step", 0)}
        rest.setdefault("stretches", [only])
    return rest


def conditions(stretch: Mapping[str, Any]) -> dict[str, str]:
    """Return what can make numbers differ, by name: commit, hardware and versions, where known."""
    facts = {
        "commit": stretch["commit"] or "unknown",
        **stretch["hardware"],
        **stretch["versions"],
    }
    return {name: str(value) for name, value in facts.items() if value is not None}


def varying(stretches: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the conditions that are not the same in all stretches that name them, with values."""
    values: dict[str, list[str]] = {}
    for stretch in stretches:
        for name, value in conditions(stretch).items() if stretch["versions"] else ():
            values.setdefault(name, []).append(value)
    unique = {name: list(dict.fromkeys(found)) for name, found in values.items()}
    return {name: found for name, found in unique.items() if len(found) > 1}


def changes(before: Sequence[Stretch], now: Stretch) -> str:
    """Say what is other now than in the last stretch; an empty text if nothing is."""
    if not before:
        return ""
    differing = varying([before[-1].model_dump(), now.model_dump()])
    return ", ".join(f"{name} {old} -> {new}" for name, (old, new) in differing.items())
