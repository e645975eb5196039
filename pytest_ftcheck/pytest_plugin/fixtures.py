"""The fixtures. They are session-scoped and return plain functions, so they work under ``@given``, too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from .session_finetune import session_finetune
from .suite import running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..core.trace import Trace
    from ..initialization.features import Features
    from ..seeds.runs import Runs

#: Names of the fixtures; a test that uses one gets the marker ``ftcheck``.
NAMES = frozenset({"finetune", "tiny_distilbert", "toy_batches", "toy_features"})


@pytest.fixture(scope="session")
def finetune(pytestconfig: pytest.Config) -> Callable[..., Trace | Runs]:
    """Run a short fine-tune and return its trace; ``--ftcheck-*`` options set steps, seed, device and so on.

    The function takes what :func:`pytest_ftcheck.finetune` takes: a model, batches, and fields of the recipe.
    Each field is taken from the call, else from the command line (``--ftcheck-steps=50``), else from the
    configuration file (``ftcheck_steps = 50``), else from :class:`pytest_ftcheck.Recipe`. A whole ``recipe=``
    counts as an argument of the call: the options change none of its fields.

    With ``--ftcheck-seeds`` it returns :class:`pytest_ftcheck.Runs`, which assertions and checks accept in place of a trace. ``seeds=``
    in the call takes precedence; ``seeds=None`` means one run.

    Where a check is inconclusive, the run is made again with twice and four times the steps, within the 30 seconds of
    ``--ftcheck-extend-seconds``; the verdict says so. ``finetune(..., extend_seconds=0)`` forbids it for one run.

    Wrap it in a module-scoped fixture of your own to fine-tune once and assert many times.

    Example::

        import pytest
        from pytest_ftcheck import assert_grads_nonzero, assert_weights_move

        @pytest.fixture(scope="module")
        def trace(finetune, tiny_distilbert, toy_batches):
            return finetune(tiny_distilbert, toy_batches(), steps=20)

        def test_head_gets_gradients(trace):
            assert_grads_nonzero(trace)

        def test_head_moves(trace):
            assert_weights_move(trace)
    """
    return session_finetune(pytestconfig)


@pytest.fixture(scope="session")
def tiny_distilbert() -> Callable[..., Any]:
    """Make a tiny DistilBERT with a two-layer head and random weights: no download, milliseconds a step.

    The function is :func:`pytest_ftcheck.tiny_distilbert`; its arguments set the sizes. Every call makes a
    new model.

    Example::

        def test_two_logits_a_row(tiny_distilbert, toy_batches):
            model = tiny_distilbert()
            inputs, labels = toy_batches(size=8)[0]
            assert model(inputs).shape == (8, 2)
    """
    from ..instruments.toys import tiny_distilbert

    return tiny_distilbert


@pytest.fixture(scope="session")
def toy_batches() -> Callable[..., Any]:
    """Make batches of a small synthetic task that a healthy model learns within a few steps.

    The function is :func:`pytest_ftcheck.toy_batches`; its arguments set number and size of the batches,
    classes and seed. A batch is ``((ids, length, attention_mask), labels)``.

    Example::

        def test_batches_repeat(toy_batches):
            (_, labels), (_, again) = toy_batches(seed=1)[0], toy_batches(seed=1)[0]
            assert labels.equal(again)
    """
    from ..instruments.toys import toy_batches

    return toy_batches


@pytest.fixture(scope="session")
def toy_features() -> Features:
    """Features of a small task to try heads and initialization schemes on: the default of `pytest_ftcheck.toy_features`.

    Example::

        from torch import nn
        from pytest_ftcheck import InitScheme, assert_trainable

        def test_my_head_learns(toy_features):
            head = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
            assert_trainable(InitScheme.normal(std=0.02).apply(head), toy_features, lr=1e-3)
    """
    from ..initialization.toys import toy_features

    return toy_features()


@pytest.fixture
def _ftcheck_suite(request: pytest.FixtureRequest) -> Iterator[None]:
    """The checks of `parametrize_with_checks` belong to this test."""
    with running(request.node):
        yield
