"""Tables as CSV: rows as text, and a table that grows by rows and, seldom, by columns."""

import csv
import io
import os
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

from qsm_bench.errors import UserError
from qsm_bench.files import plain_opener, write_atomically

if TYPE_CHECKING:
    import pandas as pd

WHOLE = ("seed", "step", "episode", "length", "state")
"""The columns that hold whole numbers."""
LONGEST_LINE, MOST_COLUMNS = 2**16, 1_000
"""A table with a line of more bytes, or with more columns, is damaged."""


class CsvLog:
    """A table that only grows; each append reaches the disk whole, and the rest can be cut off.

    Columns are known by name. A row with a new name adds a column at the right: the rows before
    it are blank there. So the first columns of the table are, up to the blanks at the right,
    always what they were, and a checkpoint that knows fewer columns can have its table back.
    """

    def __init__(
        self,
        path: Path,
        size: int = 0,
        checksum: int | None = None,
        columns: Sequence[str] | None = None,
    ) -> None:
        """Continue the file from its first ``size`` bytes: rows after a checkpoint come again.

        ``size`` and ``checksum`` count the file as it was with ``columns``; without those, which
        checkpoints up to November 2026 did not note, its columns are those it has. Raises
        UserError, and leaves the file as it is, if it does not begin with that table.
        """
        self.path = path
        self.size = 0
        """How many bytes of the file are the table's."""
        self.checksum = 0
        """The CRC-32 of those bytes."""
        self.columns: list[str] = []
        self.file = open(path, "ab+", buffering=0, opener=plain_opener)  # noqa: SIM115 - closed by close
        try:
            if size:
                self._cut_back(size, checksum, columns)
            self.file.truncate(self.size)
        except BaseException:
            self.file.close()
            raise

    def _cut_back(self, size: int, checksum: int | None, columns: Sequence[str] | None) -> None:
        text = self._text()
        there = _header(text)
        self.columns = there if columns is None else list(columns)
        added = len(there) - len(self.columns)
        if added > 0:
            text = narrowed(text, added)
        if not 0 <= size <= len(text):
            raise UserError(f"{self.path} has fewer rows than its checkpoint counts")
        if there[: len(self.columns)] != self.columns:
            raise UserError(f"{self.path} is damaged: it has other columns than its checkpoint")
        if checksum not in (None, crc32(text[:size])):
            raise UserError(f"{self.path} is damaged: it has other rows than its checkpoint counts")
        self.size, self.checksum = size, crc32(text[:size])
        if added:
            self._replace(text[:size])

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows, each value in the column of its name; blank where a row has none."""
        rows = list(rows)
        new = [name for name in dict.fromkeys(chain(*rows)) if name not in self.columns]
        if new and self.columns:
            self._replace(widened(self._text()[: self.size], new))
        self.columns += new
        data = as_csv(rows, self.columns, header=self.size == 0).encode()
        written = 0
        while written < len(data):
            written += self.file.write(data[written:])
        self.size += len(data)
        self.checksum = crc32(data, self.checksum)

    def sync(self) -> None:
        """Wait until what was written is on the disk."""
        os.fsync(self.file.fileno())

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def _text(self) -> bytes:
        self.file.seek(0)
        return self.file.read()

    def _replace(self, text: bytes) -> None:
        write_atomically(self.path, text, sync=True)
        self.file.close()
        self.file = open(self.path, "ab+", buffering=0, opener=plain_opener)  # noqa: SIM115 - closed by close
        self.size, self.checksum = len(text), crc32(text)


def as_csv(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = (), *, header: bool = True
) -> str:
    """Return rows as text, in ``columns`` or, without them, in those of the first row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns or list(rows[0]), lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def widened(table: bytes, names: Sequence[str]) -> bytes:
    """Return a table with more columns at the right, blank in all rows.

    Rows are lines of numbers without quotes; only the header's names may have some.
    """
    header, *rows = table.splitlines(keepends=True)
    more = as_csv([], names).encode()
    blank = b"," * len(names) + b"\n"
    wider = [header.rstrip(b"\n") + b"," + more, *(row.rstrip(b"\n") + blank for row in rows)]
    return b"".join(wider)


