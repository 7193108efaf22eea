"""From stored examples to arrays: ids become indices of a vocabulary, bags become padded rows.

Examples are stored with the ids of the logs, and looked up here, with the vocabularies of whoever consumes
them. So a champion and its challenger judge the same rows, each with its own vocabularies, and serving runs
the same code as training.
"""

import datetime
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from watchnext.errors import InputError
from watchnext.features.quantiles import read_boundaries

Kind = Literal["categorical", "multivalent", "continuous", "unit"]
Column: TypeAlias = pa.Array | pa.ChunkedArray | npt.NDArray[np.float64] | list[Any]
"""Values of one input: in Arrow; numbers also in NumPy, NaN = null; and a few values as a list, None = null."""

Columns: TypeAlias = pa.Table | Mapping[str, Column]
Arrays = dict[str, npt.NDArray[Any]]

OPENING = "opening__"
"""Prefix of columns of ranking examples: a feature as of the first impression of its user, surface and day."""

ADDED_INPUTS = "added_inputs.json"
"""Ranking inputs beside those of the manifest, see `Encoder.with_inputs`."""

PAGED_SHARE = 0.5
"""Logs know pages where at least this share of a day's impressions is not alone in its request."""

UNWATCHED_LABEL = "unwatched_label"
"""Column of training examples of candidate generation: the label was shown and not watched."""

_DENSE_LOOKUP_SLACK = 16
_SMALL_BATCH = 4096


@dataclass(frozen=True)
class FeatureSpec:
    """What a model needs to know of one input.

    Attributes:
        name: of the input, and of the column in the examples.
        kind: categorical int32 [N], multivalent int32 [N, length], continuous float32 [N], unit float32 [N] in
            [0, 1] with NaN for unknown (paper, section 3.3: "normalized to [0, 1]").
        space: id space whose vocabulary it is looked up in; None for continuous. A unit with a space is the place
            of the value in the vocabulary, the most frequent value 0 and the rarest 1.
        length: width of a multivalent input's padded rows; None for the others.
        side: `query` (one value per request) or `impression` (one per video of the request).
        training_only: known of what was shown, and of nothing that has yet to be ranked. Where its column is
            absent the encoder gives what stands for an unknown value, so that it tells the same of every video.
        within: of one that is known in training alone, the input for each of whose values it counts by itself.
    """

    name: str
    kind: Kind
    space: str | None = None
    length: int | None = None
    side: Literal["query", "impression"] = "query"
    training_only: bool = False
    within: str | None = None


def write_manifest(
    path: Path,
    *,
    source: str,
    time_zone: str,
    data_digest: str,
    days: Mapping[str, Any],
    trained_until_at: datetime.datetime,
    retrieval: Sequence[FeatureSpec],
    ranking: Sequence[FeatureSpec],
    absent_inputs: Sequence[str],
) -> None:
    """Store what a later stage needs to know of the features: `manifest.json`, read again by `Encoder.load`."""
    lengths = {spec.name: spec.length for spec in (*retrieval, *ranking)}
    manifest = {
        "format": 1,
        "source": source,
        "time_zone": time_zone,
        "data_digest": data_digest,
        "days": days,
        "trained_until_at": trained_until_at.isoformat(),
        "history_length": lengths.get("history"),
        "token_bag_length": lengths.get("search_tokens"),
        "recent_watches_length": lengths.get("recent_watches"),
        "inputs": {
            "retrieval": [spec.name for spec in retrieval],
            "ranking": [spec.name for spec in ranking],
        },
        "absent_inputs": list(absent_inputs),
        "retrieval_features": [asdict(spec) for spec in retrieval],
        "ranking_features": [asdict(spec) for spec in ranking],
    }
    path.write_text(json.dumps(manifest, indent=1) + "\n")


