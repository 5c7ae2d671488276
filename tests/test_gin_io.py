"""Reading gin: what wins, what is accepted, and the text of every error."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from types import NoneType

import pytest
from toy import write

from gpt import gin_io
from gpt.config import SECTIONS, ModelConfig, RunConfig, TokenizerConfig
from gpt.errors import ConfigError
from gpt.gin_io.fields import FIELDS, options_of

NEEDED = ("RunConfig.output_dir=runs/x", "TokenizerConfig.path=tok", "DataConfig.token_store=tokens")


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative names in messages, and nothing found by accident in the checkout."""
    monkeypatch.chdir(tmp_path)


def load_text(text: str, *overrides: str) -> RunConfig:
    return gin_io.load([write("a.gin", text)], [*NEEDED, *overrides])


def error_of(text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_text(text, *overrides)
    return str(caught.value)


# What wins.


def test_without_a_file_the_defaults_hold() -> None:
    config = gin_io.load([], NEEDED)
    assert config.model == ModelConfig()
    assert config.output_dir == "runs/x"


def test_a_later_file_wins_over_an_earlier_one() -> None:
    files = [write("a.gin", "ModelConfig.num_layers = 1"), write("b.gin", "ModelConfig.num_layers = 2")]
    assert gin_io.load(files, NEEDED).model.num_layers == 2
    assert gin_io.load(files[::-1], NEEDED).model.num_layers == 1


def test_an_override_wins_over_files() -> None:
    assert load_text("ModelConfig.num_layers = 1", "ModelConfig.num_layers=3").model.num_layers == 3


@pytest.mark.parametrize("order", ["include 'leaf.gin'\n{own}", "{own}\ninclude 'leaf.gin'"])
def test_a_file_wins_over_what_it_includes_wherever_the_include_stands(order: str) -> None:
    write("leaf.gin", "ModelConfig.num_layers = 1\nModelConfig.mlp_dim = 64")
    model = load_text(order.format(own="ModelConfig.num_layers = 2")).model
    assert (model.num_layers, model.mlp_dim) == (2, 64)


def test_of_two_includes_the_later_wins() -> None:
    write("one.gin", "ModelConfig.num_layers = 1")
    write("two.gin", "ModelConfig.num_layers = 2")
    assert load_text("include 'two.gin'\ninclude 'one.gin'").model.num_layers == 1


def test_an_include_is_found_beside_the_including_file_before_the_current_directory() -> None:
    write("leaf.gin", "ModelConfig.num_layers = 1")
    write("run/leaf.gin", "ModelConfig.num_layers = 2")
    assert gin_io.load([write("run/a.gin", "include 'leaf.gin'")], NEEDED).model.num_layers == 2
    assert gin_io.load([write("task/a.gin", "include 'leaf.gin'")], NEEDED).model.num_layers == 1
    assert gin_io.load([write("task/b.gin", "include '../run/leaf.gin'")], NEEDED).model.num_layers == 2


def test_a_macro_takes_its_last_definition_wherever_it_is_used() -> None:
    text = "OptimizerConfig.learning_rate = %lr\nlr = 1e-3"
    assert load_text(text).optimizer.learning_rate == 1e-3
    assert load_text(text, "lr=1e-4").optimizer.learning_rate == 1e-4


def test_a_macro_may_stand_for_a_macro() -> None:
    assert load_text("width = 96\nd = %width\nModelConfig.embed_dim = %d").model.embed_dim == 96


def test_a_macro_whose_use_is_overridden_still_counts_as_used() -> None:
    config = load_text("lr = 1\nOptimizerConfig.learning_rate = %lr", "OptimizerConfig.learning_rate=2")
    assert config.optimizer.learning_rate == 2.0


# What is accepted.


def test_a_block_sets_the_fields_of_its_section() -> None:
    model = load_text("ModelConfig:\n  num_layers = 6\n\n  # narrow\n  embed_dim = 48\n").model
    assert (model.num_layers, model.embed_dim) == (6, 48)


def test_an_empty_file_changes_nothing() -> None:
    assert load_text("") == gin_io.load([], NEEDED)


def test_a_byte_order_mark_is_skipped() -> None:
    assert load_text("\ufeffModelConfig.num_layers = 6").model.num_layers == 6


def test_an_int_for_a_float_becomes_a_float() -> None:
    rate = load_text("OptimizerConfig.learning_rate = 1").optimizer.learning_rate
    assert isinstance(rate, float)


def test_none_is_taken_where_the_field_is_optional() -> None:
    assert load_text("OptimizerConfig.max_grad_norm = None").optimizer.max_grad_norm is None
    assert load_text("", "OptimizerConfig.max_grad_norm=None").optimizer.max_grad_norm is None


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("runs/x", "runs/x"),
        ("'runs/x'", "runs/x"),
        ('"runs/x"', "runs/x"),
        ("/a/b c", "/a/b c"),
        (" runs/x ", "runs/x"),
        ("2024_11", "2024_11"),
        ("1e3", "1e3"),
        ("runs/a=b#c", "runs/a=b#c"),
        ("50%", "50%"),
        ("ünï", "ünï"),
    ],
)
def test_a_bare_word_on_the_command_line_is_text_where_the_field_takes_text(written: str, meant: str) -> None:
    assert load_text("", f"TaskConfig.data_dir={written}").task.data_dir == meant