def narrowed(table: bytes, count: int) -> bytes:
    """Return a table without its last ``count`` columns: it undoes ``widened`` byte for byte."""
    header, *rows = table.splitlines(keepends=True)
    kept = as_csv([], _header(header)[:-count]).encode()
    return kept + b"".join(row.rstrip(b"\n").rsplit(b",", count)[0] + b"\n" for row in rows)


def without_uncertain(table: bytes, keys: int) -> tuple[bytes, int]:
    """Return a table without values of uncertain names, and in how many rows they are blank.

    Up to November 2026 a row held the metrics that had come since the row before, in the order in
    which they came, under the header of the first row. So from the first row on that is longer or
    shorter than the header nobody knows which metric a value is of: those rows are blank behind
    their first ``keys`` columns.
    """
    header, *lines = table.splitlines(keepends=True)
    width = len(_header(header))
    first = next((k for k, line in enumerate(lines) if line.count(b",") + 1 != width), len(lines))
    blank = b"," * (width - keys) + b"\n"
    known = (b",".join(line.rstrip(b"\n").split(b",")[:keys]) + blank for line in lines[first:])
    return b"".join([header, *lines[:first], *known]), len(lines) - first


def _header(table: bytes) -> list[str]:
    """Return the names in a table's first line; none if that is no header."""
    line = table[: table.find(b"\n") + 1].decode(errors="replace")
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return []


def parse_table(
    text: bytes,
    *,
    texts: Collection[str] = (),
    whole: Collection[str] = WHOLE,
    only: Collection[str] | None = None,
) -> "pd.DataFrame":
    """Read CSV of numbers and blanks alone, but for columns of ``texts``.

    Those in ``texts`` and in ``whole``, which are of whole numbers, have no blanks. With ``only``,
    the other columns are left out and may hold anything, and every number is read to its last
    digit. Raises ValueError, in one line, for anything else.
    """
    import numpy as np
    import pandas as pd

    breaks = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n"))
    if np.diff(breaks, prepend=-1, append=len(text)).max() > LONGEST_LINE:
        raise ValueError(f"a line of it is longer than {LONGEST_LINE:,} bytes")
    try:
        (names,) = csv.reader([text.partition(b"\n")[0].decode("utf-8-sig")])
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"its first line is no heading ({error})") from error
    if len(names) > MOST_COLUMNS:
        raise ValueError(f"it has {len(names):,} columns")
    missing = [name for name in only or () if name not in names]
    if missing:
        raise ValueError(
            f"it has no column {missing[0]!r}; its columns are {', '.join(names[:20])}"
        )
    strange = {"", "agent", "task"}.difference(texts, only or ())
    used = names if only is None else only
    twice = [name for name in used if names.count(name) > 1 or name in strange]
    if twice:
        raise ValueError(f"it has a column {twice[0]!r} twice, or should not have it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # pandas drops values beyond the last column
            table = pd.read_csv(
                io.BytesIO(text),
                index_col=False,
                low_memory=False,
                dtype=dict.fromkeys([*texts, *(name for name in names if name not in used)], str),
                float_precision=None if only is None else "round_trip",
            )
            table = table if only is None else table[list(only)]
    except Exception as error:  # pandas raises errors, and warnings, of many kinds
        raise ValueError(next(iter(str(error).splitlines()), type(error).__name__)) from error
    for name in table.columns:
        if name in texts:
            if table[name].isna().any():
                raise ValueError(f"column {name!r} has blanks")
            continue
        kind = table[name].dtype.kind
        if name in whole and len(table) and kind != "i":
            raise ValueError(f"column {name!r} has something else than whole numbers")
        if kind not in "if":
            if not table[name].dropna().empty:
                raise ValueError(f"column {name!r} has something else than numbers")
            table[name] = table[name].astype(float)
    return table
