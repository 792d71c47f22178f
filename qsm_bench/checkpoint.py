"""Checkpoints: the state of a job on disk, whole and checked, and the one before it."""

import io
import os
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from qsm_bench.errors import UserError
from qsm_bench.files import new_opener, plain_opener
from qsm_bench.replay import ReplayBuffer

FORMAT = 3
"""The format of a state. In 1 there were torch's own optimizers, and updates came after each step;
in 2, up to November 2026, parts of an agent had other names."""
LARGEST_STATE = 2**32
"""The most bytes of a state that is still read: a thousand million numbers."""
CHUNK = 4096
"""How many replay records are read or written at a time."""


class Checkpoint:
    """``state.pt``, the state before it as ``previous.pt``, and ``replay.f32``, appended to.

    A state says how many records of the replay log belong to it, and their checksum, so a log
    that is longer, from a checkpoint that was cut off, is simply cut back.
    """

    def __init__(self, folder: Path, job: str | None = None, *earlier: str) -> None:
        """``job`` is the identity of the job whose checkpoint it must be, where that is known.

        One that names one of the ``earlier`` identities is the job's as well.
        """
        self.folder = folder
        self.job = job
        self.earlier = earlier
        self.state_file = folder / "state.pt"
        self.previous_file = folder / "previous.pt"
        self.replay_file = folder / "replay.f32"
        self.saved = 0
        """How many transitions of each seed the log holds."""
        self.checksum = 0
        """The CRC-32 of the log."""

    def save(self, replay: ReplayBuffer, state: dict[str, Any]) -> None:
        """Append the replay records that are new, then replace the state.

        Raises OSError if the disk takes no more; the checkpoint before is then still there.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.state_file.with_suffix(".tmp")
        try:
            checksum = self._append(replay)
            buffer = io.BytesIO()
            log = {
                "format": FORMAT,
                "job": self.job,
                "replay_added": replay.added,
                "replay_checksum": checksum,
            }
            torch.save(state | log, buffer)
            with open(temporary, "wb", opener=new_opener) as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            with suppress(OSError):
                os.truncate(self.replay_file, self.saved * replay.records[0].nbytes)
            raise
        if self.state_file.exists():
            self.state_file.replace(self.previous_file)
        temporary.replace(self.state_file)
        self.saved, self.checksum = replay.added, checksum

    def load(
        self,
        replay: ReplayBuffer,
        fits: Callable[[dict[str, Any]], object] = lambda state: None,
    ) -> dict[str, Any] | None:
        """Fill ``replay`` and return the state, or None if there is no checkpoint.

        The checkpoint before is used where the last one is damaged, or ``fits`` raises UserError
        for it. Raises UserError if neither will do.
        """
        faults: list[str] = []
        for file in (self.state_file, self.previous_file):
            if not file.exists():
                continue
            try:
                state = self._read(file)
                self._read_log(replay, state)
                fits(state)
            except UserError as error:
                faults.append(str(error))
                continue
            except OSError:
                raise
            except Exception as error:  # a state may be anything, and so may what it leads to
                faults.append(f"{file} is no state of this job ({type(error).__name__})")
                continue
            if faults:
                print(f"{faults[0]}; going on from the checkpoint before it", file=sys.stderr)
                # Or the next save would put the damaged one in its place.
                self.previous_file.replace(self.state_file)
            return state
        if faults:
            raise UserError(
                f"{'; '.join(faults)}: no checkpoint is intact, so delete {self.folder.parent} to "
                "train it again from the start"
            )
        return None

    def keep(self, replay: ReplayBuffer) -> None:
        """Append the replay records that are new: ``replay`` is about to overwrite them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.checksum = self._append(replay)
        self.saved = replay.added

    def records(self, replay: ReplayBuffer, first: int, last: int) -> Iterator[Sequence[Tensor]]:
        """Yield the transitions ``first``..``last`` - 1 of the log: six tensors [S, field] each.

        They are there however few of them ``replay`` keeps.
        """
        record = replay.records[0]
        with self.replay_file.open("rb") as file:
            file.seek(first * record.nbytes)
            for _ in range(first, last):
                data = bytearray(file.read(record.nbytes))
                row = torch.frombuffer(data, dtype=torch.float32).view(record.shape)
                yield torch.split(row, replay.sizes, dim=-1)

    def load_state(self) -> dict[str, Any] | None:
        """Read the newest intact state alone. Raises UserError if there are only damaged ones."""
        faults: list[UserError] = []
        for file in (self.state_file, self.previous_file):
            if file.exists():
                try:
                    return self._read(file)
                except UserError as error:
                    faults.append(error)
        if faults:
            raise UserError(
                f"{faults[0]}; delete {self.folder.parent} and run again to train it from the start"
            )
        return None

    def _read(self, file: Path) -> dict[str, Any]:
        """Read a state. Raises UserError if it is damaged, or another job's."""
        state = read_state(file)
        # States of before November 2026 do not say whose they are.
        if self.job is not None and state.get("job") not in (None, self.job, *self.earlier):
            raise UserError(f"{file} is another job's")
        return state

    def tidy(self, *, keep_replay: bool) -> None:
        """Delete what a finished job needs no more: the state before and, if asked, the replay log.

        With the log it can be given more steps.
        """
        self.previous_file.unlink(missing_ok=True)
        if not keep_replay:
            self.replay_file.unlink(missing_ok=True)

    def _append(self, replay: ReplayBuffer) -> int:
        """Write the records that are new; return the checksum of the log with them."""
        checksum = self.checksum
        with open(self.replay_file, "ab", opener=plain_opener) as file:
            file.truncate(self.saved * replay.records[0].nbytes)
            for start in range(self.saved, replay.added, CHUNK):
                number = torch.arange(start, min(start + CHUNK, replay.added))
                rows = replay.records[number.to(replay.records.device) % replay.capacity]
                data = rows.cpu().numpy().tobytes()
                file.write(data)
                checksum = crc32(data, checksum)
            file.flush()
            os.fsync(file.fileno())
        return checksum

    def _read_log(self, replay: ReplayBuffer, state: dict[str, Any]) -> None:
        """Fill ``replay`` with the records that belong to ``state``."""
        added, record_bytes, checksum = state["replay_added"], replay.records[0].nbytes, 0
        oldest = added - min(added, replay.capacity)
        try:
            if self.replay_file.stat().st_size < added * record_bytes:
                raise UserError(f"{self.replay_file} is cut off")
            with open(self.replay_file, "rb", opener=plain_opener) as file:
                for start in range(0, added, CHUNK):
                    data = bytearray(file.read(min(CHUNK, added - start) * record_bytes))
                    checksum = crc32(data, checksum)
                    rows = torch.frombuffer(data, dtype=torch.float32)
                    rows = rows.view(-1, *replay.records.shape[1:])[max(0, oldest - start) :]
                    number = torch.arange(max(start, oldest), max(start, oldest) + len(rows))
                    replay.records[number % replay.capacity] = rows.to(replay.records.device)
        except OSError as error:
            raise UserError(f"{self.replay_file} cannot be read: {error.strerror}") from error
        if state.get("replay_checksum", checksum) != checksum:
            raise UserError(f"{self.replay_file} is damaged: its checksum is another")
        self.saved = replay.added = added
        self.checksum = checksum


