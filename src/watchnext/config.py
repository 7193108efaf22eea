"""Settings: `params.yaml` (YAML 1.2) read into frozen, typed sections.

The section classes stand where their settings are used: a stage's in the stage's module, the engine's in
`engine`. YAML 1.2 is what DVC reads, so that `1e-3` is a number for both.
"""

import copy
import difflib
import functools
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from watchnext.errors import InputError

PARAMS_FILE = Path("params.yaml")

STAGES = (
    "simulate",
    "ingest",
    "validate",
    "featurize",
    "choose_start",
    "train_retrieval",
    "build_index",
    "nominate",
    "train_ranking",
    "evaluate",
    "package",
    "promote",
    "compare_shadow",
)
"""Every stage in pipeline order: stage name in dvc.yaml = module in `stages` = section in params.yaml."""

SHARED_SECTIONS = ("seed", "engine", "training", "recommend")
"""Settings that more than one stage uses."""


class Section(BaseModel):
    """Base of every settings section: frozen, unknown keys refused, no silent conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


SectionT = TypeVar("SectionT", bound=Section)


class TrainingParams(Section):
    """Section `training` of params.yaml: what both training stages share."""

    deterministic: bool = True
    checkpoint_every_s: float = Field(default=300.0, ge=0)
    examples_in_memory: int = Field(default=2_000_000, ge=1)


Exclude = Literal["none", "watched", "shown"]
"""Which videos are not recommended: none is left out, what the user had begun to watch, or what was shown as well."""


class SourceQuotas(Section):
    """Section `recommend.sources`: how many of a request's candidates each source names; 0 leaves it out."""

    tower: int = Field(default=120, ge=1)
    co_watched: int = Field(default=20, ge=0)
    popular: int = Field(default=10, ge=0)
    channels: int = Field(default=40, ge=0)
    fresh: int = Field(default=10, ge=0)

    @model_validator(mode="after")
    def _tower_first(self) -> "SourceQuotas":
        if self.tower < max(self.co_watched, self.popular, self.channels, self.fresh):
            raise ValueError("the tower's share has to be the largest")
        return self


class ScoreParams(Section):
    """Section `recommend.score`: what slates are ordered by, see `models.final_score`."""

    duration_power: float = Field(default=0.0, ge=0, le=2)


class RecommendParams(Section):
    """Section `recommend` of params.yaml: what is measured, packaged and served alike."""

    exclude: Exclude = "watched"
    score: ScoreParams = ScoreParams()
    sources: SourceQuotas = SourceQuotas()


def project_folder(root: Path) -> Path:
    """The folder whose `mlruns/` the project in `root` uses: its own.

    Of an experiment in a temporary copy (`dvc exp run --temp` or `--queue`) it is that of the project it was copied
    from: runs would be lost with the copy, and whoever is judged there would not be counted.
    """
    root = root.resolve()
    for folder in root.parents:
        if folder.parts[-3:] == (".dvc", "tmp", "exps"):
            return folder.parents[2]
    return root


def read_params(path: Path = PARAMS_FILE) -> dict[str, Any]:
    """Read the whole file and refuse unknown sections.

    Raises:
        InputError: the file is absent, is not YAML, or has a section that nothing reads.
    """
    try:
        content = copy.deepcopy(_parsed(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError(
            "there is no settings file",
            where=str(path),
            remedy="run in the project's folder, or restore params.yaml from git",
        ) from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise InputError("the settings file is not valid YAML", where=str(path), offenders=[error]) from error
    if not isinstance(content, dict):
        raise InputError("the settings file holds no sections", where=str(path))
    known = (*SHARED_SECTIONS, *STAGES)
    for name in content:
        if name not in known:
            raise InputError(
                f"unknown section `{name}`", where=str(path), remedy=_suggestion(str(name), known)
            )
    return content


@functools.lru_cache(maxsize=2)
def _parsed(text: str) -> Any:
    """YAML, read once: every stage checks the sections of all, and a parse of params.yaml takes a quarter of a second."""
    return YAML(typ="safe").load(text)


def load_section(name: str, section: type[SectionT], path: Path = PARAMS_FILE) -> SectionT:
    """Read section `name` of the settings file.

    Raises:
        InputError: the section is absent, has an unknown key, or a value of the wrong type or range.
    """
    content = read_params(path)
    if name not in content:
        raise InputError(f"section `{name}` is missing", where=str(path))
    try:
        return section.model_validate(content[name] or {})
    except ValidationError as error:
        raise _explain(error, name, section, path) from None


def load_seed(path: Path = PARAMS_FILE) -> int:
    """The seed that every random draw of a pipeline derives from."""
    seed = read_params(path).get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise InputError("`seed` must be a non-negative integer", where=str(path), offenders=[repr(seed)])
    return seed


def _explain(error: ValidationError, name: str, section: type[Section], path: Path) -> InputError:
    problems = []
    remedy = "see the comments in params.yaml"
    for detail in error.errors():
        key = ".".join((name, *(str(part) for part in detail["loc"])))
        if detail["type"] == "extra_forbidden":
            problems.append(f"`{key}` is not a setting")
            remedy = _suggestion(str(detail["loc"][-1]), tuple(section.model_fields))
        elif detail["type"] == "missing":
            problems.append(f"`{key}` is missing")
        else:
            problems.append(f"`{key}` is {detail['input']!r}: {detail['msg']}")
    return InputError("the settings are not usable: " + "; ".join(problems), where=str(path), remedy=remedy)


def _suggestion(name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean `{close[0]}`?"
    return "known here: " + ", ".join(known)
