"""A params file with a slip in it is refused with a message that names the slip."""

from pathlib import Path

import pytest
from pydantic import Field

from watchnext import config
from watchnext.errors import InputError
from watchnext.stages._runner import check_settings

ROOT = Path(__file__).parents[2]


class Example(config.Section):
    learning_rate: float = Field(default=0.1, gt=0)
    epochs: int = 3
    alias: str = "champion"


@pytest.fixture
def params_file(tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    return path


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_numbers_in_scientific_notation_are_numbers(tmp_path: Path) -> None:
    """YAML 1.2, as DVC reads it; YAML 1.1 would make `1e-3` a string."""
    path = write(tmp_path / "params.yaml", "promote: {learning_rate: 1e-3}\n")
    assert config.load_section("promote", Example, path).learning_rate == 0.001


def test_unknown_key_is_refused_with_the_one_that_was_meant(tmp_path: Path) -> None:
    path = write(tmp_path / "params.yaml", "promote: {learning_rte: 0.1}\n")
    with pytest.raises(InputError, match=r"`promote.learning_rte` is not a setting") as caught:
        config.load_section("promote", Example, path)
    assert "did you mean `learning_rate`?" in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("value", ["'0.1'", "fast", "true", "[1]", "null"])
def test_a_string_where_a_number_belongs_is_refused(tmp_path: Path, value: str) -> None:
    path = write(tmp_path / "params.yaml", f"promote: {{learning_rate: {value}}}\n")
    with pytest.raises(InputError, match=r"`promote.learning_rate` is .*(number|float)"):
        config.load_section("promote", Example, path)


def test_a_number_out_of_range_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "params.yaml", "promote: {learning_rate: -1}\n")
    with pytest.raises(InputError, match=r"`promote.learning_rate` is -1: .*greater than 0"):
        config.load_section("promote", Example, path)


def test_every_slip_is_named_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "params.yaml", "promote: {learning_rate: x, epochs: 1.5, alias: 3}\n")
    with pytest.raises(InputError) as caught:
        config.load_section("promote", Example, path)
    for key in ("learning_rate", "epochs", "alias"):
        assert f"`promote.{key}`" in str(caught.value)


def test_unknown_section_is_refused(params_file: Path) -> None:
    params_file.write_text(params_file.read_text(encoding="utf-8") + "\ntrain_rankin: {}\n", encoding="utf-8")
    with pytest.raises(InputError, match="unknown section `train_rankin`") as caught:
        config.read_params(params_file)
    assert "did you mean `train_ranking`?" in str(caught.value)


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "", "\tseed: 1\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "params.yaml", text)
    with pytest.raises(InputError, match=r"not valid YAML|holds no sections"):
        config.read_params(path)


def test_a_missing_file_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no settings file") as caught:
        config.read_params(tmp_path / "params.yaml")
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("seed", ["-1", "1.5", "'1'", "true", "null"])
def test_a_seed_is_a_whole_number(tmp_path: Path, seed: str) -> None:
    path = write(tmp_path / "params.yaml", f"seed: {seed}\n")
    with pytest.raises(InputError, match="`seed` must be a non-negative integer"):
        config.load_seed(path)


def test_a_slip_in_the_last_stage_is_found_before_the_first_runs(params_file: Path) -> None:
    check_settings(params_file)
    text = params_file.read_text(encoding="utf-8").replace(
        "\ncompare_shadow:", "\ncompare_shadow:\n  evidnce: offline"
    )
    params_file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"`compare_shadow.evidnce` is not a setting"):
        check_settings(params_file)
