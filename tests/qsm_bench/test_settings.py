"""Settings come back from a manifest as what they were, or are refused before anything runs."""

import math
from dataclasses import dataclass, make_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.protocol import AgentConfig
from agents.registry import RegisteredAgent
from qsm_bench.errors import UserError
from qsm_bench.experiment import AgentEntry, Experiment
from qsm_bench.job_folder import JobFolder
from qsm_bench.manifest import Manifest
from qsm_bench.settings import as_json, validated
from tests.qsm_bench.jobs import PROTOCOL, make_experiment, make_job
from tests.qsm_bench.plain_agents import Plain


def config_of(kind: Any, default: Any) -> type[AgentConfig]:
    made: type[AgentConfig] = make_dataclass(
        "C", [("x", kind, default)], bases=(AgentConfig,), frozen=True
    )
    return made


SURVIVE = [
    (float, math.inf),
    (float, -math.inf),
    (float, 1),
    (float, 5e-324),
    (float | None, None),
    (float | None, math.inf),
    (int, 2**100),
    (bool, True),
    (str, "ü\u2028\U0001f600 inf"),
    (str, "inf"),
    (str, "null"),
    (str, ""),
    (tuple[int, ...], ()),
    (tuple[tuple[int, ...], ...], ((1, 2), (), (3,))),
    (tuple[float, ...], (math.inf, 1.0)),
    (tuple[str, float | None, bool], ("a", None, False)),
    (Literal["a", "b"] | None, "b"),
    (str | int, "1"),
    (str | int, 1),
]


@pytest.mark.parametrize(("kind", "value"), SURVIVE, ids=repr)
def test_a_setting_comes_back_from_its_manifest(tmp_path: Path, kind: Any, value: Any) -> None:
    config = config_of(kind, value)()
    job = make_job().model_copy(update={"settings": as_json("a", config)})
    folder = JobFolder(tmp_path)
    folder.write_manifest(Manifest(job=job))
    there = folder.read_manifest().job
    assert there.settings == job.settings
    back: Any = validated("a", type(config), there.settings)
    assert back == config
    assert isinstance(back.x, type(value)) or value == 1


@given(st.floats(allow_nan=False), st.lists(st.integers()), st.text(st.characters(codec="utf-8")))
def test_numbers_lists_and_text_come_back(number: float, whole: list[int], text: str) -> None:
    kind: Any = tuple[float, tuple[int, ...], str]
    config = config_of(kind, (number, tuple(whole), text))()
    job = make_job().model_copy(update={"settings": as_json("a", config)})
    there = type(job).model_validate_json(job.model_dump_json())
    assert validated("a", type(config), there.settings) == config


class Mode(Enum):
    A = 1


class Word(str, Enum):  # noqa: UP042 - an enum that is a string, too
    A = "a"


class Strange:
    pass


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (float, math.nan, "NaN"),
        (tuple[float, ...], (math.nan,), "NaN"),
        (Mode, Mode.A, "it is of type Mode"),
        (Word, Word.A, "it is of type Word"),
        (Path, Path("a"), "cannot be written"),
        (bytes, b"a", "it is of type bytes"),
        (frozenset[int], frozenset({1}), "it is of type frozenset"),
        (complex, 1j, "it is of type complex"),
        (Any, (1, 2), r"it reads back as \[1, 2\]"),
        (Any, math.inf, "it reads back as 'inf'"),
        (str, "\ud800", "cannot be written"),
        (int, None, "setting x of a: None is not right"),
        (int, "many", "setting x of a: 'many' is not right"),
        (Strange, Strange(), "settings of a: C: "),
    ],
)
def test_a_value_that_would_not_come_back_is_refused_in_a_line(
    kind: Any, value: Any, message: str
) -> None:
    config_class = config_of(kind, value)
    with pytest.raises(UserError, match=message) as refused:
        as_json("a", validated("a", config_class, {}))
    assert "\n" not in str(refused.value)


def test_a_configuration_that_raises_is_one_line() -> None:
    @dataclass(frozen=True)
    class Raises(AgentConfig):
        def __post_init__(self) -> None:
            raise KeyError("one\ntwo")

    with pytest.raises(UserError, match="settings of a: Raises: KeyError") as refused:
        validated("a", Raises, {})
    assert "\n" not in str(refused.value)


def test_an_infinite_number_is_taken_where_it_is_the_default_or_may_be() -> None:
    class Clips(Plain):
        config_class = config_of(float, math.inf)

    entry = AgentEntry(RegisteredAgent("clips", "x:Clips", Clips, {}), {})
    assert as_json("clips", entry.config("four-goals", {}))["x"] == "inf"
    with pytest.raises(UserError, match="learning_rate of td3: inf is not a finite number"):
        make_experiment("td3[learning_rate=Infinity]")
    with pytest.raises(UserError, match="nan is not right"):
        make_experiment("td3[learning_rate=NaN]")


def test_a_label_that_is_not_printable_is_refused() -> None:
    class Says(Plain):
        config_class = config_of(str, "a")

    entry = AgentEntry(RegisteredAgent("says", "x:Says", Says, {}), {"x": "a\x1b[31m\n"})
    with pytest.raises(UserError, match="printable") as refused:
        Experiment("e", (entry,), ("four-goals",), ((0,),), PROTOCOL)
    assert str(refused.value).isprintable()
