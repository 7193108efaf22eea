"""What a bundle's model takes and gives, in MLflow's words: `serving.pyfunc` is the model."""

import pandas as pd
import pyarrow as pa
from mlflow.models import ModelSignature
from mlflow.types.schema import Array, ColSpec, DataType, Schema, TensorSpec

from watchnext.bundle import Bundle
from watchnext.features.batches import Vocabulary

FACTS = {
    "surface": DataType.string,
    "device": DataType.string,
    "logged_in": DataType.boolean,
    "region": DataType.string,
    "gender": DataType.string,
    "age_years": DataType.double,
}
"""Columns that say something of a request or of its user, by the names of `RequestContext`; none has to be there."""


def signature_of(bundle: Bundle) -> ModelSignature:
    """The MLflow signature of a bundle's model: ids have the type that they have in its logs."""
    vocabulary = Vocabulary.load(bundle.features / "vocabularies" / "video")
    video = DataType.long if pa.types.is_integer(vocabulary.tokens.type) else DataType.string
    inputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, "user_id"),
        ColSpec(DataType.long, "how_many", required=False),
        ColSpec(Array(video), "exclude", required=False),
        *(ColSpec(kind, fact, required=False) for fact, kind in FACTS.items()),
        ColSpec(Array(video), "watched_video_ids", required=False),
    ]
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, "user_id"),
        ColSpec(Array(video), "video_ids"),
        ColSpec(Array(DataType.double), "expected_watch_time_s"),
        ColSpec(DataType.boolean, "personal"),
        ColSpec(DataType.string, "degraded"),
    ]
    return ModelSignature(Schema(inputs), Schema(outputs))


def example_of(bundle: Bundle) -> pd.DataFrame:
    """A request that the bundle answers: a user who has watched its two most frequent videos."""
    tokens = Vocabulary.load(bundle.features / "vocabularies" / "video").tokens.slice(0, 2).to_pylist()
    return pd.DataFrame({"user_id": ["somebody"], "how_many": [5], "watched_video_ids": [tokens]})