class Vocabulary:
    """The known values of one id space. Index 0 is padding and everything unknown; known values count from 1.

    Args:
        tokens: [V] integers or strings, falling frequency; the value at row r has index r + 1.
        frequency: int64 [V], how often each was seen in training.
    """

    def __init__(self, space: str, tokens: pa.Array, frequency: npt.NDArray[np.int64]) -> None:
        self.space = space
        self.tokens = tokens
        self.frequency = frequency
        self._sorted: npt.NDArray[np.int64] | None = None
        self._dense: npt.NDArray[np.int32] | None = None
        if pa.types.is_integer(tokens.type) and len(tokens):
            values = tokens.to_numpy(zero_copy_only=False).astype(np.int64)
            self._order = np.argsort(values, kind="stable")
            self._sorted = values[self._order]
            self._smallest = int(self._sorted[0])
            span = int(self._sorted[-1]) - self._smallest + 1
            if span <= _DENSE_LOOKUP_SLACK * len(values) + 1_000_000:
                self._dense = np.zeros(span, dtype=np.int32)
                self._dense[values - self._smallest] = np.arange(1, len(values) + 1, dtype=np.int32)

    @classmethod
    def load(cls, directory: Path) -> "Vocabulary":
        """Read `vocabularies/<space>/`.

        Raises:
            InputError: there is none, or its indices do not run from 1 without a gap.
        """
        parts = sorted(directory.glob("part-*.parquet"))
        if not parts:
            raise InputError("there is no vocabulary", where=str(directory), remedy="run the stage featurize")
        table = pa.concat_tables([pq.read_table(part) for part in parts]).sort_by("index").combine_chunks()
        index = table["index"].to_numpy()
        if not np.array_equal(index, np.arange(1, len(index) + 1)):
            raise InputError(
                "the indices of a vocabulary do not run from 1 without a gap", where=str(directory)
            )
        tokens = (
            table["token"].combine_chunks()
            if table.num_rows
            else pa.array([], table.schema.field("token").type)
        )
        if isinstance(tokens, pa.ChunkedArray):
            tokens = tokens.chunk(0)
        return cls(directory.name, tokens, table["frequency"].to_numpy().astype(np.int64))

    def __len__(self) -> int:
        return len(self.tokens)

    def lookup(self, values: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.int32]:
        """[N] ids, null = none -> int32 [N] indices; unknown and null give 0.

        Raises:
            InputError: integers are looked up among strings or the other way round.
        """
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks() if values.num_chunks != 1 else values.chunk(0)
        if isinstance(values, pa.ChunkedArray):
            values = values.chunk(0) if values.num_chunks else pa.array([], values.type)
        if pa.types.is_null(values.type) or len(self.tokens) == 0:
            return np.zeros(len(values), dtype=np.int32)
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if pa.types.is_integer(values.type) != pa.types.is_integer(self.tokens.type):
            raise InputError(
                f"ids of type {values.type} are looked up in a vocabulary of type {self.tokens.type}",
                where=f"vocabulary {self.space}",
                offenders=values[:3].to_pylist(),
                remedy="ids of one space have one type: ingest the same logs that the model was trained on",
            )
        if pa.types.is_integer(values.type):
            return self._lookup_integers(values)
        if len(values) <= _SMALL_BATCH:
            # index_in hashes the whole vocabulary on every call: too dear for one request.
            known = self._known
            return np.fromiter((known.get(value, 0) for value in values.to_pylist()), np.int32, len(values))
        found = pc.index_in(values.cast(self.tokens.type), value_set=self.tokens)
        return (pc.fill_null(found, -1).to_numpy(zero_copy_only=False) + 1).astype(np.int32)

    def index_of(self, value: Any) -> int:
        """Index of one value; 0 for one that is unknown or of another type."""
        if self._sorted is None:
            return self._known.get(value, 0)
        if not isinstance(value, int):
            return 0
        if self._dense is not None:
            shifted = value - self._smallest
            return int(self._dense[shifted]) if 0 <= shifted < len(self._dense) else 0
        if not int(self._sorted[0]) <= value <= int(self._sorted[-1]):
            return 0
        place = int(np.searchsorted(self._sorted, value))
        return int(self._order[place]) + 1 if self._sorted[place] == value else 0

    @cached_property
    def _known(self) -> dict[Any, int]:
        return {token: index for index, token in enumerate(self.tokens.to_pylist(), start=1)}

    def _lookup_integers(self, values: pa.Array) -> npt.NDArray[np.int32]:
        assert self._sorted is not None
        whole = pc.fill_null(values, 0) if values.null_count else values
        plain = whole.to_numpy(zero_copy_only=False).astype(np.int64)
        if self._dense is not None:
            shifted = plain - self._smallest
            inside = (shifted >= 0) & (shifted < len(self._dense))
            indices = np.where(inside, self._dense[np.where(inside, shifted, 0)], 0).astype(np.int32)
        else:
            place = np.minimum(np.searchsorted(self._sorted, plain), len(self._sorted) - 1)
            indices = np.where(self._sorted[place] == plain, self._order[place] + 1, 0).astype(np.int32)
        if values.null_count:
            indices[values.is_null().to_numpy(zero_copy_only=False)] = 0
        return indices


