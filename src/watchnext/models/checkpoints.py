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

_PROGRESS = "progress.json"
_VARIABLES = "variables"
_LARGEST_SHARE = 0.05
"""Of a training's time that writing checkpoints may take."""


class Checkpoints:
    """The checkpoints of one training. Make one with `of`.

    Args:
        directory: belongs to this training alone; need not exist.
        every_s: seconds between two checkpoints within an epoch. More pass where writing takes so long that it
            would cost more than a twentieth of the training.
    """

    def __init__(self, directory: Path, *, every_s: float) -> None:
        self.directory = directory
        self._every_s = every_s
        self._write_s = 0.0
        self._written_at = time.monotonic()
        self._best_epoch = 0

    @classmethod
    def of(
        cls,
        directory: Path,
        *,
        settings: Mapping[str, Any],
        examples: Mapping[str, np.ndarray],
        every_s: float,
    ) -> "Checkpoints":
        """The checkpoints of the training that these settings and examples make, below `directory`.

        Args:
            directory: of all trainings of one kind; what others than this one left in it is removed.
            settings: everything that decides the outcome and is not in the examples, as JSON.
            examples: name -> [num_examples, ...].
            every_s: see `Checkpoints`.
        """
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
        for name in sorted(examples):
            array = np.ascontiguousarray(examples[name])
            digest.update(f"{name}{array.dtype.str}{array.shape}".encode())
            digest.update(array.data if array.size else b"")
        # The order of variables, and what a step does, are those of the code that wrote them.
        for source in sorted(Path(__file__).parent.glob("*.py")):
            digest.update(source.read_bytes())
        for library in ("numpy", "tensorflow", "tf-keras"):
            digest.update(importlib.metadata.version(library).encode())
        own = directory / digest.hexdigest()[:32]
        for other in directory.glob("*"):
            if other != own:
                shutil.rmtree(other, ignore_errors=True)
        return cls(own, every_s=every_s)

    def due(self) -> bool:
        """Whether it is time for a checkpoint within an epoch."""
        return time.monotonic() - self._written_at >= max(self._every_s, self._pause_s())

    def due_after_epoch(self) -> bool:
        """Whether it is time for a checkpoint at the end of an epoch: unless epochs are short beside writing."""
        return time.monotonic() - self._written_at >= self._pause_s()

    def latest(self) -> Path | None:
        """The folder of the last complete checkpoint."""
        complete = [path for path in self.directory.glob("step-*") if not path.name.endswith(".staging")]
        return max(complete, default=None, key=lambda path: path.name)

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
            staged = best.with_name(best.name + ".staging")
            with staged.open("wb") as file:
                np.savez(file, *best_weights)
            staged.replace(best)
            self._best_epoch = best_epoch
        final = self.directory / f"step-{step:012d}"
        folder = final.with_name(final.name + ".staging")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        tf.train.Checkpoint(**state).write(str(folder / _VARIABLES))
        content = {"best_epoch": best_epoch, **progress}
        (folder / _PROGRESS).write_text(json.dumps(content) + "\n", encoding="utf-8")
        shutil.rmtree(final, ignore_errors=True)
        folder.replace(final)
        self._remove_all_but(final, best_epoch)
        self._written_at = time.monotonic()
        self._write_s = self._written_at - began

    def load(self) -> tuple[dict[str, Any], list[np.ndarray]] | None:
        """What the last checkpoint holds beside `state`, which `restore` reads.

        Returns:
            The stored progress, `best_epoch` included, and the weights of that epoch; None where there is nothing to
            go on from. A checkpoint that cannot be read is said, and is none.
        """
        found = self.latest()
        if found is None:
            return None
        try:
            progress = json.loads((found / _PROGRESS).read_text(encoding="utf-8"))
            best_epoch = progress["best_epoch"]
            weights: list[np.ndarray] = []
            if best_epoch:
                with np.load(self._best(best_epoch), allow_pickle=False) as stored:
                    weights = [stored[f"arr_{place}"] for place in range(len(stored.files))]
            tf.train.load_checkpoint(str(found / _VARIABLES))
        except (OSError, ValueError, KeyError, tf.errors.OpError) as error:
            say(f"the checkpoint {found} cannot be read ({error}); training begins anew")
            shutil.rmtree(self.directory, ignore_errors=True)
            return None
        self._best_epoch = best_epoch
        return progress, weights

    def restore(self, state: Mapping[str, Any]) -> None:
        """Bring `state`, of which every variable exists, to the checkpoint whose progress was loaded.

        Raises:
            InputError: the file is damaged.
        """
        found = self.latest()
        assert found is not None, "there is something to restore where `load` found something"
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

    def _remove_all_but(self, checkpoint: Path, best_epoch: int) -> None:
        for path in self.directory.glob("step-*"):
            if path != checkpoint:
                shutil.rmtree(path, ignore_errors=True)
        for path in self.directory.glob("best-epoch-*"):
            if path != self._best(best_epoch):
                path.unlink(missing_ok=True)
