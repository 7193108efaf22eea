"""The one servable artifact: a directory, moved as a whole, verified whenever it is opened.

    manifest.json     format, sha256 of every other file, source, digests of data and settings,
                      trained_until_at, the models' inputs, library versions, and the settings `recommend`
    query_tower/      SavedModel: history, ... -> embedding [B, D]
    ranker/           SavedModel: ranking inputs, query side [1 or N], impression side [N] -> expected_watch_time_s [N]
    index/            ScaNN, the candidate embeddings [num_videos, D], and which video stands in which row
    features/         vocabularies, quantiles, facts about videos, their statistics as of the last day
    sources/          tables of the candidate sources beside the tower, since format 2

Towers, index, vocabularies and ranker can so never come from different trainings. Opening a bundle reads no
pickle and follows no link: a file that the manifest does not list is refused, and so is a changed one.
"""

import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from watchnext.errors import InputError

FORMAT = 4
"""What is written. Format 1 had neither `sources/` nor `recommend` (see `Bundle.recommend`); the ranker of formats 1 and 2
wants the query side once per impression (see `Bundle.ranks_one_query`); before format 4 `recommend` declared no score, and
slates are by expected watch time: who knows no other order must not open a bundle that has one."""

READABLE = (1, 2, 3, 4)
"""Formats that are still opened, so that a champion stays comparable and can be served until it is replaced."""

MANIFEST = "manifest.json"

LIBRARIES = ("watchnext", "tensorflow", "tf-keras", "scann", "numpy", "pyarrow")
"""Libraries that decide whether a bundle can be loaded, and what it answers."""

_PICKLE_SUFFIXES = frozenset({".pkl", ".pickle", ".joblib", ".dill"})
_HASHED_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk.

    Attributes:
        path: its directory.
        manifest: the parsed manifest.json.
    """

    path: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path, expected_digest: str | None = None) -> "Bundle":
        """Open the bundle in `path` after checking every file against the manifest.

        Args:
            path: directory of the bundle.
            expected_digest: the digest it must have, as the registry recorded it; None accepts any.

        Raises:
            InputError: it is no bundle, of another format, not the expected one, or has files that are
                changed, missing, not listed, links or pickles.
        """
        bundle = cls(path, _read_manifest(path))
        if expected_digest is not None and bundle.digest != expected_digest:
            raise InputError(
                "this is not the bundle that was registered",
                where=str(path),
                offenders=[f"digest {bundle.digest}, registered {expected_digest}"],
                remedy="restore the version's artifacts, or package and register anew with `dvc repro`",
            )
        _verify_files(path, bundle.manifest["files"])
        return bundle

    @cached_property
    def digest(self) -> str:
        """The bundle's identity: sha256 of the canonical manifest, which holds the sha256 of every file."""
        return _digest_of(self.manifest)

    @property
    def source(self) -> str:
        """Where the logs came from; models of different sources are never compared."""
        return str(self.manifest["source"])

    @property
    def data_digest(self) -> str:
        return str(self.manifest["data_digest"])

    @property
    def params_digest(self) -> str:
        return str(self.manifest["params_digest"])

    @property
    def trained_until_at(self) -> datetime:
        """End of the training days, exclusive: no model in here has seen anything from then on."""
        return datetime.fromisoformat(self.manifest["trained_until_at"])

    @property
    def query_tower(self) -> Path:
        return self.path / "query_tower"

    @property
    def ranker(self) -> Path:
        return self.path / "ranker"

    @property
    def index(self) -> Path:
        return self.path / "index"

    @property
    def features(self) -> Path:
        return self.path / "features"

    @property
    def sources(self) -> Path:
        return self.path / "sources"

    @property
    def recommend(self) -> Mapping[str, Any]:
        """`exclude`, `score` and `sources`, the settings that it was measured and is served with.

        A bundle of format 1 is served as it always was: without what was watched, by the tower alone, and by what is
        popular where that names too few.
        """
        return self.manifest.get("recommend", {"exclude": "watched", "sources": {"tower": 199, "popular": 1}})

    @property
    def ranks_one_query(self) -> bool:
        """Whether the ranker takes one row of the query side for all impressions of a request."""
        return bool(self.manifest["format"] >= 3)


