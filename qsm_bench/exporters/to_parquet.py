"""The tables as Parquet files: evaluations, training, diagnostics, slices and cells.

A cell's fields that hold further fields, as its settings do, are JSON texts: agents differ in
them.
"""

import io
import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from qsm_bench.exporters.folder import Output, digest
from qsm_bench.results import Results
from qsm_bench.tables import WHOLE

TEXTS = ("agent", "task")


def outputs(results: Results) -> Iterator[Output]:
    """Yield a file for each table; one without rows has its columns and their types."""
    tables = {
        "evaluations": _arrow(results.evaluations),
        "training": _arrow(results.training),
        "diagnostics": _arrow(results.diagnostics),
        "slices": _arrow(results.slices),
        "cells": _cells(results.cells),
    }
    for name, table in tables.items():
        content = io.BytesIO()
        pq.write_table(table, content)
        data = content.getvalue()
        yield Output(f"{name}.parquet", digest(data), partial(bytes, data))


def _arrow(table: pd.DataFrame) -> pa.Table:
    """Return a table with the types that its columns are meant to have, rows or none."""
    fields = []
    for name in map(str, table.columns):
        whole = name in WHOLE and (table.empty or table[name].dtype.kind == "i")
        kind = pa.string() if name in TEXTS else pa.int64() if whole else pa.float64()
        fields.append(pa.field(name, kind))
    return pa.Table.from_pandas(table, schema=pa.schema(fields), preserve_index=False)


def _cells(cells: list[dict[str, Any]]) -> pa.Table:
    names = dict.fromkeys(name for cell in cells for name in cell)
    return pa.table({name: _column([cell.get(name) for cell in cells]) for name in names})


def _column(values: list[Any]) -> pa.Array:
    """Return values as one type where they have one, and as JSON texts where they do not."""
    if not any(isinstance(value, dict) or _holds_dicts(value) for value in values):
        try:
            return pa.array(values)
        except pa.ArrowException:  # values of several types
            pass
    return pa.array([None if v is None else json.dumps(v) for v in values], pa.string())


def _holds_dicts(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(item, dict) for item in value)