def read_state(file: Path) -> dict[str, Any]:
    """Read a state, onto the CPU. Executes no code from the file: ``weights_only``.

    Raises UserError if it is damaged, or is no state.
    """
    try:
        with open(file, "rb", opener=plain_opener) as opened:
            size = os.fstat(opened.fileno()).st_size
            if size > LARGEST_STATE:
                raise UserError(f"{file} is damaged: it has {size:,} bytes")
            # torch writes the checksum of every record, but does not look at them when it reads.
            with zipfile.ZipFile(opened) as archive:
                records = archive.infolist()
                # It packs nothing, so what takes more room unpacked is not from there.
                if sum(record.file_size for record in records) > size:
                    raise UserError(f"{file} is damaged: it would unpack to more than it is")
                damaged = archive.testzip()
            if damaged:
                raise UserError(f"{file} is damaged: the checksum of {damaged!r} is another")
            opened.seek(0)
            state = torch.load(opened, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # neither zipfile nor torch raises one kind for a damaged file
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{file} cannot be read: {reason}") from error
    whole = ("replay_added", "replay_checksum", "format", "step")
    kinds: dict[str, Any] = {**dict.fromkeys(whole, int), "job": str | None, "agent": dict}
    if not isinstance(state, dict) or not all(
        isinstance(state[key], kind) for key, kind in kinds.items() if key in state
    ):
        raise UserError(f"{file} is not a checkpoint's state")
    if state.get("format", 1) != FORMAT:
        raise UserError(
            f"{file} is of format {state.get('format', 1)}, and this version of qsm_bench reads "
            f"format {FORMAT}: use the version that its manifest names"
        )
    return state
