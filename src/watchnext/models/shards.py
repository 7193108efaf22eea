"""Training examples in shards, of which one at a time is in memory.

Every example is put into a shard at random once, when it is encoded. In an epoch the shards are gone through in a random
order, and the examples of each in a random order: a shuffle of all of them in two steps, neither of which needs more memory
than a shard. Examples that fit are one shard, which never touches the disk.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Union

import numpy as np
import numpy.typing as npt

Arrays = dict[str, np.ndarray]

_READ_AT_ONCE = 1 << 24  # bytes


class Shards:
    """Encoded examples.

    Args:
        rows: how many each shard has.
        names: of the arrays.
        load: number of a shard -> its arrays, name -> [rows, ...].
        update_digest: feeds a hash with all that decides what the arrays hold.
        folder: that holds them, and nothing else; None for memory.
    """

    def __init__(
        self,
        rows: Sequence[int],
        names: Sequence[str],
        load: Callable[[int], Arrays],
        update_digest: Callable[[Any], None],
        folder: Path | None = None,
    ) -> None:
        self.rows = tuple(rows)
        self.names = tuple(names)
        self.load = load
        self.update_digest = update_digest
        self.folder = folder

    @classmethod
    def of(cls, examples: Union[Mapping[str, np.ndarray], "Shards"]) -> "Shards":
        """Arrays in memory as one shard; shards as they are."""
        if isinstance(examples, Shards):
            return examples
        arrays = dict(examples)
        rows = len(next(iter(arrays.values()))) if arrays else 0

        def update(digest: Any) -> None:
            for name in sorted(arrays):
                array = np.ascontiguousarray(arrays[name])
                digest.update(f"{name}{array.dtype.str}{array.shape}".encode())
                digest.update(array.data if array.size else b"")

        return cls([rows], tuple(arrays), lambda _: arrays, update)

    @property
    def num_rows(self) -> int:
        return sum(self.rows)

    @property
    def in_memory(self) -> bool:
        """Whether all examples are held at once."""
        return len(self.rows) == 1

    def parts(self) -> Iterator[Arrays]:
        """The arrays of one shard after the other."""
        for number in range(len(self.rows)):
            yield self.load(number)

    def through(self, change: Callable[[Arrays], Arrays], names: Sequence[str]) -> "Shards":
        """The same examples, their arrays changed: once of what is in memory, else whenever a shard is read.

        Args:
            change: arrays of a shard -> arrays of as many rows.
            names: of the arrays that it gives.
        """
        if self.in_memory:
            changed = change(self.load(0))
            return Shards(self.rows, names, lambda _: changed, self.update_digest, self.folder)
        return Shards(
            self.rows, names, lambda number: change(self.load(number)), self.update_digest, self.folder
        )

    def where(self, keep: Callable[[Arrays], npt.NDArray[np.bool_]]) -> "Shards":
        """Some of the examples, chosen whenever a shard is read.

        Args:
            keep: arrays of a shard -> which of its examples, the same each time. A shard of which it keeps none is left out.
        """

        def load(place: int) -> Arrays:
            arrays = self.load(filled[place])
            some = np.flatnonzero(keep(arrays))
            return {name: array[some] for name, array in arrays.items()}

        def update(digest: Any) -> None:
            self.update_digest(digest)
            for part in self.parts():
                digest.update(np.packbits(keep(part)).data)

        rows = [int(np.count_nonzero(keep(part))) for part in self.parts()]
        filled = np.flatnonzero(rows).tolist()
        return Shards([rows[number] for number in filled], self.names, load, update, self.folder)

    def remove(self) -> None:
        """Remove what is on disk, where anything is: the examples were trained on."""
        if self.folder is not None:
            shutil.rmtree(self.folder)


def write_shards(parts: Iterable[Arrays], directory: Path, *, num_shards: int, seed: int) -> Shards:
    """Deal examples to shards on disk, as they come.

    Args:
        parts: arrays of some of the examples, name -> [any, ...], all of them with the same names, types and widths.
        directory: gets the shards; has to be there.
        num_shards: how many, of about the same size.
        seed: decides which example comes into which.

    Returns:
        Shards without examples are left out.
    """
    draw = np.random.default_rng(seed)
    rows = np.zeros(num_shards, np.int64)
    kinds: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}

    def path(name: str, number: int) -> Path:
        return directory / f"{name}-{number:05d}"

    for arrays in parts:
        kinds = kinds or {name: (array.dtype, array.shape[1:]) for name, array in arrays.items()}
        total = len(next(iter(arrays.values())))
        shard = draw.integers(num_shards, size=total)
        order = np.argsort(shard, kind="stable")
        ends = np.cumsum(np.bincount(shard, minlength=num_shards))
        rows += np.diff(ends, prepend=0)
        for name, (kind, width) in kinds.items():
            array = arrays[name]
            assert (array.dtype, array.shape[1:]) == (kind, width), f"{name} is not of one kind throughout"
            array = array[order]
            for number, (begin, end) in enumerate(zip(np.append(0, ends), ends, strict=False)):
                if end > begin:
                    with path(name, number).open("ab") as file:
                        array[begin:end].tofile(file)
    filled = np.flatnonzero(rows).tolist()

    def load(place: int) -> Arrays:
        # Read, not mapped: pages of a mapping would count as this process's memory, more of them in every step.
        return {
            name: np.fromfile(path(name, filled[place]), kind).reshape(-1, *width)
            for name, (kind, width) in kinds.items()
        }

    def update(digest: Any) -> None:
        for name in sorted(kinds):
            kind, width = kinds[name]
            digest.update(f"{name}{kind.str}{width}".encode())
            for number in filled:
                digest.update(_digest_of(path(name, number)))

    return Shards([int(rows[number]) for number in filled], tuple(kinds), load, update, directory)


def _digest_of(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_AT_ONCE):
            digest.update(block)
    return digest.digest()
