"""The two-stage recommender of "Deep Neural Networks for YouTube Recommendations" as an MLOps project.

Importing this package sets three environment variables before TensorFlow can be imported, because each of
them is read only once, at that import: TensorFlow Recommenders needs Keras 2, and nobody needs to read
TensorFlow's start-up noise. A value that the user has set stays.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from watchnext.serving.service import Service

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

__version__ = "0.1.0"


def load(
    uri: str, *, root: str | os.PathLike[str] = ".", store: str | os.PathLike[str] | None = None
) -> "Service":
    """A version of the registry, ready to answer as a server does.

        watchnext.load("models:/watchnext@champion").recommend("7").slate.video_ids

    Args:
        uri: `models:/NAME@ROLE` or `models:/NAME/VERSION`.
        root: folder of the project.
        store: file of the user state, or address of a Redis; by default the one that `watchnext serve` uses in that project.

    Raises:
        InputError: there is no such version, its files are not those that were registered, or there is no user state.
    """
    from watchnext.serving.service import load as load_service

    folder = Path(root)
    return load_service(uri, folder, str(folder / "state" / "users.db" if store is None else store))