def test_a_bare_word_is_taken_for_one_of_a_few_values_and_for_a_macro() -> None:
    assert load_text("", "ModelConfig.compute_dtype=bfloat16").model.compute_dtype == "bfloat16"
    assert load_text("RunConfig.init_from = %start", "start=runs/first").init_from == "runs/first"


# Text of a config, and the difference of two.


def test_the_text_of_a_config_is_read_back_to_an_equal_config() -> None:
    config = load_text(
        "RunConfig.init_from = 'it\\'s \"here\"\\n%lr #1 ü'\nOptimizerConfig.learning_rate = 1e-5\nMeshConfig.data = -1"
    )
    text = gin_io.format_config(config)
    assert gin_io.load([write("saved.gin", text)]) == config
    assert len([line for line in text.splitlines() if line]) == len(FIELDS)


def test_differences_name_each_setting_with_both_values() -> None:
    old, new = load_text("ModelConfig.num_layers = 6"), load_text("RunConfig.init_from = 'runs/a'")
    assert gin_io.differences(old, new) == [
        "RunConfig.init_from: None there, 'runs/a' here",
        "ModelConfig.num_layers: 6 there, 12 here",
    ]
    assert gin_io.differences(old, old) == []


def test_the_description_has_type_default_and_meaning_of_every_field() -> None:
    text = gin_io.describe_fields()
    assert "  RunConfig.output_dir: str = REQUIRED\n      run directory" in text
    assert "  ModelConfig.scan_layers: bool | None = None\n" in text
    assert "  OptimizerConfig.schedule: 'cosine' | 'linear' | 'constant' = 'cosine'\n" in text
    for section in SECTIONS:
        assert f"{section.__name__}: {section.__doc__}" in text
        for field in dataclasses.fields(section):
            assert dataclasses.is_dataclass(field.type) or field.metadata["help"] in text


def test_every_field_has_a_type_that_the_reader_checks() -> None:
    for key, field in FIELDS.items():
        for option in options_of(field.type):
            assert option in (int, float, str, bool, NoneType, dict[str, float]) or isinstance(option, str), key


# Errors: names.


def test_an_unknown_section_is_named_with_the_nearest() -> None:
    expected = "a.gin:2: unknown section `ModelConfg`; did you mean `ModelConfig`?"
    assert error_of("\nModelConfg.num_layers = 6") == expected
    assert "; the sections are RunConfig, TokenizerConfig, ModelConfig," in error_of("xyz.num_layers = 6")


def test_an_unknown_field_is_named_with_the_nearest() -> None:
    expected = "ModelConfig has no field `num_layer`; did you mean `num_layers`?"
    assert error_of("ModelConfig.num_layer = 6") == f"a.gin:1: {expected}"
    assert error_of("", "ModelConfig.num_layer=6") == f"--gin.ModelConfig.num_layer=6: {expected}"
    assert error_of("ModelConfig:\n  num_layer = 6") == f"a.gin:2: {expected}"
    assert "; its fields are save_every_steps, keep" in error_of("CheckpointConfig.xyz = 6")


def test_a_field_of_another_section_is_named_with_that_section() -> None:
    assert "did you mean `OptimizerConfig.learning_rate`?" in error_of("ModelConfig.learning_rate = 1e-4")


def test_a_nested_section_cannot_be_set_as_a_whole() -> None:
    assert "RunConfig has no field `model`" in error_of("RunConfig.model = 6")


def test_an_undefined_macro_is_named_with_the_nearest() -> None:
    text = "rate = 1e-4\nTaskConfig.lm_coef = %rate\nOptimizerConfig.learning_rate = %rtae"
    assert error_of(text) == "a.gin:3: undefined macro `%rtae`; did you mean `rate`?"


