"""The stages of models one after another, as plain functions, on a world small enough for a test."""

from pathlib import Path

from watchnext.config import RecommendParams, TrainingParams
from watchnext.models.warm_start import WarmStart
from watchnext.stages.build_index import Params as IndexParams
from watchnext.stages.build_index import build_index
from watchnext.stages.evaluate import Params as EvaluateParams
from watchnext.stages.evaluate import evaluate
from watchnext.stages.nominate import Params as NominateParams
from watchnext.stages.nominate import nominate
from watchnext.stages.train_ranking import Params as RankingParams
from watchnext.stages.train_ranking import train_ranking
from watchnext.stages.train_retrieval import Params as RetrievalParams
from watchnext.stages.train_retrieval import train_retrieval

Metrics = dict[str, dict[str, float | int | str]]


def run_model_stages(root: Path, tables: Path, features: Path, *, epochs: int, block_epochs: int) -> Metrics:
    """From features to the evaluation.

    Args:
        root: gets the stages' outputs `retrieval`, `index`, `sources` and `ranking`, and `reports/<stage>`.
        tables: the validated tables.
        features: of these tables.
        epochs: of both models.
        block_epochs: see `nominate`.

    Returns:
        Stage -> its metrics.
    """
    training, recommend, reports = TrainingParams(), RecommendParams(), root / "reports"
    retrieval, index, sources, ranking = (
        root / name for name in ("retrieval", "index", "sources", "ranking")
    )
    start = WarmStart.write_none(root / "start")
    return {
        "train_retrieval": train_retrieval(
            RetrievalParams(epochs=epochs, embedding_dim=8), training, 1, features, start, retrieval,
            reports / "train_retrieval",
        ),
        "build_index": build_index(
            IndexParams(), 1, retrieval, features, index, reports / "build_index"
        ),
        "nominate": nominate(
            NominateParams(block_epochs=block_epochs), recommend, training, 1, tables, features, retrieval,
            index, sources, reports / "nominate",
        ),
        "train_ranking": train_ranking(
            RankingParams(epochs=epochs, hidden_units=[8]), training, 1, features, sources, ranking,
            reports / "train_ranking",
        ),
        "evaluate": evaluate(
            EvaluateParams(), recommend, tables, features, retrieval, index, sources, ranking,
            reports / "evaluate",
        ),
    }  # fmt: skip
