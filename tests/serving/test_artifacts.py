"""Files of a version that are not those that were registered: it is refused and the old one stays, until they are back."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from live_server import NAME, assign

from watchnext.registry import Registry
from watchnext.serving.deployment import Deployment, Served


def cut(file: Path) -> None:
    with file.open("r+b") as half:
        half.truncate(file.stat().st_size // 2)


def alter(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def drop(file: Path) -> None:
    file.unlink()


def unpickle(file: Path) -> None:
    """A pickle that would leave a trace if anything loaded it."""

    class Trace:
        def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
            return Path.touch, (Path(f"{file}.loaded"),)  # type: ignore[return-value]

    file.write_bytes(pickle.dumps(Trace()))


@pytest.mark.parametrize("file", ["ranker/saved_model.pb", "index/candidate_embeddings.npy"])
def test_a_version_with_other_files_is_refused_and_taken_once_they_are_back(
    serving_project: Path, file: str
) -> None:
    """Cut, altered, gone, or a pickle; and left alone for a while, since loading costs requests their time."""
    registry = Registry.open(serving_project)
    damaged = registry.bundle(registry.version(NAME, 2)).path / file
    whole = damaged.read_bytes()
    champion: list[Served] = []
    eager = Deployment(registry, NAME, champion.append, role="previous", retry_s=0.0)
    patient = Deployment(registry, NAME, champion.append, role="previous", retry_s=3600.0)
    assign(serving_project, "previous", 2)
    try:
        for damage in (cut, alter, drop, unpickle):
            damage(damaged)
            assert not eager.check()
            assert file in eager.refusals[2].reason
            assert not patient.check()
            damaged.write_bytes(whole)
        assert not Path(f"{damaged}.loaded").exists()
        assert not patient.check()
        assert list(patient.refusals) == [2]
        assert champion == []
        assert eager.check()
        assert eager.refusals == {}
        assert [one.version.number for one in champion] == [2]
    finally:
        damaged.write_bytes(whole)
        assign(serving_project, "previous", None)