def test_an_undefined_macro_in_a_list_is_found() -> None:
    assert "undefined macro `%nowhere`" in error_of("ModelConfig.num_layers = [1, (%nowhere, 2)]")


def test_a_macro_that_nothing_uses_is_an_error_with_the_nearest() -> None:
    text = "rate = 1e-4\nOptimizerConfig.learning_rate = %rate"
    expected = "--gin.rat=1: macro `rat` is defined and never used; did you mean `rate`?"
    assert error_of(text, "rat=1") == expected
    assert error_of("batch_size = 8").endswith("never used; did you mean `RunConfig.batch_size`?")


def test_a_macro_that_stands_for_itself_is_an_error() -> None:
    assert "macro `%b` stands for itself" in error_of("a = %b\nb = %a\nRunConfig.seed = %a")


def test_a_sign_before_a_macro_is_an_error() -> None:
    text = "n = 1\nMeshConfig.data = {}%n  # not -%n"
    assert error_of(text.format("-")) == "a.gin:2: `-%n`: a macro takes no sign; define a negative one"
    assert load_text(text.format("")).mesh.data == 1


@pytest.mark.parametrize("text", ["eval/ModelConfig.num_layers = 6", "eval/ModelConfig:\n  num_layers = 6"])
def test_a_scope_is_an_error_that_names_the_setting_without_it(text: str) -> None:
    message = error_of(text)
    assert "`eval/ModelConfig.num_layers`: scopes are not used here" in message
    assert message.endswith("did you mean `ModelConfig.num_layers`?")


# Errors: values.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ModelConfig.num_layers = 'six'", "= 'six': expected int"),
        ("ModelConfig.num_layers = 6.0", "= 6.0: expected int"),
        ("ModelConfig.num_layers = True", "= True: expected int"),
        ("ModelConfig.num_layers = None", "= None: expected int"),
        ("ModelConfig.num_layers = [6]", "= [6]: expected int"),
        ("ModelConfig.num_layers = {'a': 6}", "= {'a': 6}: expected int"),
        ("OptimizerConfig.learning_rate = True", "= True: expected float"),
        ("OptimizerConfig.learning_rate = 1e999", "the number is beyond the range of a float"),
        (f"OptimizerConfig.learning_rate = 1{'0' * 400}", "the number is beyond the range of a float"),
        ("RunConfig.seed = 9223372036854775808", "the number is beyond the range of 64 bits"),
        ("OptimizerConfig.max_grad_norm = '1'", "= '1': expected float | None"),
        ("ModelConfig.scan_layers = 1", "= 1: expected bool | None"),
        ("RunConfig.init_from = 3", "= 3: expected str | None"),
        ("OptimizerConfig.schedule = 3", "= 3: expected 'cosine' | 'linear' | 'constant'"),
        (
            "OptimizerConfig.schedule = 'cosin'",
            "= 'cosin': expected 'cosine' | 'linear' | 'constant'; did you mean `cosine`?",
        ),
    ],
)
def test_a_value_of_the_wrong_type_names_the_right_one(text: str, expected: str) -> None:
    message = error_of(text)
    assert message.startswith(f"a.gin:1: {text.split(' ')[0]}")
    assert message.endswith(expected)


def test_a_bare_word_is_no_number_and_none_is_no_text() -> None:
    assert "ModelConfig.num_layers = 'six': expected int" in error_of("", "ModelConfig.num_layers=six")
    with pytest.raises(ConfigError, match=r"RunConfig\.output_dir = None: expected str"):
        gin_io.load([], ["RunConfig.output_dir=None"])


def test_a_value_that_came_through_a_macro_names_both_lines() -> None:
    text = "rate = '1'\nOptimizerConfig.learning_rate = %rate"
    assert error_of(text) == "a.gin:2 (%rate of a.gin:1): OptimizerConfig.learning_rate = '1': expected float"


def test_a_wrong_value_is_an_error_even_where_a_later_one_replaces_it() -> None:
    assert error_of("ModelConfig.num_layers = 'six'", "ModelConfig.num_layers=6").startswith("a.gin:1: ")


def test_the_same_setting_twice_in_a_file_names_both_lines() -> None:
    text = "ModelConfig.num_layers = 6\n\nModelConfig.num_layers = 6"
    assert error_of(text) == "a.gin:3: `ModelConfig.num_layers` is set twice in this file, first at a.gin:1"
    assert "`lr` is set twice in this file" in error_of("lr = 1\nlr = 1\nOptimizerConfig.learning_rate = %lr")
    assert "a.gin:3: `ModelConfig.num_layers` is set twice" in error_of(
        "ModelConfig.num_layers = 6\nModelConfig:\n  num_layers = 6"
    )


