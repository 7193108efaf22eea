"""A training of candidate generation that begins with the weights of an earlier one.

    manifest.json               "origin": whence the weights come, for people; null: training begins at random
    query_tower/                SavedModel, of which the weights alone are read
    candidate_embeddings.npy    float32 [V, D], perhaps followed by rows of videos outside the vocabulary
    vocabularies/<space>/       which id stands in which row

Between two days of logs vocabularies change: rows are found by id. Ids that are new begin where they would in a training
from random weights, and those that are gone are dropped. Layers are taken over as they are, and there is no warm start
where a shape differs. Adagrad's accumulators begin anew: taken over, they make the steps of whatever changed since too
small (docs/training.md has the figures).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf

from watchnext.errors import InputError
from watchnext.features.batches import Vocabulary

if TYPE_CHECKING:
    from watchnext.models.retrieval import RetrievalModel

MANIFEST = "manifest.json"
CANDIDATES = "candidate_embeddings.npy"
TOWER = "query_tower"
VOCABULARIES = "vocabularies"

_VIDEO = "video"


@dataclass(frozen=True)
class WarmStart:
    """The weights of a trained model, and what their rows are of.

    Attributes:
        inputs: names of the query tower's inputs.
        weights: of the query tower, in the order of its `weights`; those of tables with their row of padding.
        candidates: float32 [V, D], row r is index r + 1.
        ids: id space -> [V] ids of the vocabulary, in its order.
        origin: whence it comes, for people.
    """

    inputs: tuple[str, ...]
    weights: tuple[npt.NDArray[np.float32], ...]
    candidates: npt.NDArray[np.float32]
    ids: Mapping[str, pa.Array]
    origin: str

    @classmethod
    def of(cls, model: "RetrievalModel", ids: Mapping[str, pa.Array], origin: str) -> "WarmStart":
        """The weights of a model.

        Args:
            model: trained.
            ids: see WarmStart.
            origin: see WarmStart.
        """
        tower = model.query_tower
        return cls(
            tuple(spec.name for spec in tower.features),
            tuple(variable.numpy() for variable in tower.weights),
            model.candidate_embeddings.numpy(),
            ids,
            origin,
        )

    @classmethod
    def load(cls, directory: Path) -> "WarmStart | None":
        """Read the folder that the module's docstring describes. None: training is to begin at random.

        Raises:
            InputError: it is not there, or damaged.
        """
        try:
            manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
            if manifest["origin"] is None:
                return None
            reader = tf.train.load_checkpoint(str(directory / TOWER / "variables" / "variables"))
            names = [f"tower_weights/{number}" for number in range(len(reader.get_variable_to_shape_map()))]
            keys = [f"{name}/.ATTRIBUTES/VARIABLE_VALUE" for name in names]
            weights = tuple(reader.get_tensor(key) for key in keys if reader.has_tensor(key))
            ids = {
                folder.name: Vocabulary.load(folder).tokens
                for folder in sorted((directory / VOCABULARIES).iterdir())
            }
            candidates = np.load(directory / CANDIDATES, allow_pickle=False)[: len(ids[_VIDEO])]
            return cls(tuple(manifest["inputs"]), weights, candidates, ids, manifest["origin"])
        except (OSError, KeyError, ValueError, tf.errors.OpError) as error:
            raise InputError(
                "the weights that training is to begin with cannot be read",
                where=str(directory),
                offenders=[str(error).splitlines()[0] if str(error) else type(error).__name__],
                remedy="run `dvc repro --force --single-item choose_start`, or set train_retrieval.warm_start to none",
            ) from error

    @staticmethod
    def write_none(directory: Path) -> Path:
        """Make the folder from which `load` reads that training is to begin at random. Returns it."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / MANIFEST).write_text('{"origin": null}\n', encoding="utf-8")
        return directory

    @property
    def digest(self) -> str:
        """sha256 over inputs, weights and ids."""
        digest = hashlib.sha256(json.dumps(self.inputs).encode())
        for array in (*self.weights, self.candidates):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        for space, ids in sorted(self.ids.items()):
            digest.update(json.dumps([space, ids.to_pylist()]).encode())
        return digest.hexdigest()

    def apply(self, model: "RetrievalModel", ids: Mapping[str, pa.Array], where: str) -> int:
        """Give the weights to a model whose variables exist.

        Args:
            model: of a training that has not begun.
            ids: id space -> [V] ids of the vocabulary that it is trained with.
            where: named in errors.

        Returns:
            How many of its candidates were found.

        Raises:
            InputError: it is another network: other inputs, or a shape that differs.
        """
        tower = model.query_tower
        space_of = {id(table.table): space for space, table in tower.tables.items()}
        spaces = [space_of.get(id(variable)) for variable in tower.weights]
        pairs = [(variable, space, 1) for variable, space in zip(tower.weights, spaces, strict=True)]
        pairs.append((model.candidate_embeddings, _VIDEO, 0))
        mine = [*self.weights, self.candidates]
        names = tuple(spec.name for spec in tower.features)
        differences = (
            [f"inputs {', '.join(self.inputs)}; now {', '.join(names)}"] if names != self.inputs else []
        )
        if len(mine) != len(pairs):
            differences.append(f"{len(mine)} weights; now {len(pairs)}")
        for values, (variable, space, _) in zip(mine, pairs, strict=False):
            rows = 0 if space is None else 1
            if values.shape[rows:] != tuple(variable.shape[rows:]):
                differences.append(f"{variable.name} {values.shape}; now {tuple(variable.shape)}")
        if differences:
            raise InputError(
                f"training cannot begin with the weights of {self.origin}: they are of another network",
                where=where,
                offenders=differences,
                remedy="set train_retrieval.warm_start to none for one training with the settings of now; those after "
                "it can begin with its weights",
            )
        found = 0
        for values, (variable, space, padding) in zip(mine, pairs, strict=True):
            if space is None:
                variable.assign(values)
                continue
            places = _places(self.ids.get(space), ids[space])
            kept = np.flatnonzero(places >= 0)
            found = len(kept)
            # Only the rows that are known: the others keep what they were given at random.
            variable.assign(_with_rows(variable.numpy(), kept + padding, values[places[kept] + padding]))
        return found


def _with_rows(array: npt.NDArray[Any], rows: npt.NDArray[Any], values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array[rows] = values
    return array


def _places(ids: pa.Array | None, wanted: pa.Array) -> npt.NDArray[np.int64]:
    """[N] where each of `wanted` stands among `ids`; -1: nowhere. Ids of another type are other ids."""
    if ids is None or ids.type != wanted.type:
        return np.full(len(wanted), -1, np.int64)
    return np.asarray(pc.fill_null(pc.index_in(wanted, value_set=ids), -1).to_numpy(), np.int64)
