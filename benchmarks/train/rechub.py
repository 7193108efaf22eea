"""Contender: torch-rechub's YoutubeDNN and trainer, in the environment of the peers.

Its table of videos is one for history, label and negatives, its optimizer a dense Adam, and each example has negatives
of its own, as in the library's example, which has three.
"""

import argparse
import time

import numpy as np
import torch
from torch_rechub.basic.features import SequenceFeature, SparseFeature
from torch_rechub.models.matching import YoutubeDNN
from torch_rechub.trainers import MatchTrainer

from benchmarks.train.data import BATCH_SIZE, SEED, Size, make_examples
from benchmarks.train.worker import serve

NUM_BATCHES = 8


class Batches:
    """What the trainer iterates over: `steps` batches of tensors, made ready before."""

    def __init__(self, batches: list, steps: int) -> None:
        self.batches, self.steps = batches, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter([self.batches[step % len(self.batches)] for step in range(self.steps)])


def main() -> None:
    """One task, `train`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("size", type=Size.parse)
    parser.add_argument("negatives", type=int)
    args = parser.parse_args()
    size: Size = args.size
    torch.manual_seed(SEED)
    examples = make_examples(size, NUM_BATCHES)
    random = np.random.default_rng(SEED)
    shape = (len(examples["label"]), args.negatives)
    arrays = {
        "history": examples["history"].astype(np.int64),
        "video": examples["label"].astype(np.int64),
        "negatives": random.integers(1, size.vocabulary + 1, shape),
    }
    tensors = {name: torch.from_numpy(array).split(BATCH_SIZE) for name, array in arrays.items()}
    target = torch.zeros(BATCH_SIZE, dtype=torch.long)
    batches = [
        ({name: parts[number] for name, parts in tensors.items()}, target) for number in range(NUM_BATCHES)
    ]
    shared = {
        "vocab_size": size.vocabulary + 1,
        "embed_dim": size.embedding_dim,
        "shared_with": "video",
    }
    model = YoutubeDNN(
        [SequenceFeature("history", pooling="mean", **shared)],
        [SparseFeature("video", vocab_size=size.vocabulary + 1, embed_dim=size.embedding_dim)],
        [SequenceFeature("negatives", pooling="concat", **shared)],
        user_params={"dims": size.widths},
        temperature=0.02,
    )

    trainer = MatchTrainer(model, mode=2, optimizer_params={"lr": 1e-4, "weight_decay": 1e-6})

    def run(steps: int) -> dict[str, float]:
        began = time.perf_counter()
        trainer.train_one_epoch(Batches(batches, steps), log_interval=1_000_000)
        return {"examples": steps * BATCH_SIZE, "seconds": time.perf_counter() - began}

    run(1)
    serve({"train": run}, {})


if __name__ == "__main__":
    main()
