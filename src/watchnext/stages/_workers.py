"""Several workers on this machine: the stage's own command, once per worker, each told by `TF_CONFIG` who the others are."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from ruamel.yaml import YAML

from watchnext.console import say
from watchnext.errors import InputError
from watchnext.stages._runner import LAUNCHER_VARIABLE, LOST_STATUS
from watchnext.tf_config import VARIABLE, tf_config

LOGS = Path("state") / "workers"
_POLL_S = 0.2
_GRACE_S = 10.0
_LAST_LINES = 12


def stage_command(stage: str, root: Path) -> list[str]:
    """What dvc.yaml runs for a stage, as this Python's arguments.

    Raises:
        InputError: there is no dvc.yaml, or no such stage in it.
    """
    path = root / "dvc.yaml"
    if not path.is_file():
        raise InputError("there is no dvc.yaml here", where=str(root), remedy="run in the project's folder")
    stages = YAML(typ="safe").load(path.read_text(encoding="utf-8"))["stages"]
    if stage not in stages:
        raise InputError(f"dvc.yaml has no stage {stage}", where=str(path))
    python, *arguments = shlex.split(stages[stage]["cmd"])
    assert python == "python", "stages are Python modules"
    return [sys.executable, *arguments]


def train_on_loopback(
    command: Sequence[str],
    *,
    workers: int,
    name: str,
    root: Path,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run `command` as each of so many workers on this machine, and wait until all are done.

    They end when this process does. The first that fails ends the others.

    Args:
        command: what a worker runs.
        workers: how many.
        name: of the stage; the workers write to `state/workers/<name>.worker-<index>.log`.
        root: the project's folder.
        environment: of the workers, beside what tells them who they are; None: this process's.

    Raises:
        InputError: one of them failed, named with the end of its log.
    """
    addresses = [f"127.0.0.1:{port}" for port in free_ports(workers)]
    # Each its share of the cores: TensorFlow would give all of them to each.
    cores = str(max(1, len(os.sched_getaffinity(0)) // workers))
    shared = {"TF_NUM_INTRAOP_THREADS": cores, **(os.environ if environment is None else environment)}
    (root / LOGS).mkdir(parents=True, exist_ok=True)
    running: list[subprocess.Popen[bytes]] = []
    with ExitStack() as stack:
        stack.callback(_stop, running)
        logs = [root / LOGS / f"{name}.worker-{index}.log" for index in range(workers)]
        for index, log in enumerate(logs):
            told = {VARIABLE: tf_config(addresses, index), LAUNCHER_VARIABLE: str(os.getpid())}
            running.append(
                subprocess.Popen(
                    command,
                    cwd=root,
                    env={**shared, **told},
                    stdin=subprocess.DEVNULL,
                    stdout=stack.enter_context(log.open("wb")),
                    stderr=subprocess.STDOUT,
                    # Ctrl-C is for this process, which then stops them.
                    start_new_session=True,
                )
            )
        say(f"{name}: {workers} workers on this machine; the chief's log is {logs[0].relative_to(root)}")
        _wait(running, logs, name, root)


def record_in_dvc(stage: str, root: Path) -> None:
    """Tell DVC that the stage's outputs are those of its present inputs, so that `dvc repro` does not train it again.

    Raises:
        InputError: DVC says no.
    """
    if not (root / ".dvc").is_dir():
        return
    told = subprocess.run(
        [sys.executable, "-m", "dvc", "commit", "--force", "--quiet", stage],
        cwd=root,
        check=False,
        capture_output=True,
        text=True,
    )
    if told.returncode:
        raise InputError(
            f"{stage} is trained, but DVC cannot record it",
            where=str(root),
            offenders=told.stderr.strip().splitlines()[-3:],
            remedy=f"mend that, and run `dvc commit --force {stage}`",
        )


def _wait(running: Sequence[subprocess.Popen[bytes]], logs: Sequence[Path], name: str, root: Path) -> None:
    while any(process.poll() is None for process in running):
        failed = [index for index, process in enumerate(running) if process.poll() not in (None, 0)]
        if failed:
            break
        time.sleep(_POLL_S)
    failed = [index for index, process in enumerate(running) if process.poll() not in (None, 0)]
    if not failed:
        return
    # Who lost another worker is not the cause, if the other one is seen.
    first = min(failed, key=lambda index: (running[index].returncode == LOST_STATUS, index))
    code = running[first].returncode
    ended = (
        f"was ended by signal {signal.Signals(-code).name}" if code < 0 else f"failed (exit status {code})"
    )
    last = logs[first].read_text(encoding="utf-8", errors="replace").strip().splitlines()[-_LAST_LINES:]
    raise InputError(
        f"{name}: worker {first} of {len(running)} {ended}, so all were stopped",
        where=str(logs[first].relative_to(root)),
        remedy="run it again when the cause is mended: it goes on from its checkpoints. The log ends with\n    "
        + "\n    ".join(last or ["(nothing)"]),
    )


def _stop(running: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in running:
        if process.poll() is None:
            process.terminate()
    ends_at = time.monotonic() + _GRACE_S
    for process in running:
        try:
            process.wait(max(0.0, ends_at - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_ports(count: int) -> list[int]:
    """So many ports of loopback that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