def read_digest(path: Path) -> str:
    """The digest of the bundle in `path`, read from its manifest alone: which bundle it claims to be.

    Raises:
        InputError: there is no bundle, or one of another format.
    """
    return _digest_of(_read_manifest(path))


def write_bundle(
    out: Path,
    *,
    features: Path,
    retrieval: Path,
    index: Path,
    ranking: Path,
    sources: Path,
    recommend: Mapping[str, Any],
) -> Bundle:
    """Assemble a bundle in the new directory `out` from the outputs of the stages, and verify it.

    `recommend` is the section of that name.

    Raises:
        InputError: the parts come from different trainings, or one of them is incomplete.
    """
    manifests = {
        name: _read_json(part / MANIFEST)
        for name, part in (
            ("features", features),
            ("retrieval", retrieval),
            ("index", index),
            ("ranking", ranking),
            ("sources", sources),
        )
    }
    _check_one_training(manifests, features=features, retrieval=retrieval)
    out.mkdir(parents=True)
    shutil.copytree(retrieval / "query_tower", out / "query_tower")
    shutil.copytree(ranking / "ranker", out / "ranker")
    shutil.copytree(index, out / "index")
    shutil.copytree(sources / "tables", out / "sources")
    added_inputs = "added_inputs.json"  # of the ranker, see `Encoder.with_inputs`; there may be none
    for name in ("vocabularies", "videos"):
        shutil.copytree(features / name, out / "features" / name)
    for name in (MANIFEST, "quantiles.json"):
        shutil.copy2(features / name, out / "features" / name)
    if (sources / added_inputs).is_file():
        shutil.copy2(sources / added_inputs, out / "features" / added_inputs)
    _copy_last_day(features / "video_statistics", out / "features" / "video_statistics")

    params = {name: manifest.get("params", {}) for name, manifest in manifests.items()}
    params["recommend"] = dict(recommend)
    content = {
        "format": FORMAT,
        "source": manifests["features"]["source"],
        "time_zone": manifests["features"]["time_zone"],
        "data_digest": manifests["features"]["data_digest"],
        "params_digest": hashlib.sha256(_canonical(params)).hexdigest(),
        "params": params,
        "trained_until_at": manifests["features"]["trained_until_at"],
        "inputs": {name: manifests[name]["inputs"] for name in ("retrieval", "ranking")},
        "embedding_dim": manifests["retrieval"]["embedding_dim"],
        "recommend": dict(recommend),
        "libraries": _library_versions(),
        "files": {
            path.relative_to(out).as_posix(): {"sha256": _sha256(path), "bytes": path.stat().st_size}
            for path in sorted(out.rglob("*"))
            if path.is_file()
        },
    }
    (out / MANIFEST).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return Bundle.open(out)


def _check_one_training(
    manifests: Mapping[str, Mapping[str, Any]], *, features: Path, retrieval: Path
) -> None:
    remedy = "run `dvc repro`, which makes them fit; do not copy parts of one training into another"
    ends = {
        name: manifest["trained_until_at"]
        for name, manifest in manifests.items()
        if "trained_until_at" in manifest
    }
    if len(set(ends.values())) > 1:
        offenders = [f"{name}: {end}" for name, end in ends.items()]
        raise InputError("the parts come from different trainings", offenders=offenders, remedy=remedy)
    embeddings = np.load(retrieval / "candidate_embeddings.npy", mmap_mode="r", allow_pickle=False)
    vocabulary = sum(
        pq.ParquetFile(part).metadata.num_rows
        for part in (features / "vocabularies" / "video").glob("part-*.parquet")
    )
    rows = {
        "candidate embeddings": embeddings.shape[0],
        "vocabulary": vocabulary,
        "vocabulary in the index": int(manifests["index"]["vocabulary_rows"]),
    }
    if len(set(rows.values())) > 1:
        offenders = [f"{name}: {count} videos" for name, count in rows.items()]
        raise InputError("the parts come from different trainings", offenders=offenders, remedy=remedy)


