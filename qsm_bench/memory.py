"""How much memory is free, and how much an agent's update needs."""

import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CGROUPS = Path("/sys/fs/cgroup")
SMALL = 2
"""``estimate_peak`` runs this size and the next. At size 1 a program may run differently."""


def available_bytes(device: str) -> int:
    """The free bytes of a device: of the GPU, or of the machine or the container, if less."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    return min([psutil.virtual_memory().available, *_left_in_groups(CGROUPS, _own_group())])


def _own_group() -> str:
    """The control group (version 2) of this process, as a path below the root group."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return ""
    return next((line[3:].strip("/") for line in lines if line.startswith("0::")), "")


def _left_in_groups(root: Path, own: str) -> list[int]:
    """The bytes left by each limit of a group and of the groups above it; empty without limits."""
    left = []
    folders = [root / own, *(root / own).parents]
    places = [
        (folder, "memory.max", "memory.current", "inactive_file")
        for folder in folders[: folders.index(root) + 1]
    ]
    places.append(
        (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    )
    for folder, limit, usage, reclaimable in places:
        try:
            most, used = int((folder / limit).read_text()), int((folder / usage).read_text())
            facts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # there is no limit: "max", or no such file
            continue
        left.append(max(0, most - used + int(facts.get(reclaimable, 0))))
    return left


class Allocations(TorchDispatchMode):
    """Records the sizes of tensors in bytes: positive when allocated, negative when freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.changes: list[int] = []
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), settings: Any = None
    ) -> Any:
        """Call the function, and record the tensors that it allocated."""
        result = function(*arguments, **(settings or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.changes.append(size)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.changes.append(-size)


def estimate_peak(work: Callable[[int], object], size: int) -> int:
    """Estimate the most bytes that tensors take at once in ``work(size)``, without running that.

    It runs at two small sizes instead. Each allocation has a constant part and a part that grows
    with the size. Both follow from the two runs, if they make the same allocations in order.
    """
    one, two = (_changes(work, count) for count in (SMALL, SMALL + 1))
    if len(one) != len(two):  # it runs differently at different sizes: compare the peaks only
        one, two = [_highest(one)], [_highest(two)]
    grown = [a + (b - a) * (size - SMALL) for a, b in zip(one, two, strict=True)]
    return _highest(grown)


def measure_peak(work: Callable[[], object]) -> int:
    """Run ``work``; return the most bytes that the tensors it makes or returns take at once.

    A tensor that was there before counts from the moment that an operation returns it.
    """
    return _highest(_changes(lambda _: work(), 0))


def saved_bytes(loss: Callable[[], torch.Tensor], apart_from: Iterable[torch.Tensor]) -> int:
    """Return the bytes that the graph of ``loss()`` keeps for its backward pass.

    A storage that several operations save counts once; those of ``apart_from`` do not count.
    """
    held: weakref.WeakSet[_Saved] = weakref.WeakSet()

    def save(tensor: torch.Tensor) -> _Saved:
        saved = _Saved(tensor.detach())
        held.add(saved)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(save, lambda saved: saved.tensor):
        graph = loss()
    storages = [saved.tensor.untyped_storage() for saved in held]
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    del graph  # it has kept all of them until here
    known = {tensor.untyped_storage().data_ptr() for tensor in apart_from}
    return sum(size for place, size in sizes.items() if place not in known)


class _Saved:
    """A tensor that a graph keeps."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def _changes(work: Callable[[int], object], size: int) -> list[int]:
    allocations = Allocations()
    with allocations:
        work(size)
    return list(allocations.changes)


def _highest(changes: list[int]) -> int:
    now = highest = 0
    for change in changes:
        now += change
        highest = max(highest, now)
    return highest