class Encoder:
    """Vocabularies and manifest of one training, applied to raw examples.

    Attributes:
        manifest: the features' manifest.json.
        vocabularies: id space -> Vocabulary.
        sizes: id space -> V, the number of known values; an embedding table needs V + 1 rows, row 0 is zero.
        quantiles: continuous ranking feature -> float64 boundaries [count], [0] where it is always missing.
        retrieval_features: inputs of the query tower, in order.
        ranking_features: inputs of the ranker, in order.
    """

    def __init__(
        self,
        manifest: Mapping[str, Any],
        vocabularies: Mapping[str, Vocabulary],
        quantiles: Mapping[str, npt.NDArray[np.float64]],
    ) -> None:
        self.manifest = manifest
        self.vocabularies = vocabularies
        self.quantiles = quantiles
        self.sizes = {space: len(vocabulary) for space, vocabulary in vocabularies.items()}
        self.retrieval_features = tuple(FeatureSpec(**spec) for spec in manifest["retrieval_features"])
        self.ranking_features = tuple(FeatureSpec(**spec) for spec in manifest["ranking_features"])

    @classmethod
    def load(cls, directory: Path) -> "Encoder":
        """Read the outputs of the stage featurize, or the folder `features/` of a bundle.

        Raises:
            InputError: a file is missing.
        """
        path = directory / "manifest.json"
        if not path.exists():
            raise InputError("there are no features here", where=str(path), remedy="run the stage featurize")
        manifest = json.loads(path.read_text())
        spaces = sorted(entry for entry in (directory / "vocabularies").iterdir() if entry.is_dir())
        return cls(
            manifest,
            {entry.name: Vocabulary.load(entry) for entry in spaces},
            read_boundaries(directory / "quantiles.json"),
        ).with_inputs(directory / ADDED_INPUTS)

    def with_inputs(self, path: Path) -> "Encoder":
        """This encoder with further ranking inputs, their vocabularies and quantiles; itself if there is no such file.

        Inputs that candidate generation makes for the ranker are known only once it is trained.
        """
        if not path.is_file():
            return self
        added = json.loads(path.read_text(encoding="utf-8"))
        vocabularies = {
            space: Vocabulary(space, pa.array(tokens, pa.string()), np.ones(len(tokens), np.int64))
            for space, tokens in added["vocabularies"].items()
        }
        quantiles = {name: np.asarray(values, np.float64) for name, values in added["quantiles"].items()}
        specs = [*self.manifest["ranking_features"], *added["ranking_features"]]
        return Encoder(
            {**self.manifest, "ranking_features": specs},
            {**self.vocabularies, **vocabularies},
            {**self.quantiles, **quantiles},
        )

    def encode_retrieval(self, columns: Columns) -> Arrays:
        """Inputs of the query tower.

        Args:
            columns: retrieval examples, or the same columns of requests (then without `video_id`). In a
                mapping, columns of length 1 are repeated for every row.

        Returns:
            One array per retrieval feature (see FeatureSpec); `label` int32 [N] if `video_id` is given; `user`
            int64 [N] if `user_id` is, equal for equal users; `unwatched_label` float32 [N], 1 or 0, if that is.
        """
        arrays = self._encode(columns, self.retrieval_features)
        if "video_id" in _names(columns):
            arrays["label"] = self.vocabularies["video"].lookup(columns["video_id"])
        if "user_id" in _names(columns):
            arrays["user"] = stable_hash(columns["user_id"])
        if UNWATCHED_LABEL in _names(columns):
            arrays[UNWATCHED_LABEL] = np.asarray(columns[UNWATCHED_LABEL], np.float32)
        return arrays

    def encode_ranking(
        self, columns: Columns, encoded: Mapping[str, npt.NDArray[Any]] | None = None
    ) -> Arrays:
        """Inputs of the ranker.

        Args:
            columns: ranking examples, or what `evaluate_request` makes of a request, where the query side has one
                row for all impressions.
            encoded: inputs that need no columns, because they are known as arrays already.

        Returns:
            One array per ranking feature, of as many rows as its column (0 or NaN throughout for a `training_only` one
            whose column is absent), and `clicked`, `watch_time_s` float32 [N] where they are given.
        """
        encoded = encoded or {}
        wanted = [spec for spec in self.ranking_features if spec.name not in encoded]
        arrays = {**encoded, **self._encode(columns, wanted, repeat=False)}
        for name in ("clicked", "watch_time_s"):
            if name in _names(columns):
                arrays[name] = _floats(columns[name])
        return arrays

    def encode_some(self, columns: Columns, names: Sequence[str]) -> Arrays:
        """Of the inputs of the ranker those of these names, as `encode_ranking` makes them."""
        return self._encode(
            columns, [spec for spec in self.ranking_features if spec.name in names], repeat=False
        )

    def _encode(self, columns: Columns, specs: Sequence[FeatureSpec], *, repeat: bool = True) -> Arrays:
        names = _names(columns)
        missing = [spec.name for spec in specs if spec.name not in names and not spec.training_only]
        if missing:
            raise InputError(
                "the examples lack inputs that this model was trained with",
                offenders=missing,
                remedy="featurize logs that have them, or train on logs that lack them",
            )
        rows = max((len(columns[spec.name]) for spec in specs if spec.name in names), default=0)
        arrays: Arrays = {}
        for spec in specs:
            column = columns[spec.name] if spec.name in names else pa.nulls(rows)
            array = self._encode_one(column, spec)
            if repeat and len(array) == 1 and rows > 1:
                array = np.repeat(array, rows, axis=0)
            arrays[spec.name] = array
        return arrays

    def _encode_one(self, column: Column, spec: FeatureSpec) -> npt.NDArray[Any]:
        if isinstance(column, list) and len(column) == 1:
            return self._encode_value(column[0], spec)
        if spec.kind == "continuous":
            return _floats(column)
        if spec.kind == "unit" and spec.space is None:
            return np.clip(_floats(column), 0.0, 1.0)
        assert spec.space is not None
        vocabulary = self.vocabularies[spec.space]
        column = pa.array(column) if isinstance(column, list | np.ndarray) else column
        if spec.kind == "categorical":
            return vocabulary.lookup(column)
        if spec.kind == "unit":
            index = vocabulary.lookup(column)
            place = (index - 1) / max(1, len(vocabulary) - 1)
            return np.where(index > 0, place, np.nan).astype(np.float32)
        assert spec.length is not None
        return pad(column, vocabulary, spec.length)

    def _encode_value(self, value: Any, spec: FeatureSpec) -> npt.NDArray[Any]:
        """`_encode_one` of a single value: a request has dozens, and each costs Arrow more than it is worth."""
        if spec.space is None:
            number = math.nan if value is None else float(value)
            return np.array([min(max(number, 0.0), 1.0) if spec.kind == "unit" else number], np.float32)
        vocabulary = self.vocabularies[spec.space]
        if spec.kind == "multivalent":
            assert spec.length is not None
            indices = [vocabulary.index_of(one) for one in (value or [])[-spec.length :]]
            return np.array([indices + [0] * (spec.length - len(indices))], np.int32)
        index = vocabulary.index_of(value)
        if spec.kind == "categorical":
            return np.array([index], np.int32)
        return np.array([(index - 1) / max(1, len(vocabulary) - 1) if index else math.nan], np.float32)


