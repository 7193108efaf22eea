"""What test_out_of_core runs: the stage train_retrieval, and the most memory it had at once.

python training_of_shards.py FEATURES OUT EXAMPLES_IN_MEMORY
"""

import json
import sys
from pathlib import Path

from watchnext.config import TrainingParams
from watchnext.models.warm_start import WarmStart
from watchnext.stages.train_retrieval import Labels, Params, train_retrieval


def main() -> None:
    """Print one JSON object."""
    features, out, at_once = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    params = Params(
        embedding_dim=8,
        batch_size=2048,
        negatives=100,
        epochs=1,
        tuning_events=10,
        labels=Labels(shown_share=0),
    )
    start = WarmStart.write_none(out / "start")
    metrics = train_retrieval(
        params, TrainingParams(examples_in_memory=at_once), 1, features, start, out / "model", out / "report"
    )
    with Path("/proc/self/status").open(encoding="utf-8") as status:
        peak_kb = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    sys.stdout.write(json.dumps({"peak_mb": peak_kb / 1024, "examples": metrics["training_examples"]}) + "\n")


if __name__ == "__main__":
    main()
