"""Studies: the experiments of the paper on Q-score matching (arXiv 2312.11752), tried here.

Each is one file: what it claims, the test that decides, the cells it trains, its sections.
"""

import importlib
from typing import TYPE_CHECKING

from qsm_bench.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from qsm_bench.studies.study import Study

STUDIES = (
    "vector-field",
    "gridworld",
    "action-modes",
    "action-map",
    "trainers",
    "depth",
    "temperature",
    "objections",
)
"""Their names, in the order of the paper's figures; the last is of what later work says. A study's
module has its name."""


def find_study(name: str) -> "Study":
    """The study of that name. Raises UserError that suggests similar names if there is none."""
    if name not in STUDIES:
        raise UserError(f"unknown study {name!r}: {did_you_mean(name, STUDIES)}")
    study: Study = importlib.import_module(f"qsm_bench.studies.{name.replace('-', '_')}").STUDY
    return study
