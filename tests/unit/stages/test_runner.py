"""The shell round every stage: outputs swapped in whole, failures leave the last good ones, nobody is orphaned."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import pytest

from watchnext.errors import InputError
from watchnext.stages import _runner
from watchnext.stages._runner import Call, execution_id, is_alive, only_stage_here
from watchnext.tracking import Tracker


def call_of(function: Callable[..., Mapping[str, float] | None], folder: Path, **arguments: object) -> Call:
    outputs = {"out_table": folder / "table", "out_report": folder / "report"}
    return Call("featurize", function, arguments, outputs, {}, folder / "metrics.json")


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    return Tracker.open(tmp_path)


def writes(text: str) -> Callable[..., Mapping[str, float] | None]:
    def stage(out_table: Path, out_report: Path) -> Mapping[str, float]:
        for out in (out_table, out_report):
            out.mkdir()
            (out / "content").write_text(text, encoding="utf-8")
        return {"rows": 1}

    return stage


def test_outputs_replace_those_of_the_last_run_whole(tmp_path: Path, tracker: Tracker) -> None:
    _runner.run(call_of(writes("first"), tmp_path), tracker, "1-1.00")
    (tmp_path / "table" / "left over").touch()
    _runner.run(call_of(writes("second"), tmp_path), tracker, "1-1.00")
    assert [path.name for path in (tmp_path / "table").iterdir()] == ["content"]
    assert (tmp_path / "table" / "content").read_text(encoding="utf-8") == "second"
    assert (tmp_path / "metrics.json").read_text(encoding="utf-8") == '{\n  "rows": 1\n}\n'
    assert not list(tmp_path.glob("*.staging"))


def test_a_stage_that_refuses_leaves_the_last_good_outputs_and_its_report(
    tmp_path: Path, tracker: Tracker
) -> None:
    """Seen to fail when the runner handed the final path to the stage, and when it discarded the report."""
    _runner.run(call_of(writes("good"), tmp_path), tracker, "1-1.00")

    def refuses(out_table: Path, out_report: Path) -> Mapping[str, float]:
        writes("bad")(out_table, out_report)
        raise InputError("negative watch time", where="watches.watch_time_s")

    with pytest.raises(InputError, match="negative watch time"):
        _runner.run(call_of(refuses, tmp_path), tracker, "1-1.00")
    assert (tmp_path / "table" / "content").read_text(encoding="utf-8") == "good"
    assert (tmp_path / "report" / "content").read_text(encoding="utf-8") == "bad"
    assert (tmp_path / "metrics.json").is_file()
    assert not list(tmp_path.glob("*.staging"))


def test_a_stage_with_nothing_to_do_leaves_everything_and_makes_no_run(
    tmp_path: Path, tracker: Tracker
) -> None:
    _runner.run(call_of(writes("good"), tmp_path), tracker, "1-1.00")

    def idle(out_table: Path, out_report: Path) -> None:
        return None

    assert _runner.run(call_of(idle, tmp_path), tracker, "2-2.00") is None
    assert (tmp_path / "table" / "content").read_text(encoding="utf-8") == "good"
    assert not tracker.has_pipeline_run("2-2.00")


def test_a_stage_sees_what_its_last_run_left_if_all_of_it_is_there(tmp_path: Path, tracker: Tracker) -> None:
    seen: list[str | None] = []

    def looks(out_table: Path, out_report: Path, earlier_table: Path | None = None) -> Mapping[str, float]:
        seen.append((earlier_table / "content").read_text(encoding="utf-8") if earlier_table else None)
        return writes(f"run {len(seen)}")(out_table, out_report) or {}

    for _ in range(2):
        _runner.run(call_of(looks, tmp_path), tracker, "1-1.00")
    (tmp_path / "report" / "content").unlink()
    (tmp_path / "report").rmdir()
    _runner.run(call_of(looks, tmp_path), tracker, "1-1.00")
    assert seen == [None, "run 1", None]


def test_a_tracker_that_cannot_be_used_loses_no_work(
    tmp_path: Path, tracker: Tracker, capfd: pytest.CaptureFixture[str]
) -> None:
    """Seen to fail when logging could end the stage: DVC would have trained the model again."""
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns/mlflow.db").write_bytes(b"not a database, but long enough to be taken for one" * 40)
    metrics = _runner.run(call_of(writes("good"), tmp_path), tracker, "1-1.00")
    assert metrics == {"rows": 1}
    assert (tmp_path / "table" / "content").read_text(encoding="utf-8") == "good"
    assert "its outputs stand, but MLflow could not log them" in capfd.readouterr().err

    def refuses(out_table: Path, out_report: Path) -> Mapping[str, float]:
        raise InputError("negative watch time")

    with pytest.raises(InputError, match="negative watch time"):
        _runner.run(call_of(refuses, tmp_path), tracker, "1-1.00")


def test_a_second_stage_in_the_same_tree_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_runner, "_LOCK_WAIT_S", 0.1)
    holder = textwrap.dedent(
        f"""
        import sys
        from pathlib import Path
        from watchnext.stages._runner import only_stage_here
        with only_stage_here(Path({str(tmp_path)!r})):
            print("held", flush=True)
            sys.stdin.read()
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another stage is running"), only_stage_here(tmp_path):
            pass
        process.kill()
    with only_stage_here(tmp_path):  # the system let go of the lock when its holder died
        pass


