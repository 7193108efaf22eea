"""dvc.yaml, params.yaml, the stage modules and their imports tell one story."""

import ast
import inspect
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from module_imports import needed_files, path_of
from ruamel.yaml import YAML

from watchnext import config
from watchnext.stages._runner import load_stage

ROOT = Path(__file__).parents[2]
SETTINGS = {"--source", "--warm-start", "--model-name"}
"""Flags that are settings of other stages; the command names them, so DVC runs the stage when they change."""

PIPELINE = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


def test_stage_names_are_the_same_in_dvc_yaml_params_and_modules() -> None:
    params = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    modules = {path.stem for path in (ROOT / "src/watchnext/stages").glob("[a-z]*.py")}
    assert list(PIPELINE) == list(config.STAGES)
    assert list(params) == [*config.SHARED_SECTIONS, *config.STAGES]
    assert modules == set(config.STAGES)


@pytest.mark.parametrize("stage", config.STAGES)
def test_deps_name_every_source_file_that_the_stage_imports(stage: str) -> None:
    """Seen to fail when a line was taken out of `deps`, and when a lazy import was added to a stage."""
    deps = {dep for dep in PIPELINE[stage]["deps"] if dep.startswith("src/")}
    needed = needed_files(stage)
    assert not needed - deps, f"add to the deps of `{stage}` in dvc.yaml: {sorted(needed - deps)}"
    assert not deps - needed, f"take out of the deps of `{stage}` in dvc.yaml: {sorted(deps - needed)}"


@pytest.mark.parametrize("stage", config.STAGES)
def test_command_gives_the_flags_that_the_function_takes(stage: str) -> None:
    _, function = load_stage(stage)
    expected = {
        f"--{name.replace('_', '-')}"
        for name, annotation in inspect.get_annotations(function, eval_str=True).items()
        if annotation in (Path, str) and name != "return"
    }
    assert {word for word in PIPELINE[stage]["cmd"].split() if word.startswith("--")} == expected


@pytest.mark.parametrize("stage", config.STAGES)
def test_every_input_and_output_flag_is_declared_to_dvc(stage: str) -> None:
    entry = PIPELINE[stage]
    words = entry["cmd"].split()
    paths = {flag: value for flag, value in itertools.pairwise(words) if flag.startswith("--")}
    outs = {name for out in entry["outs"] for name in out}
    for flag, value in paths.items():
        if flag.startswith("--out-"):
            assert value in outs
        elif flag not in SETTINGS:
            assert value in entry["deps"]


@pytest.mark.parametrize("stage", config.STAGES)
def test_dvc_watches_every_section_that_the_function_reads(stage: str) -> None:
    _, function = load_stage(stage)
    sections = {
        stage if name == "params" else name
        for name, annotation in inspect.get_annotations(function, eval_str=True).items()
        if name == "seed" or (inspect.isclass(annotation) and issubclass(annotation, config.Section))
    }
    assert set(PIPELINE[stage]["params"]) == sections


@pytest.mark.parametrize("stage", config.STAGES)
def test_a_stage_module_holds_its_settings_and_one_function(stage: str) -> None:
    path = path_of(f"watchnext.stages.{stage}")
    assert path is not None
    body = ast.parse(path.read_text(encoding="utf-8")).body
    functions = [node.name for node in body if isinstance(node, ast.FunctionDef)]
    assert functions == [stage]


def test_defaults_in_params_yaml_are_the_defaults_of_the_code() -> None:
    """So that a reader of either knows what runs, and a section that loses a key does not change its meaning."""
    content = config.read_params(ROOT / "params.yaml")
    for stage in config.STAGES:
        module, _ = load_stage(stage)
        written = config.load_section(stage, module.Params, ROOT / "params.yaml")
        assert written == module.Params(), stage
        missing = set(module.Params.model_fields) - set(content[stage] or {})
        assert not missing, f"params.yaml, {stage}: write down {sorted(missing)}"
    recommend = config.load_section("recommend", config.RecommendParams, ROOT / "params.yaml")
    assert recommend == config.RecommendParams()


def test_no_stage_reads_the_truth_of_the_simulated_world() -> None:
    for stage, entry in PIPELINE.items():
        assert not any("truth" in dep for dep in entry["deps"]), stage


def test_loading_every_stage_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from watchnext.config import STAGES\n"
        "from watchnext.stages._runner import load_stage\n"
        "for stage in STAGES: load_stage(stage)\n"
        "heavy = {'tensorflow', 'mlflow', 'great_expectations', 'scann', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