def _copy_last_day(statistics: Path, out: Path) -> None:
    """Keep each video's statistics as of the latest day: what a request that comes now is answered with."""
    parts = sorted(statistics.glob("part-*.parquet"))
    if not parts:
        raise InputError(
            "there are no video statistics here", where=str(statistics), remedy="run the stage featurize"
        )
    table = pa.concat_tables([pq.read_table(part) for part in parts])
    last = pc.max(table["day"])
    out.mkdir()
    pq.write_table(table.filter(pc.equal(table["day"], last)), out / "part-00000.parquet", compression="zstd")


def _read_manifest(path: Path) -> Mapping[str, Any]:
    manifest = _read_json(path / MANIFEST)
    found = manifest.get("format")
    if found not in READABLE:
        raise InputError(
            f"this bundle has format {found!r}, and this version of watchnext reads formats"
            f" {', '.join(map(str, READABLE))}",
            where=str(path / MANIFEST),
            remedy="install the watchnext that wrote it, or package anew with `dvc repro`",
        )
    return manifest


def _read_json(path: Path) -> dict[str, Any]:
    remedy = "run `dvc repro`, which writes it"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError("there is no such file", where=str(path), remedy=remedy) from None
    except ValueError as error:
        raise InputError("this is not JSON", where=str(path), offenders=[error], remedy=remedy) from None
    if not isinstance(content, dict):
        raise InputError("this is not a manifest", where=str(path), remedy=remedy)
    return content


def _verify_files(path: Path, listed: Mapping[str, Mapping[str, Any]]) -> None:
    remedy = "restore it from where it was packaged (`dvc checkout`, or the registered version)"
    entries = sorted(entry for entry in path.rglob("*"))
    links = [entry.relative_to(path).as_posix() for entry in entries if entry.is_symlink()]
    if path.is_symlink() or links:
        raise InputError(
            "a bundle must not contain links: what they point at can change unseen",
            where=str(path),
            offenders=links,
            remedy="for links made by DVC: `dvc config cache.type reflink,copy` and `dvc checkout --relink`",
        )
    present = {entry.relative_to(path).as_posix() for entry in entries if not entry.is_dir()} - {MANIFEST}
    unlisted = sorted(present - set(listed))
    if unlisted:
        raise InputError(
            "the bundle has files that its manifest does not list",
            where=str(path),
            offenders=unlisted,
            remedy=remedy,
        )
    missing = sorted(set(listed) - present)
    if missing:
        raise InputError("the bundle lacks files", where=str(path), offenders=missing, remedy=remedy)
    pickles = [name for name in sorted(listed) if _is_pickle(path / name)]
    if pickles:
        raise InputError(
            "a bundle must not contain pickles: loading one runs whatever code it holds",
            where=str(path),
            offenders=pickles,
            remedy="package anew with `dvc repro`",
        )
    changed = [name for name, entry in sorted(listed.items()) if _sha256(path / name) != entry["sha256"]]
    if changed:
        raise InputError(
            "files of the bundle were changed after it was packaged",
            where=str(path),
            offenders=changed,
            remedy=remedy,
        )


def _is_pickle(path: Path) -> bool:
    """By name, or by content: a pickle of protocol 2 or later begins with 0x80 and ends with a full stop."""
    if PurePosixPath(path.name).suffix.lower() in _PICKLE_SUFFIXES:
        return True
    with path.open("rb") as file:
        begin = file.read(2)
        if len(begin) < 2 or begin[0] != 0x80 or begin[1] not in range(2, 6):
            return False
        file.seek(-1, 2)
        return file.read(1) == b"."


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASHED_AT_ONCE):
            digest.update(block)
    return digest.hexdigest()


def _canonical(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _digest_of(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(manifest)).hexdigest()


def _library_versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in LIBRARIES}
