"""The fixtures: found, marked, shared, and really fine-tuning; the examples in their docstrings are run."""

from __future__ import annotations

import ast
import inspect
import textwrap

import pytest

from pytest_ftcheck.pytest_plugin import fixtures


def examples(name: str) -> str:
    """The example in a fixture's docstring."""
    tree = ast.parse(inspect.getsource(fixtures))
    docs = {node.name: ast.get_docstring(node) for node in tree.body if isinstance(node, ast.FunctionDef)}
    return textwrap.dedent((docs[name] or "").partition("Example::\n\n")[2])


@pytest.mark.parametrize("name", sorted(fixtures.NAMES))
def test_the_example_in_the_manual_passes(pytester, run, trains, name):
    source = examples(name)
    assert "def test_" in source
    pytester.makepyfile(test_manual=source)
    result = run()
    result.assert_outcomes(passed=source.count("def test_"))


def test_fixtures_are_listed_with_a_line_each(run):
    result = run("--fixtures")
    for name in sorted(fixtures.NAMES):
        result.stdout.fnmatch_lines(
            [f"{name} [[]session scope[]] -- *pytest_ftcheck/pytest_plugin/fixtures.py:*", "    *."]
        )


def test_the_options_reach_the_run_and_arguments_go_before(pytester, run, trains):
    pytester.makeini("[pytest]\nftcheck_lr = 1e-3\nftcheck_seed = 3")
    pytester.makepyfile(
        test_it="""
        import pytest, torch
        from pytest_ftcheck import Recipe

        @pytest.fixture(scope="module")
        def both(tiny_distilbert, toy_batches):
            return tiny_distilbert, toy_batches(2, 4)

        def test_options(finetune, both):
            recipe = finetune(*both).recipe
            assert (recipe.steps, recipe.lr, recipe.seed) == (2, 1e-3, 4)

        def test_arguments(finetune, both):
            recipe = finetune(*both, steps=1, lr=0.0).recipe
            assert (recipe.steps, recipe.lr, recipe.seed) == (1, 0.0, 4)

        def test_a_recipe_is_taken_whole(finetune, both):
            recipe = Recipe(steps=3, seed=7)
            assert finetune(*both, recipe).recipe == recipe
            assert finetune(*both, recipe=recipe).recipe == recipe

        def test_an_optimizer_of_ones_own(finetune, both):
            trace = finetune(*both, optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.5))
            assert trace.optimizer.groups[0].lr_peak == 0.5
        """
    )
    run("--ftcheck-steps=2", "--ftcheck-seed=4").assert_outcomes(passed=4)


def test_the_marker_selects_who_uses_a_fixture_even_through_others(pytester, run):
    pytester.makepyfile(
        test_it="""
        import pytest

        @pytest.fixture
        def middle(finetune):
            return finetune

        @pytest.fixture
        def outer(middle):
            return middle

        def test_direct(toy_batches): pass
        def test_through_two(outer): pass
        def test_none(tmp_path): pass

        @pytest.mark.usefixtures("tiny_distilbert")
        class TestClass:
            def test_method(self): pass
        """
    )
    result = run("-m", "ftcheck", "--strict-markers", "--collect-only", "-q")
    names = [line.rpartition("::")[2] for line in result.outlines if "::" in line]
    assert names == ["test_direct", "test_through_two", "test_method"]
    result = run("-m", "not ftcheck", "--strict-markers")
    result.assert_outcomes(passed=1, deselected=3)
    run("--markers").stdout.fnmatch_lines(["@pytest.mark.ftcheck(ranks=None, timeout=300): *"])
