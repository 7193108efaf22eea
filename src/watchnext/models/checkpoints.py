"""Where a training goes on after it was killed: its whole state on disk, under the digest of what it is trained from.

    <directory>/<digest of settings, examples and code>/
        step-000000420/     variables (TensorFlow's format) and progress.json
        best-epoch-2.npz    weights of the best epoch so far, written when they change

A folder appears under its name when it is complete, so whoever is killed in the middle of writing leaves the one
before. A training with other settings, examples or code finds nothing here, and clears away what the last one left.
"""

import hashlib
import importlib.metadata
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from watchnext.console import say
from watchnext.errors import InputError
from watchnext.models.shards import Shards

_PROGRESS = "progress.json"
_VARIABLES = "variables"
_STEP = "step-"
_STAGING = ".staging"
_LARGEST_SHARE = 0.05
"""Of a training's time that writing checkpoints may take."""


class Checkpoints:
    """The checkpoints of one training. Make one with `of`.

    Args:
        directory: belongs to this training alone; need not exist.
        every_s: seconds between two checkpoints within an epoch. More pass where writing takes so long that it
            would cost more than a twentieth of the training.
        kept: how many are kept. Of several workers, who write at the same steps, one may be killed in writing what the
            others have written: with two kept, they all have one in common.
    """

    def __init__(self, directory: Path, *, every_s: float, kept: int = 1) -> None:
        self.directory = directory
        self._every_s = every_s
        self._kept = kept
        self._write_s = 0.0
        self._written_at = time.monotonic()
        self._best_epoch = 0

    @classmethod
    def of(
        cls,
        directory: Path,
        *,
        settings: Mapping[str, Any],
        examples: Mapping[str, np.ndarray] | Shards,
        every_s: float,
        kept: int = 1,
    ) -> "Checkpoints":
        """The checkpoints of the training that these settings and examples make, below `directory`.

        Args:
            directory: of all trainings of one kind; what others than this one left in it is removed.
            settings: everything that decides the outcome and is not in the examples, as JSON.
            examples: name -> [num_examples, ...], in memory or in shards.
            every_s: see `Checkpoints`.
            kept: see `Checkpoints`.
        """
        digest = hashlib.sha256(json.dumps(made_by(settings), sort_keys=True).encode())
        Shards.of(examples).update_digest(digest)
        own = directory / digest.hexdigest()[:32]
        for other in directory.glob("*"):
            if other != own:
                shutil.rmtree(other, ignore_errors=True)
        return cls(own, every_s=every_s, kept=kept)

    def due(self) -> bool:
        """Whether it is time for a checkpoint within an epoch."""
        return time.monotonic() - self._written_at >= max(self._every_s, self._pause_s())

    def due_after_epoch(self) -> bool:
        """Whether it is time for a checkpoint at the end of an epoch: unless epochs are short beside writing."""
        return time.monotonic() - self._written_at >= self._pause_s()

    def latest(self) -> Path | None:
        """The folder of the last complete checkpoint."""
        return max(self._complete(), default=None, key=lambda path: path.name)

    def steps(self) -> list[int]:
        """The steps, since the beginning of the training, after which there are checkpoints that can be read.

        One that cannot be read is said, and removed.
        """
        found = []
        for folder in self._complete():
            try:
                best_epoch = _read_progress(folder)["best_epoch"]
                tf.train.load_checkpoint(str(folder / _VARIABLES))
                if best_epoch:
                    self._read_best(best_epoch)
            except (OSError, ValueError, KeyError, tf.errors.OpError) as error:
                say(f"the checkpoint {folder} cannot be read ({error}); it is left out")
                shutil.rmtree(folder, ignore_errors=True)
                continue
            found.append(_step_of(folder))
        return found

    def save(
        self,
        state: Mapping[str, Any],
        progress: Mapping[str, Any],
        *,
        step: int,
        best_epoch: int,
        best_weights: Sequence[np.ndarray],
    ) -> None:
        """Write a checkpoint, and remove the one before.

        Args:
            state: name -> what TensorFlow can track: model, optimizer, generator of random numbers.
            progress: the rest of the training's state, as JSON.
            step: steps since the beginning of the training.
            best_epoch: from 1; 0 where there is none yet.
            best_weights: the model's weights after that epoch.
        """
        began = time.monotonic()
        self.directory.mkdir(parents=True, exist_ok=True)
        if best_epoch and best_epoch != self._best_epoch:
            best = self._best(best_epoch)
            staged = best.with_name(best.name + _STAGING)
            with staged.open("wb") as file:
                np.savez(file, *best_weights)
            staged.replace(best)
            self._best_epoch = best_epoch
        final = self._folder(step)
        folder = final.with_name(final.name + _STAGING)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        tf.train.Checkpoint(**state).write(str(folder / _VARIABLES))
        content = {"best_epoch": best_epoch, **progress}
        (folder / _PROGRESS).write_text(json.dumps(content) + "\n", encoding="utf-8")
        shutil.rmtree(final, ignore_errors=True)
        folder.replace(final)
        self._remove_earlier()
        self._written_at = time.monotonic()
        self._write_s = self._written_at - began

    def load(self, step: int) -> tuple[dict[str, Any], list[np.ndarray]]:
        """What the checkpoint after `step` holds beside `state`, which `restore` reads; those after it are removed.

        Returns:
            The stored progress, `best_epoch` included, and the weights of that epoch.
        """
        for folder in self._complete():
            if _step_of(folder) > step:
                shutil.rmtree(folder)
        progress = _read_progress(self._folder(step))
        best_epoch = progress["best_epoch"]
        weights = self._read_best(best_epoch) if best_epoch else []
        self._best_epoch = best_epoch
        return progress, weights

    def clear(self) -> None:
        """Remove what is there: training begins anew."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def restore(self, state: Mapping[str, Any], step: int) -> None:
        """Bring `state`, of which every variable exists, to the checkpoint after `step`.

        Raises:
            InputError: the file is damaged.
        """
        found = self._folder(step)
        try:
            tf.train.Checkpoint(**state).read(str(found / _VARIABLES)).assert_consumed()
        except (AssertionError, ValueError, tf.errors.OpError) as error:
            raise InputError(
                "the checkpoint of a training that was killed cannot be read",
                where=str(found),
                offenders=[str(error).splitlines()[0]],
                remedy=f"remove {self.directory}, and training begins anew",
            ) from error

    def _pause_s(self) -> float:
        return self._write_s * (1.0 / _LARGEST_SHARE - 1.0)

    def _best(self, epoch: int) -> Path:
        return self.directory / f"best-epoch-{epoch}.npz"

    def _read_best(self, epoch: int) -> list[np.ndarray]:
        with np.load(self._best(epoch), allow_pickle=False) as stored:
            return [stored[f"arr_{place}"] for place in range(len(stored.files))]

    def _folder(self, step: int) -> Path:
        return self.directory / f"{_STEP}{step:012d}"

    def _complete(self) -> list[Path]:
        """The folders of complete checkpoints, earliest first."""
        found = self.directory.glob(f"{_STEP}*")
        return sorted(path for path in found if not path.name.endswith(_STAGING))

    def _remove_earlier(self) -> None:
        complete = self._complete()
        kept = complete[-self._kept :]
        for path in self.directory.glob(f"{_STEP}*"):
            if path not in kept:
                shutil.rmtree(path, ignore_errors=True)
        best = {self._best(_read_progress(path)["best_epoch"]) for path in kept}
        for path in self.directory.glob("best-epoch-*"):
            if path not in best:
                path.unlink(missing_ok=True)


def made_by(settings: Mapping[str, Any]) -> dict[str, str]:
    """What decides how a training goes: digests of each setting and of the code of the models, versions of libraries.

    Args:
        settings: name -> what JSON holds.
    """
    texts = {name: json.dumps(value, sort_keys=True, default=str) for name, value in settings.items()}
    # The order of variables, and what a step does, are those of the code that wrote them.
    sources = b"".join(source.read_bytes() for source in sorted(Path(__file__).parent.glob("*.py")))
    return {
        **{name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()},
        "code": hashlib.sha256(sources).hexdigest(),
        **{library: importlib.metadata.version(library) for library in ("numpy", "tensorflow", "tf-keras")},
    }


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix(_STEP))


def _read_progress(folder: Path) -> dict[str, Any]:
    return json.loads((folder / _PROGRESS).read_text(encoding="utf-8"))
