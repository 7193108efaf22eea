"""The logs that every contender trains on, and the sizes of the benchmark. NumPy alone: any environment runs it."""

import itertools
from dataclasses import dataclass

import numpy as np

BATCH_SIZE = 4096
BAG_LENGTH = 50
TOWER = [1024, 512, 256]
SEED = 20160915


@dataclass(frozen=True)
class Size:
    """Attributes: vocabulary, embedding_dim."""

    vocabulary: int
    embedding_dim: int

    def __str__(self) -> str:
        return f"{self.vocabulary}x{self.embedding_dim}"

    @classmethod
    def parse(cls, text: str) -> "Size":
        """`str`, backwards."""
        vocabulary, embedding_dim = text.split("x")
        return cls(int(vocabulary), int(embedding_dim))

    @property
    def widths(self) -> list[int]:
        """Layers of the tower, bottom first: 1024-512-256, and on until the last is as wide as an embedding."""
        widths = list(TOWER)
        while widths[-1] > self.embedding_dim:
            widths.append(widths[-1] // 2)
        return widths


def make_examples(size: Size, num_batches: int) -> dict[str, np.ndarray]:
    """Full bags and a label each, ids from 1, drawn by Zipf's law: id j of probability log((j + 2) / (j + 1)) / log(V + 1).

    Returns:
        history int32 [num_examples, BAG_LENGTH], label int32 [num_examples].
    """
    random = np.random.default_rng(SEED)
    num = num_batches * BATCH_SIZE

    def ids(shape: tuple[int, ...]) -> np.ndarray:
        rank = np.exp(random.uniform(0.0, np.log(size.vocabulary + 1.0), shape)).astype(np.int64)
        return np.minimum(rank, size.vocabulary).astype(np.int32)

    return {"history": ids((num, BAG_LENGTH)), "label": ids((num,))}


def multiply_adds(size: Size, inputs: int, candidates: int) -> int:
    """Of one example's forward pass: the tower's products and the logits; a training step takes three times as many.

    Args:
        size: of the model.
        inputs: width of what the tower reads.
        candidates: logits per example.
    """
    widths = [inputs, *size.widths]
    return sum(below * above for below, above in itertools.pairwise(widths)) + candidates * size.embedding_dim