def test_the_same_setting_twice_on_the_command_line_names_both() -> None:
    message = error_of("", "ModelConfig.num_layers=6", "ModelConfig.num_layers=7")
    assert message == (
        "--gin.ModelConfig.num_layers=7: `ModelConfig.num_layers` is set twice on the command line, "
        "first at --gin.ModelConfig.num_layers=6"
    )


@pytest.mark.parametrize("mark", ["%gin.REQUIRED", "%REQUIRED"])
def test_all_settings_still_required_are_listed_in_one_error(mark: str) -> None:
    file = write("a.gin", f"DataConfig.token_store = {mark}\nlr = {mark}\nOptimizerConfig.learning_rate = %lr")
    with pytest.raises(ConfigError) as caught:
        gin_io.load([file], ["TokenizerConfig.path=tok"])
    assert str(caught.value).splitlines() == [
        "still to be set, in a gin file or with --gin.Section.field=value:",
        "  RunConfig.output_dir (no default): run directory: config, checkpoints, metrics; "
        "repeat the command to resume",
        "  DataConfig.token_store (REQUIRED in a.gin:1): directory that `gpt prepare` wrote, or several by weight: "
        "{'books': 0.7, 'wiki': 0.3}; needed to pretrain",
        "  OptimizerConfig.learning_rate (REQUIRED in a.gin:3 (%lr of a.gin:2)): peak learning rate",
    ]


def test_a_required_mark_is_met_by_a_later_value() -> None:
    assert load_text("RunConfig.init_from = %gin.REQUIRED", "RunConfig.init_from=None").init_from is None


def test_a_required_mark_after_a_value_asks_again() -> None:
    write("leaf.gin", "RunConfig.seed = 1")
    assert "RunConfig.seed (REQUIRED in a.gin:2)" in error_of("include 'leaf.gin'\nRunConfig.seed = %gin.REQUIRED")


def test_settings_that_do_not_go_together_are_named_with_the_lines_that_set_them() -> None:
    message = error_of("\nModelConfig.embed_dim = 100\nModelConfig.mlp_dim = 400", "ModelConfig.num_heads=3")
    assert message.endswith("heads (set in a.gin:2, --gin.ModelConfig.num_heads=3)")
    assert error_of("ModelConfig.num_layers = 0").endswith("(set in a.gin:1)")
    assert error_of("TaskConfig.name = 'cola'").startswith("ModelConfig.num_special_tokens = 0")


# Errors: files and syntax.


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("\nModelConfig.num_layers 6", 2),
        ("ModelConfig.num_layers =", 1),
        ("ModelConfig.num_layers = [1,", "[12]"),  # Python 3.12 tells the first line, 3.11 the last
        ("ModelConfig.num_layers = 6 7", 1),
        ("ModelConfig.compute_dtype = bfloat16", 1),
        ("ModelConfig.compute_dtype = 'bfloat16", 1),
        ("ModelConfig..num_layers = 6", 1),
        ("ModelConfig:\nnum_layers = 6", 2),
        ("ModelConfig:\n    num_layers = 6\n  mlp_dim = 6", 3),
        ("include leaf", 1),
        ("\0", 1),
    ],
)
def test_a_syntax_error_names_file_and_line(text: str, line: int | str) -> None:
    assert re.match(rf"a\.gin:{line}: not gin syntax: ", error_of(text))


def test_an_unquoted_word_in_a_file_is_named_without_the_parser_s_internals() -> None:
    message = error_of("ModelConfig.compute_dtype = bfloat16")
    assert "Failed to parse token 'bfloat16'" in message
    assert "object at" not in message


@pytest.mark.parametrize("override", ["ModelConfig.num_layers", "ModelConfig.num_layers=", "=6", "a b=6", "a=1\nb=2"])
def test_an_override_that_sets_nothing_shows_how_one_is_written(override: str) -> None:
    assert error_of("", override) == (
        f"--gin.{override}: expected --gin.Section.field=value, such as --gin.ModelConfig.num_layers=6"
    )


def test_an_override_with_an_open_quote_or_bracket_is_no_bare_word() -> None:
    assert error_of("", "RunConfig.init_from='runs/x").startswith("--gin.RunConfig.init_from='runs/x: not gin syntax")
    assert "not gin syntax" in error_of("", "RunConfig.init_from=[runs/x")


@pytest.mark.parametrize("text", ["import os", "from os import path", "RunConfig.seed = @f()", "RunConfig.seed = [@f]"])
def test_nothing_in_a_config_runs_code(text: str) -> None:
    assert error_of(text).endswith("a config holds values only and never runs code; delete it")


