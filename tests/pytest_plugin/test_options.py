"""Settings: every way to write them, which goes first, and what a wrong one says."""

from __future__ import annotations

import re

import pytest

from pytest_ftcheck import Recipe
from pytest_ftcheck.pytest_plugin.options import SETTINGS

#: Prints what the session sets, as ``FIELDS {...}``.
SHOW = """
from pytest_ftcheck.pytest_plugin.options import FIELDS, progress_wanted

def pytest_sessionstart(session):
    print("FIELDS", sorted(session.config.stash[FIELDS].items()), progress_wanted(session.config))
"""

NUMBERS = "ftcheck_steps = 50\nftcheck_lr = 1e-3\nftcheck_device = 'cpu'\nftcheck_no_progress = true\n"
TEXTS = "ftcheck_steps = '50'\nftcheck_lr = '1e-3'\nftcheck_device = 'cpu'\nftcheck_no_progress = 'true'\n"
FORMS = {
    "pytest.ini": "[pytest]\n" + NUMBERS.replace("'", ""),
    "text in pyproject": "[tool.pytest.ini_options]\n" + TEXTS,
    "numbers in pyproject": "[tool.pytest.ini_options]\n" + NUMBERS,
    "native pyproject": "[tool.pytest]\n" + NUMBERS,
}


@pytest.fixture
def fields(pytester, run):
    """Run with some arguments; what the session set."""
    pytester.makeconftest(SHOW)

    def fields(*arguments):
        result = run("-s", *arguments)
        return result.stdout.str().partition("FIELDS ")[2].splitlines()[0]

    return fields


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_file(pytester, fields, form):
    if form.startswith("native") and pytest.version_tuple < (9,):
        pytest.skip("pytest 9 reads [tool.pytest]")
    name = "pytest.ini" if form == "pytest.ini" else "pyproject.toml"
    pytester.path.joinpath(name).write_text(FORMS[form])
    assert fields() == "[('device', 'cpu'), ('lr', 0.001), ('steps', 50)] False"


def test_nothing_is_set_by_default(fields):
    assert fields() == "[] True"


def test_the_command_line_goes_before_the_file(pytester, fields):
    pytester.makeini("[pytest]\nftcheck_steps = 50\nftcheck_seed = 1\nftcheck_max_seconds = 60")
    arguments = "--ftcheck-steps=7", "--ftcheck-lr", "0", "--ftcheck-max-seconds=0"
    assert fields(*arguments) == "[('lr', 0.0), ('max_seconds', None), ('seed', 1), ('steps', 7)] True"


def test_every_setting_is_a_field_of_the_recipe():
    names = [setting.field for setting in SETTINGS]
    assert sorted(names) == sorted(Recipe.field_names())


def test_the_header_says_what_is_set(run):
    run("--ftcheck-steps=7").stdout.fnmatch_lines(["ftcheck: steps=7"])
    assert "ftcheck:" not in run().stdout.str()


def test_help_lists_flag_unit_default_and_key(run):
    text = re.sub(r"\s+", " ", run("--help").stdout.str())
    assert "--ftcheck-steps=N Batches in a fine-tune: a whole number >= 1 (default: 20)" in text
    assert "--ftcheck-lr=NUMBER Peak learning rate: a finite number >= 0 (default: 5e-05)" in text
    assert "ftcheck_max_seconds (float)" in text


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--ftcheck-steps=0", "--ftcheck-steps=0: expected a whole number >= 1"),
        ("--ftcheck-steps=2.5", "--ftcheck-steps=2.5: expected a whole number >= 1"),
        ("--ftcheck-lr=-1", "--ftcheck-lr=-1: expected a finite number >= 0"),
        ("--ftcheck-lr=nan", "--ftcheck-lr=nan: expected a finite number >= 0"),
        ("--ftcheck-lr=fast", "--ftcheck-lr=fast: expected a finite number >= 0"),
        (
            "--ftcheck-warmup=1.5",
            "--ftcheck-warmup=1.5: expected a share of the steps below 1, or a whole number of steps",
        ),
        ("--ftcheck-seed=-1", "--ftcheck-seed=-1: expected a whole number >= 0"),
        ("--ftcheck-device=", "--ftcheck-device=: expected a device such as cpu, cuda or cuda:1"),
        ("--ftcheck-optimizer=lion", "--ftcheck-optimizer=lion: expected one of adamw, adam, *"),
        ("--ftcheck-max-seconds=-1", "--ftcheck-max-seconds=-1: expected a number > 0, or 0 for no limit"),
        ("-oftcheck_steps=0", "ftcheck_steps = 0: expected a whole number >= 1"),
        ("-oftcheck_steps=many", "ftcheck_steps: expected a whole number >= 1 (*'many'*)"),
        ("-oftcheck_no_progress=maybe", "ftcheck_no_progress: expected true or false (*'maybe'*)"),
        ("-oftcheck_lr=inf", "ftcheck_lr = inf: expected a finite number >= 0"),
    ],
)
def test_a_bad_value_is_one_usage_error(run, argument, message):
    result = run(argument)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {message.replace('[', '[[]')}"])
    assert result.stderr.str().count("expected") == 1


@pytest.mark.skipif(pytest.version_tuple < (9,), reason="pytest 9 reads [tool.pytest]")
def test_a_value_of_the_wrong_type_in_native_toml(pytester, run):
    pytester.makepyprojecttoml("[tool.pytest]\nftcheck_steps = '50'")
    result = run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*ftcheck_steps: expected a whole number >= 1 (*str: '50')"])
