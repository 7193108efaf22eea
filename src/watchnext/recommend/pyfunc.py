"""A bundle as an MLflow model, by the models-from-code way: this file is what MLflow stores and runs again.

    model = mlflow.pyfunc.load_model("models:/watchnext@champion")
    model.predict(pandas.DataFrame({"user_id": ["7"], "watched_video_ids": [[12, 5]], "how_many": [10]}))

`watchnext` itself has to be installed where the model is loaded; nothing of it is copied into the model, because
MLflow would use the first version's copy for every later one in the same process.
"""

import time
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from mlflow.models import ModelSignature, set_model
from mlflow.pyfunc import PythonModel
from mlflow.types.schema import Array, ColSpec, DataType, Schema, TensorSpec

from watchnext.bundle import Bundle
from watchnext.errors import InputError
from watchnext.features.batches import Vocabulary
from watchnext.features.history import Id, UserHistory
from watchnext.features.ranking_features import RequestContext
from watchnext.recommend.recommender import Recommender

DEFAULT_HOW_MANY = 20
FACTS = ("surface", "device", "region", "gender")
"""Columns of a request that say something of it or of its user, as strings; none has to be there."""

_SECOND = 1_000_000  # microseconds


class BundleModel(PythonModel):
    """Answers a table of requests, one slate per row.

    Columns: `user_id`; `watched_video_ids`, oldest first; and, where known, `surface`, `device`, `region`, `gender`,
    `how_many`; a fact that is not given is unknown to the models. The answer has `user_id`, `video_ids` by the
    falling score that the bundle declares, and `expected_watch_time_s`.
    """

    def load_context(self, context: Any) -> None:
        """Open the bundle that was logged with the model, and verify that it is the one that was registered.

        Raises:
            InputError: it is another one, or was changed.
        """
        digest = (context.model_config or {}).get("bundle_digest")
        self.recommender = Recommender.open(Bundle.open(Path(context.artifacts["bundle"]), digest))

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One slate per row of `model_input`.

        Raises:
            InputError: a column is missing, or an id is not of the type that the model was trained with.
        """
        del context, params
        now = time.time_ns() // 1000
        if "user_id" not in model_input:
            raise InputError("the request has no column `user_id`", offenders=list(model_input.columns))
        answers = []
        for row in model_input.to_dict(orient="records"):
            how_many = row.get("how_many")
            request = RequestContext(
                user_id=row["user_id"],
                at=now,
                **{fact: _given(row.get(fact)) for fact in FACTS},
            )
            watched = row.get("watched_video_ids")
            history = self._history([] if watched is None else list(watched), now)
            slate = self.recommender.recommend(
                history, request, DEFAULT_HOW_MANY if _given(how_many) is None else int(how_many)
            )
            answers.append(
                {
                    "user_id": row["user_id"],
                    "video_ids": list(slate.video_ids),
                    "expected_watch_time_s": [video.expected_watch_time_s for video in slate.videos],
                }
            )
        return pd.DataFrame(answers)

    def _history(self, watched: list[Id], now: int) -> UserHistory:
        """A history of completed watches in this order, a second apart: their instants are not given."""
        integers = _has_integer_ids(self.recommender.encoder.vocabularies["video"])
        history = UserHistory()
        for place, given in enumerate(watched):
            try:
                video_id: Id = int(given) if integers else str(given)
            except (TypeError, ValueError):
                raise InputError(
                    "video ids of this model are integers", where="watched_video_ids", offenders=[given]
                ) from None
            facts = self.recommender.videos.facts(video_id)
            history.add_watch(
                video_id,
                now - (len(watched) - place) * _SECOND,
                completed=True,
                channel_id=facts.channel_id,
                topics=facts.topics,
            )
        return history


def signature_of(bundle: Bundle) -> ModelSignature:
    """The MLflow signature of a bundle's model: ids have the type that they have in its logs."""
    video = _id_type(bundle)
    inputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, "user_id"),
        ColSpec(Array(video), "watched_video_ids"),
        *(ColSpec(DataType.string, fact, required=False) for fact in FACTS),
        ColSpec(DataType.long, "how_many", required=False),
    ]
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, "user_id"),
        ColSpec(Array(video), "video_ids"),
        ColSpec(Array(DataType.double), "expected_watch_time_s"),
    ]
    return ModelSignature(Schema(inputs), Schema(outputs))


def example_of(bundle: Bundle) -> pd.DataFrame:
    """A request that the bundle answers: a user who has watched its two most frequent videos."""
    tokens = Vocabulary.load(bundle.features / "vocabularies" / "video").tokens.slice(0, 2).to_pylist()
    return pd.DataFrame({"user_id": ["somebody"], "watched_video_ids": [tokens], "how_many": [5]})


def _id_type(bundle: Bundle) -> DataType:
    vocabulary = Vocabulary.load(bundle.features / "vocabularies" / "video")
    return DataType.long if _has_integer_ids(vocabulary) else DataType.string


def _has_integer_ids(vocabulary: Vocabulary) -> bool:
    return bool(pa.types.is_integer(vocabulary.tokens.type))


def _given(value: Any) -> Any:
    """The value, or None for what pandas and JSON use for "not given"."""
    return None if value is None or (isinstance(value, float) and value != value) else value


set_model(BundleModel())
