"""What candidates of one request cost, source by source: 20,000 videos on 500 channels, 50 watches, 200 candidates.

    python -m benchmarks.sources

One JSON object last: the median of each source in milliseconds, one request at a time.
"""

import argparse
import datetime as dt
import json
import sys
import time

import numpy as np
import pyarrow as pa

from watchnext.features.batches import Vocabulary
from watchnext.index.scann import ScannSearcher
from watchnext.index.search import ExactSearcher
from watchnext.models import candidate_sources as sources
from watchnext.models.candidate_sources import Corpus, Popularity, Requests

NOON = dt.datetime(2026, 1, 20, 12, tzinfo=dt.UTC)
CHANNELS, DIM, WATCHES, CANDIDATES = 500, 8, 50, 200


def measure(size: int, times: int) -> dict[str, float]:
    """Median milliseconds of one request to each source.

    Args:
        size: videos of the corpus.
        times: how often each is asked.
    """
    begins_at = int((NOON - dt.timedelta(hours=12)).timestamp()) * 1_000_000
    uploaded = [NOON - dt.timedelta(days=0.5 + 60 * row / size) for row in range(size)]
    videos = pa.table(
        {
            "video_id": np.arange(size),
            "channel_id": [row % CHANNELS for row in range(size)],
            "uploaded_at": pa.array(uploaded, pa.timestamp("us", tz="UTC")),
        }
    )
    corpus = Corpus(Vocabulary("video", pa.array(np.arange(size)), np.ones(size, np.int64)), videos)
    generator = np.random.default_rng(5)
    popularity = Popularity(corpus, generator.poisson(3.0, size), 7, begins_at)
    embeddings = generator.normal(size=(size, DIM)).astype(np.float32)
    co_watched = np.sort(generator.random((size, 100)).astype(np.float32))[:, ::-1]
    asked: dict[str, sources.Retriever] = {
        "tower_exact": sources.Tower(corpus, ExactSearcher(embeddings).search, embeddings),
        "tower_scann": sources.Tower(
            corpus, ScannSearcher.build(embeddings, brute_force_below=100).search, embeddings
        ),
        "co_watched": sources.CoWatched(
            corpus, generator.integers(0, size, (size, 100)).astype(np.int32), co_watched
        ),
        "popular": sources.Popular(corpus),
        "channels": sources.Channels(corpus),
        "fresh": sources.Fresh(corpus),
    }
    history = generator.integers(1, size, (1, WATCHES)).astype(np.int32)
    noon = int(NOON.timestamp()) * 1_000_000
    request = Requests(np.array([noon]), history, popularity, embeddings[:1], np.array([True]))
    watched = [set((history[0] - 1).tolist())]
    median_ms = {}
    for name, source in asked.items():
        took_ms = []
        for _ in range(times):
            began = time.perf_counter()
            source.retrieve(request, CANDIDATES, watched)
            took_ms.append(1000 * (time.perf_counter() - began))
        median_ms[f"{name}_ms"] = float(np.median(took_ms))
    return median_ms


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sources", description=__doc__)
    parser.add_argument("--videos", type=int, default=20_000)
    parser.add_argument("--times", type=int, default=200)
    options = parser.parse_args()
    result = measure(options.videos, options.times)
    sys.stdout.write(json.dumps({**result, "videos": options.videos}) + "\n")


if __name__ == "__main__":
    main()