@pytest.mark.parametrize("through_a_shell", [False, True])
def test_a_stage_dies_with_the_dvc_that_started_it(tmp_path: Path, through_a_shell: bool) -> None:
    """`kill -9` of dvc. Seen to fail without the watching thread when a shell stands in between."""
    stage = tmp_path / "stage.py"
    stage.write_text(
        "import sys, time, psutil\n"
        "from watchnext.stages._runner import die_with\n"
        "die_with(psutil.Process(int(sys.argv[1])))\n"
        "print('working', flush=True)\n"
        "time.sleep(60)\n",
        encoding="utf-8",
    )
    parent = (
        "import os, subprocess, sys\n"
        f"command = [sys.executable, {str(stage)!r}, str(os.getpid())]\n"
        f"command = {'['} 'sh', '-c', ' '.join(command) + '; true' ] if {through_a_shell} else command\n"
        "child = subprocess.Popen(command)\n"
        "child.wait()\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as dvc:
        assert dvc.stdout is not None
        assert dvc.stdout.readline() == "working\n"
        stages = [
            child
            for child in psutil.Process(dvc.pid).children(recursive=True)
            if "stage.py" in str(child.cmdline())
        ]
        assert stages
        dvc.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(stages, timeout=10)
        survivors = [process for process in alive if "sh" not in process.name()]
        for process in alive:
            process.kill()
        assert not survivors


def test_an_execution_is_alive_until_its_process_ends() -> None:
    identifier = execution_id(psutil.Process())
    assert is_alive(identifier)
    assert not is_alive(f"{os.getpid()}-1.00"), "same process id, begun at another time"
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        time.sleep(0.1)
        other = execution_id(psutil.Process(process.pid))
        assert is_alive(other)
        process.kill()
    assert not is_alive(other)


def test_unknown_stage_is_refused_by_name(capfd: pytest.CaptureFixture[str]) -> None:
    assert _runner.main(["train_rankin"]) == 2
    assert "train_ranking" in capfd.readouterr().err


def test_checkpoints_survive_a_failure_and_go_when_the_outputs_are_in_place(
    tmp_path: Path, tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen to fail when they were removed with the staged outputs, and when they were left after success."""
    monkeypatch.chdir(tmp_path)
    failures = [True]

    def trains(out_table: Path, out_report: Path, checkpoints: Path) -> Mapping[str, float]:
        found = (checkpoints / "step").exists()
        checkpoints.mkdir(parents=True, exist_ok=True)
        (checkpoints / "step").touch()
        if failures.pop():
            raise InputError("the loss became nan")
        return {"found": found}

    with pytest.raises(InputError, match="nan"):
        _runner.run(call_of(trains, tmp_path), tracker, "1-1.00")
    (kept,) = (tmp_path / ".checkpoints").glob("*/step")
    assert kept.parent.name == "featurize"
    failures.append(False)
    assert _runner.run(call_of(trains, tmp_path), tracker, "1-1.00") == {"found": True}
    assert not kept.parent.exists()
