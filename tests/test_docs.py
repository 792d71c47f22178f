"""The documentation states the defaults that the code has."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from qsm_bench import AgentConfig, Protocol

PAGE = Path(__file__).parents[1] / "docs" / "protocol.md"


def table_under(heading: str) -> dict[str, str]:
    """Return the first two columns of the table under a heading of the page: name -> default."""
    section = PAGE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", section, re.M))


def shown(value: Any) -> str:
    """Return a default as the page writes it."""
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, int):
        return f"{value:,}"
    return "none" if value is None else str(value)


@pytest.mark.parametrize(
    ("heading", "defaults"),
    [
        ("Fields", Protocol().model_dump(exclude={"settings"})),
        ("Shared settings", asdict(AgentConfig())),
    ],
)
def test_the_page_of_the_protocol_lists_every_field_with_its_default(
    heading: str, defaults: dict[str, Any]
) -> None:
    assert table_under(heading) == {name: shown(value) for name, value in defaults.items()}
