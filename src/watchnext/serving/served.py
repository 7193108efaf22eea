"""A version of the model that answers requests."""

import time
from dataclasses import dataclass, field

import pyarrow as pa

from watchnext.recommend.recommender import Recommender
from watchnext.registry import Version


@dataclass(frozen=True)
class Served:
    """A version that answers requests: its bundle verified, loaded and warmed up."""

    version: Version
    recommender: Recommender
    since_at: float = field(default_factory=time.time)

    @property
    def integer_video_ids(self) -> bool:
        """Whether video ids of its logs are integers; text otherwise."""
        return bool(pa.types.is_integer(self.recommender.encoder.vocabularies["video"].tokens.type))
