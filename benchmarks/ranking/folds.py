"""What every model of the benchmark is given: the impressions before one day, and those of that day to score.

Every value is as of the instant of its impression or earlier, and the same for all models. Arrays travel as npy
files without pickles.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np


@dataclasses.dataclass(frozen=True)
class Input:
    """One input, as `watchnext.features.batches.FeatureSpec` describes it.

    Attributes:
        name: of the input.
        kind: categorical int32 [N], multivalent int32 [N, length] padded with 0, continuous or unit float32 [N],
            NaN = missing.
        space: id space of a categorical or multivalent input: equal codes of one space are the same thing.
        length: width of a multivalent input.
        side: `query` or `impression`.
    """

    name: str
    kind: str
    space: str | None
    length: int | None
    side: str


@dataclasses.dataclass(frozen=True)
class Rows:
    """Impressions with their inputs and outcomes, in the order in which they were shown.

    Attributes:
        inputs: name -> [num_rows, ...], see Input.
        clicked: bool [num_rows].
        watch_time_s: float32 [num_rows] seconds, 0 where unclicked.
        groups: int64 [num_rows]; pairs are made within a group.
        users: int64 [num_rows], the same code for one user on all days.
    """

    inputs: dict[str, np.ndarray]
    clicked: np.ndarray
    watch_time_s: np.ndarray
    groups: np.ndarray
    users: np.ndarray

    def __len__(self) -> int:
        return len(self.clicked)

    def save(self, directory: Path) -> None:
        """Write every array as npy into `directory`."""
        (directory / "inputs").mkdir(parents=True)
        for name, array in self.inputs.items():
            np.save(directory / "inputs" / f"{name}.npy", array)
        for name in OUTCOMES:
            np.save(directory / f"{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, directory: Path) -> "Rows":
        """Read what `save` wrote."""
        inputs = {
            path.stem: np.load(path, allow_pickle=False)
            for path in sorted((directory / "inputs").glob("*.npy"))
        }
        return cls(inputs, *(np.load(directory / f"{name}.npy", allow_pickle=False) for name in OUTCOMES))


OUTCOMES = ("clicked", "watch_time_s", "groups", "users")


@dataclasses.dataclass(frozen=True)
class Fold:
    """One day to predict, and what came before it.

    Attributes:
        inputs: what a row has.
        sizes: id space -> number of ids that the training rows hold; codes run from 1, 0 is any other.
        boundaries: continuous input -> ascending quantiles of the training rows, empty where all are missing.
        training: impressions of the days before.
        held: impressions of the day.
    """

    inputs: tuple[Input, ...]
    sizes: dict[str, int]
    boundaries: dict[str, np.ndarray]
    training: Rows
    held: Rows

    def named(self, *kinds: str) -> Sequence[Input]:
        """The inputs of these kinds."""
        return [one for one in self.inputs if one.kind in kinds]

    def save(self, directory: Path) -> None:
        """Write everything into `directory`."""
        directory.mkdir(parents=True)
        described = {
            "inputs": [dataclasses.asdict(one) for one in self.inputs],
            "sizes": self.sizes,
            "boundaries": {name: values.tolist() for name, values in self.boundaries.items()},
        }
        (directory / "fold.json").write_text(json.dumps(described) + "\n")
        self.training.save(directory / "training")
        self.held.save(directory / "held")

    @classmethod
    def load(cls, directory: Path) -> "Fold":
        """Read what `save` wrote."""
        described = json.loads((directory / "fold.json").read_text())
        return cls(
            tuple(Input(**one) for one in described["inputs"]),
            described["sizes"],
            {name: np.asarray(values, np.float64) for name, values in described["boundaries"].items()},
            Rows.load(directory / "training"),
            Rows.load(directory / "held"),
        )
