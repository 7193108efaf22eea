"""Who trains together: `TF_CONFIG`, TensorFlow's own variable, as a value. Nothing here imports TensorFlow.

TF_CONFIG={"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]}, "task": {"type": "worker", "index": 0}}
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

from watchnext.errors import InputError

VARIABLE = "TF_CONFIG"
_TASKS = ("chief", "worker")


class WorkerLost(InputError):
    """Another worker is gone, or cannot be reached."""


@dataclass(frozen=True)
class Cluster:
    """The processes that train one model, and which of them this one is.

    Attributes:
        addresses: host:port of each, the chief first.
        index: of this process, from 0; 0 is the chief, who alone writes what comes of a training.
    """

    addresses: tuple[str, ...]
    index: int

    @property
    def is_chief(self) -> bool:
        return self.index == 0

    @classmethod
    def from_environment(cls) -> "Cluster | None":
        """The cluster that `TF_CONFIG` describes; None without it, and where this process is the only one in it.

        Raises:
            InputError: it is not what TensorFlow documents, or has tasks that train in another way.
        """
        text = os.environ.get(VARIABLE, "")
        if not text.strip():
            return None
        remedy = f"for example {tf_config(('host-0:2222', 'host-1:2222'), 0)}"
        try:
            content = json.loads(text)
            tasks = {str(name): list(addresses) for name, addresses in content["cluster"].items()}
            kind, index = str(content["task"]["type"]), int(content["task"]["index"])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{VARIABLE} cannot be read", where=VARIABLE, remedy=remedy) from None
        strange = sorted({kind, *tasks} - set(_TASKS))
        if strange:
            raise InputError(
                f"{VARIABLE} has tasks that nothing here is trained by",
                where=VARIABLE,
                offenders=strange,
                remedy="only `worker`, and one `chief` if you like: every worker holds the whole model (docs/scale.md)",
            )
        if not 0 <= index < len(tasks.get(kind, ())):
            raise InputError(f"{VARIABLE} has no task {kind} {index}", where=VARIABLE, remedy=remedy)
        chiefs = tasks.get("chief", [])
        addresses = (*chiefs, *tasks.get("worker", []))
        if len(addresses) == 1:
            return None
        return cls(addresses, index + (len(chiefs) if kind == "worker" else 0))


def tf_config(addresses: Sequence[str], index: int) -> str:
    """The value of `TF_CONFIG` of the worker `index` of those at `addresses`."""
    return json.dumps(
        {"cluster": {"worker": list(addresses)}, "task": {"type": "worker", "index": index}}, sort_keys=True
    )