def stable_hash(ids: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """[N] ids -> int64 [N]: integers as they are, strings by their md5, the same in every process. None is null."""
    if pa.types.is_integer(ids.type):
        return ids.to_numpy().astype(np.int64)
    encoded = pc.dictionary_encode(ids)
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    digests = (hashlib.md5(value.encode()).digest()[:8] for value in encoded.dictionary.to_pylist())
    hashes = np.array([int.from_bytes(digest, "little", signed=True) for digest in digests], dtype=np.int64)
    return hashes[encoded.indices.to_numpy()]


def pad(bags: pa.Array | pa.ChunkedArray, vocabulary: Vocabulary, length: int) -> npt.NDArray[np.int32]:
    """[N] lists -> int32 [N, length] indices: the last `length` of each list, in its order, then zeros."""
    chunks = bags.chunks if isinstance(bags, pa.ChunkedArray) else [bags]
    padded = np.zeros((sum(len(chunk) for chunk in chunks), length), dtype=np.int32)
    begin = 0
    for chunk in chunks:
        end = begin + len(chunk)
        _pad_into(padded[begin:end], chunk, vocabulary)
        begin = end
    return padded


def _pad_into(padded: npt.NDArray[np.int32], bags: pa.Array, vocabulary: Vocabulary) -> None:
    if len(bags) == 0 or pa.types.is_null(bags.type):
        return
    length = padded.shape[1]
    offsets = bags.offsets.to_numpy().astype(np.int64)
    first = offsets[0]
    indices = vocabulary.lookup(bags.values.slice(first, offsets[-1] - first))
    sizes = np.diff(offsets)
    if bags.null_count:
        sizes = np.where(bags.is_null().to_numpy(zero_copy_only=False), 0, sizes)
    kept = np.minimum(sizes, length)
    starts = offsets[1:] - first - kept
    if len(indices) == 0:
        return
    places = np.arange(length)
    taken = places[None, :] < kept[:, None]
    padded[taken] = indices[(starts[:, None] + places[None, :])[taken]]


@dataclass(frozen=True)
class Share:
    """Which of the stored rows one of several workers reads.

    Row groups are dealt to the workers in turn. Where there are fewer than sixteen for each, they are first cut into as
    many pieces: a few row groups are of a few users, or of a part of the days, and a worker's examples are to be like
    those of the others.

    Attributes:
        index: of the worker, from 0.
        of: how many workers there are.
    """

    index: int = 0
    of: int = 1

    _PIECES_PER_WORKER: ClassVar[int] = 16

    def pieces(self, groups: Sequence[int]) -> list[list[tuple[int, int]]]:
        """Of row groups of so many rows those that are read: begin and end of each piece of each."""
        if self.of == 1:
            return [[(0, rows)] for rows in groups]
        pieces = max(1, math.ceil(self._PIECES_PER_WORKER * self.of / max(1, len(groups))))
        found, number = [], 0
        for rows in groups:
            edges = [rows * piece // pieces for piece in range(pieces + 1)]
            mine = []
            for begin, end in pairwise(edges):
                if number % self.of == self.index and end > begin:
                    mine.append((begin, end))
                number += 1
            found.append(mine)
        return found


WHOLE = Share()
"""All rows."""


def read_examples(
    directory: Path, columns: Sequence[str] | None = None, share: Share = WHOLE
) -> Iterator[pa.Table]:
    """The tables of one split, a row group at a time, in stored order.

    Args:
        directory: of the split.
        columns: which; None: all.
        share: which rows; other row groups are not read.

    Raises:
        InputError: there are none.
    """
    parts = sorted(directory.glob("part-*.parquet"))
    if not parts:
        raise InputError(
            "there are no examples here",
            where=str(directory),
            remedy="run the stage featurize; with too few days of logs this split does not exist",
        )
    wanted = iter(share.pieces(_row_groups(parts)) if share.of > 1 else ())
    for part in parts:
        with pq.ParquetFile(part) as file:
            for group in range(file.num_row_groups):
                pieces = next(wanted) if share.of > 1 else None
                if pieces == []:
                    continue
                table = file.read_row_group(group, columns=None if columns is None else list(columns))
                if pieces is not None:
                    table = pa.concat_tables([table.slice(begin, end - begin) for begin, end in pieces])
                # Engines mark a column without nulls as such, part by part; tables that differ in nothing else
                # could not be concatenated.
                yield table.cast(pa.schema([field.with_nullable(True) for field in table.schema]))


def shared_ranges(directory: Path, share: Share) -> list[tuple[int, int]]:
    """Begin and end, among all rows of a split, of those that are a worker's share, in the order in which they are read."""
    groups = _row_groups(sorted(directory.glob("part-*.parquet")))
    begins = np.cumsum([0, *groups]).tolist()
    return [
        (first + begin, first + end)
        for first, pieces in zip(begins, share.pieces(groups), strict=False)
        for begin, end in pieces
    ]


def read_ranges(directory: Path, ranges: Iterable[tuple[int, int]]) -> Iterator[pa.Table]:
    """The rows of a split from begin to end of each of `ranges`, which ascend; row groups without any are not read."""
    wanted = iter(ranges)
    current = next(wanted, None)
    first = 0
    for part in sorted(directory.glob("part-*.parquet")):
        with pq.ParquetFile(part) as file:
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                table = None
                while current is not None and current[0] < first + rows:
                    table = file.read_row_group(group) if table is None else table
                    begin, end = current
                    yield table.slice(begin - first, min(end, first + rows) - begin)
                    if end > first + rows:
                        current = (first + rows, end)
                        break
                    current = next(wanted, None)
                first += rows


def stored_rows(directory: Path) -> int:
    """How many examples a split has, by the files' own word."""
    return sum(_row_groups(sorted(directory.glob("part-*.parquet"))))


def _row_groups(parts: Sequence[Path]) -> list[int]:
    """How many rows each row group has."""
    rows = []
    for part in parts:
        metadata = pq.read_metadata(part)
        rows += [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return rows


def _names(columns: Columns) -> set[str]:
    return set(columns.column_names) if isinstance(columns, pa.Table) else set(columns)


def _floats(column: Column) -> npt.NDArray[np.float32]:
    """Numbers or booleans -> float32 [N], null = NaN."""
    if isinstance(column, np.ndarray):
        return column.astype(np.float32)
    if isinstance(column, list):
        column = pa.array(column)
    if isinstance(column, pa.Array) and pa.types.is_floating(column.type) and column.null_count == 0:
        return column.to_numpy().astype(np.float32)
    return pc.fill_null(column.cast(pa.float64()), np.nan).to_numpy().astype(np.float32)
