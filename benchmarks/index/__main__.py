"""How fast the nearest 200 of a million embeddings are found: ScaNN beside brute force, faiss and hnswlib.

python -m benchmarks.index [--work DIR] [--videos N]

On two sets: a million embeddings in clusters (`benchmarks.serve.world`), and the trained ones of this project,
`data/retrieval`, asked by the tuning day; a project that has none trains first, on simulated logs. One JSON object stands on
the last line. Of the million: scann_ms_at_098, faiss_ms_at_098, hnswlib_ms_at_098 (the fastest setting with an index
recall at 200 of at least 0.98, of one query on its own by one thread), brute_force_ms, and ScaNN's index_recall_at_200; of
both sets recall, ms, build_s and memory_gb of each way. The peers run in benchmarks/.venv.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.index.worker import WAYS, fastest
from benchmarks.programs import PEERS_PYTHON, ROOT, print_measured, run, validated_tables
from benchmarks.serve import world
from watchnext.console import say

K = 200
QUERIES = 300
_OURS = ("brute_force", "scann")


def measure(work: Path, videos: int) -> dict[str, Any]:
    """All figures of the benchmark."""
    began = time.monotonic()
    draw = np.random.default_rng(7)
    size = world.Size(videos=videos)
    candidates = world.embeddings_of(size, draw)
    sets = {
        "million": _set(work / "million", candidates, world.queries_of(candidates, size, QUERIES, draw)),
        "trained": _set(work / "trained", *trained(work)),
    }
    result: dict[str, Any] = {}
    for name, folder in sets.items():
        measured = {}
        for way in WAYS:
            python = sys.executable if way in _OURS else str(PEERS_PYTHON)
            out = folder / f"{way}.json"
            run(
                f"{way}, {name}",
                [python, "-m", "benchmarks.index.worker", way, "--set", str(folder), "--out", str(out)],
            )
            measured[way] = json.loads(out.read_text(encoding="utf-8"))
        result |= summarised(name, measured)
    million = result["million"]
    return {
        "videos": videos,
        **{f"{way}_ms_at_098": million[way]["ms"] for way in WAYS if way != "brute_force"},
        "brute_force_ms": million["brute_force"]["ms"],
        "index_recall_at_200": million["scann"]["recall"],
        **result,
        "took_s": round(time.monotonic() - began),
    }


def summarised(name: str, measured: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Of each way its chosen setting; null where none finds enough."""
    ways = {}
    for way, one in measured.items():
        chosen = fastest(one["settings"]) or {"ms": None, "recall": None}
        ways[way] = {**chosen, "build_s": one["build_s"], "memory_gb": one["memory_gb"]}
        say(f"bench-index: {name}, {way}: {ways[way]}")
    return {name: ways}


def _set(folder: Path, candidates: np.ndarray, queries: np.ndarray) -> Path:
    from watchnext.index.search import ExactSearcher

    folder.mkdir(parents=True, exist_ok=True)
    truth, _ = ExactSearcher(candidates).search(queries, K)
    for name, array in (("candidates", candidates), ("queries", queries), ("truth", truth)):
        np.save(folder / f"{name}.npy", array)
    return folder


def trained(work: Path) -> tuple[np.ndarray, np.ndarray]:
    """Candidate embeddings that were trained, and queries of the tuning day."""
    import pyarrow as pa

    from watchnext.features.batches import Encoder, read_examples
    from watchnext.models.retrieval import load_query_tower

    model, features = ROOT / "data" / "retrieval", ROOT / "data" / "features"
    if not (model / "candidate_embeddings.npy").is_file():
        model, features = _train(work)
    encoder = Encoder.load(features)
    split = "tuning" if encoder.manifest["days"]["tuning"] else "training"
    examples = pa.concat_tables(list(read_examples(features / "retrieval_examples" / split)))
    examples = examples.take(np.random.default_rng(1).permutation(examples.num_rows)[:QUERIES])
    queries = load_query_tower(model / "query_tower")(encoder.encode_retrieval(examples))
    return np.load(model / "candidate_embeddings.npy", allow_pickle=False), queries


def _train(work: Path) -> tuple[Path, Path]:
    """Candidate generation on simulated logs, by the stages' own functions and params.yaml."""
    from watchnext import config
    from watchnext.config import TrainingParams
    from watchnext.engine import EngineParams
    from watchnext.models.warm_start import WarmStart
    from watchnext.stages import featurize, train_retrieval

    model, features = work / "retrieval", work / "features"
    if (model / "candidate_embeddings.npy").is_file():
        return model, features
    seed = config.load_seed()
    featurize.featurize(
        config.load_section("featurize", featurize.Params),
        config.load_section("engine", EngineParams),
        seed,
        validated_tables("simulated", None, work),
        features,
        work / "report-featurize",
    )
    params = config.load_section("train_retrieval", train_retrieval.Params)
    training = config.load_section("training", TrainingParams)
    start = WarmStart.write_none(work / "start")
    train_retrieval.train_retrieval(params, training, seed, features, start, model, work / "report-train")
    return model, features


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, help="keeps what was trained for further runs")
    parser.add_argument("--videos", type=int, default=1_000_000)
    arguments = parser.parse_args()
    return print_measured("bench-index", lambda work: measure(work, arguments.videos), arguments.work)


if __name__ == "__main__":
    sys.exit(main())
