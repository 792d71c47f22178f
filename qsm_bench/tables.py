"""Tables as CSV: rows as text, and a table that only grows."""

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

from qsm_bench.errors import UserError


class CsvLog:
    """A table that only grows; each append reaches the disk whole, and the rest can be cut off."""

    def __init__(self, file: Path, size: int = 0, checksum: int | None = None) -> None:
        """Continue ``file`` from its first ``size`` bytes: rows after a checkpoint come again.

        Raises UserError, and leaves the file as it is, if those are not there, or not the same.
        """
        self.file = file.open("ab+", buffering=0)
        self.size = size
        """Bytes written so far."""
        there = self.file.seek(0, os.SEEK_END)
        self.file.seek(0)
        self.checksum = crc32(self.file.read(size)) if 0 < size <= there else 0
        """Of those."""
        if not 0 <= size <= there or checksum not in (None, self.checksum):
            self.file.close()
            fault = "is damaged: it has other rows" if size <= there else "has fewer rows"
            raise UserError(f"{file} {fault} than its checkpoint counts")
        self.file.truncate(size)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows of the same columns; the first ones ever bring the header."""
        data = as_csv(list(rows), header=self.size == 0).encode()
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


def as_csv(rows: Sequence[Mapping[str, Any]], *, header: bool = True) -> str:
    """Rows of the same columns as text."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