def test_a_missing_file_is_named_with_the_nearest_sibling() -> None:
    write("run/pretrain.gin", "")
    with pytest.raises(ConfigError, match=r"^run/pretrian\.gin: no such file; did you mean `pretrain\.gin`\?$"):
        gin_io.load(["run/pretrian.gin"])


def test_a_missing_included_file_names_the_line_that_includes_it() -> None:
    write("leaf.gin", "")
    message = error_of("\ninclude 'laef.gin'")
    assert message == "laef.gin (included in a.gin:2): no such file; did you mean `leaf.gin`?"


def test_an_included_file_includes_nothing_further() -> None:
    write("leaf.gin", "include 'deeper.gin'")
    message = error_of("\ninclude 'leaf.gin'")
    assert message.startswith("leaf.gin:1: include 'deeper.gin': this file is itself included (in a.gin:2)")


def test_a_file_that_includes_itself_is_an_error() -> None:
    assert "included files include nothing further" in error_of("include 'a.gin'")


def test_a_directory_is_no_config() -> None:
    with pytest.raises(ConfigError, match=r"expected a gin file, cannot read it: Is a directory"):
        gin_io.load([Path()])


@pytest.mark.parametrize("content", [b"\x93NUMPY\x01\x00\xff", "RunConfig.seed = 1 # é".encode("latin-1")])
def test_a_file_that_is_not_utf_8_is_refused(content: bytes) -> None:
    Path("a.gin").write_bytes(content)
    with pytest.raises(ConfigError, match=r"^a\.gin: expected a gin file in UTF-8; byte \d+ is not UTF-8$"):
        gin_io.load(["a.gin"])


@pytest.mark.parametrize("where", ["gs://bucket/run", "file:///runs/x"])
def test_a_run_directory_behind_a_url_is_refused_with_the_way_out(where: str) -> None:
    with pytest.raises(ConfigError, match=rf"RunConfig\.output_dir = '{where}': must be a path.*Mount the bucket"):
        gin_io.load([], [f"RunConfig.output_dir={where}", *NEEDED[1:]])


# Walls.


def test_reading_configs_imports_no_jax() -> None:
    code = "import gpt.gin_io, sys; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_config_built_by_hand_equals_the_one_that_was_read() -> None:
    read = load_text("")
    by_hand = RunConfig(output_dir="runs/x", tokenizer=TokenizerConfig(path="tok"), data=read.data)
    assert read == by_hand


# Token stores with weights


def test_token_stores_are_given_with_weights_in_a_file_and_on_the_command_line() -> None:
    text = "DataConfig.token_store = {\n  'gs://b/wiki': %share,\n  'runs/books': 1,\n}\nshare = 0.5"
    from_file = gin_io.load([write("a.gin", text)], NEEDED[:2]).data
    from_flag = gin_io.load([], [*NEEDED[:2], "DataConfig.token_store={'runs/books': 1, 'gs://b/wiki': .5}"]).data
    assert from_file == from_flag
    assert list(from_file.token_stores.items()) == list(from_flag.token_stores.items())
    assert from_file.token_stores == {"gs://b/wiki": 0.5, "runs/books": 1.0}
    assert gin_io.load([], NEEDED).data.token_stores == {"tokens": 1.0}


def test_weights_are_read_back_from_the_saved_config() -> None:
    config = gin_io.load([], [*NEEDED[:2], "DataConfig.token_store={'a': 7, 'b': 3}"])
    assert gin_io.load([write("saved.gin", gin_io.format_config(config))]) == config


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{'a': 'b'}", "DataConfig.token_store = {'a': 'b'}: expected str | dict[str, float] | None"),
        ("{'a': True}", "expected str | dict[str, float] | None"),
        ("{1: 2}", "expected str | dict[str, float] | None"),
        ("['a', 'b']", "expected str | dict[str, float] | None"),
        ("{'a': 1, 'a': 2}", "'a' is there twice"),
        ("{'a': %none}", "undefined macro `%none`"),
        ("{}", "must name at least one token store"),
        ("{'a': 0}", "the weight of 'a' is 0.0: must be greater than 0"),
        ("{'a': -1.5, 'b': 1}", "the weight of 'a' is -1.5"),
        ("{'a': 1e999}", "the weight of 'a' is inf"),
    ],
)
def test_weights_that_are_none_are_refused(value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        gin_io.load([], [*NEEDED[:2], f"DataConfig.token_store={value}"])
