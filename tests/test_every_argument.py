"""Every argument of every public callable, one hostile value at a time: success, or one error that names the argument and the value.

A sample of the tries runs here; all of them with ``make fuzz``, one slice of twenty with ``make fuzz SLICE=3/20``. Both print the counts.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import sys
import time
import warnings
import zlib
from collections import Counter

import pytest
import torch
from everything import bits, process_state
from hostile_values import VALUES
from public_callables import close_all, targets

from pytest_ftcheck import CheckFailed
from pytest_ftcheck.core.arguments import as_number
from pytest_ftcheck.core.formatting import as_given
from pytest_ftcheck.core.seeding import reseed

#: ``3/20``: of twenty slices of all tries, chosen by name, the one with this number (from 0) runs.
SLICE, SLICES = map(int, os.environ.get("FTCHECK_SLICE", "0/60").split("/"))
#: Seconds of the processor that a call with one hostile argument may take, and after which it is stopped.
SECONDS, STOPPED = 20, 400
TARGETS = {target.name: target for target in targets()}
#: Errors that every callable may raise.
ACCEPTED = (ValueError, TypeError, pytest.UsageError, CheckFailed)


#: Arguments that are called, with values that raise when they are: the exception is the user's, and passes through.
CALLED = {
    "batches",
    "checkpoint",
    "eval_batches",
    "evaluate",
    "executor",
    "expected_failures",
    "forward",
    "head",
    "held_out",
    "loss_fn",
    "metrics",
    "model",
    "optimizer",
    "probe_batch",
    "scheduler",
    "step",
    "train",
    "x",
    "y",
}
RAISE_WHEN_CALLED = {"class", "function of nothing", "module", "lazy module", "meta module", "no call"}
USERS = "a method of the user's value"
#: What a text that is read is called in errors, which are about a file as a rule.
CALLED_IN_ERRORS = {
    ("Trace.from_json", "text"): "a trace",
    ("SweepResult.from_json", "text"): "a sweep",
    ("Intent.for_model", "names"): "parameters",
    ("watch", "subject"): "first argument|model",
}
#: Words of messages that describe a value otherwise than by its type or its repr.
SAYS_WHAT_IT_IS = (
    *("of shape", "has shape", "with the keys", "not a trace", "not a sweep", "leave no", "returned", "is missing"),
    *(
        "has no labels",
        "there is none",
        "could not be called",
        "go together",
        "matches none",
        "is given, but",
        "together with your own",
        "is given without",
    ),
)
#: Draws from torch's current random state, as documented.
DRAWS = {"tiny_distilbert"}
#: Changes its argument, as documented.
IN_PLACE = {"InitScheme.apply"}
#: Called when its owner is no longer used: nobody is there to catch what it raises.
LATER = {"cancel"}
#: Honest work, and much of it.
LONG = {("steps", "100_000"), ("lengthen", "100_000")}


class OutOfTime(BaseException):
    pass


@contextlib.contextmanager
def at_most(seconds):
    def stop(*_):
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def tries(target):
    """Pairs of a parameter and the name of a hostile value."""
    for parameter in target.parameters:
        for value in VALUES:
            at = zlib.crc32(f"{target.name} {parameter} {value}".encode())
            if (parameter, value) in LONG or (parameter in LATER and value in RAISE_WHEN_CALLED):
                continue
            if at % SLICES == SLICE:
                yield parameter, value


def outcome(target, parameter, value_name):
    """``success``, ``refused``, or what is wrong with what came of it."""
    arguments = target.valid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nested tensors are in prototype stage
        arguments[parameter] = value = VALUES[value_name]()
    function = target.make()
    others = {name: a for name, a in arguments.items() if name != parameter}
    before, process = looks(others), process_state()
    try:
        with at_most(STOPPED), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.call(function, arguments)
        found = "success"
    except OutOfTime:
        found = f"after {STOPPED} s without an end"
    except BaseException as error:  # noqa: BLE001
        users = parameter in CALLED and (value_name in RAISE_WHEN_CALLED or USERS in str(error))
        found = "user's" if users else wrong_with(error, target, parameter, value) or "refused"
    if looks(others) != before and target.name not in IN_PLACE:
        found = f"changed what the user passed; {found}"
    if process_state() != process and target.name not in DRAWS:
        found = f"changed random states or switches; {found}"
    close_all()
    return found


def looks(arguments):
    """The user's modules, optimizers and tensors, bit for bit."""
    seen: dict = {}
    found = []
    for name, value in arguments.items():
        if isinstance(value, torch.nn.Module):
            found.append((name, [bits(vars(m), seen) for m in value.modules()]))
        elif isinstance(value, (list, tuple, dict, torch.Tensor)):
            found.append((name, bits(value, seen)))
    return found


def wrong_with(error, target, parameter, value):
    """None: the error is of an accepted type, and its message names the argument and the value."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    what = f"{type(error).__name__}: {str(error)[:300]}"
    if not isinstance(error, ACCEPTED) and not kinds & set(target.documented):
        return f"raw {what}"
    if isinstance(error, CheckFailed):
        return None
    if isinstance(error, (ImportError, OSError, RuntimeError, AttributeError)) and not isinstance(error, ACCEPTED):
        return None
    message = str(error)
    names = {parameter, *CALLED_IN_ERRORS.get((target.name, parameter), parameter).split("|")}
    if not any(re.search(rf"(?<![a-zA-Z]){re.escape(name)}(?![a-zA-Z])", message) for name in names):
        return f"the argument is not named: {what}"
    # an item of a sequence is named by its place, a tensor or a list of numbers by its shape
    named = [f"{parameter}[", f"{parameter} is empty", *SAYS_WHAT_IT_IS]
    if (
        parameter != "unknown"
        and not any(words in message for words in named)
        and not any(word in message for word in words_for(value))
    ):
        return f"the value is not named: {what}"
    if len(message) > 2000 or "\n" in message or not message.isprintable():
        return f"not one short line of plain text: {what!r}"
    return None


def words_for(value, depth=0):
    """Words of which a message has one, if it says what was passed."""
    yield type(value).__name__
    with contextlib.suppress(Exception):
        yield as_given(value)[:16]
        yield as_given(as_number(value))[:16]
    if isinstance(value, type):
        yield value.__name__
    if isinstance(value, torch.Tensor):
        yield from (str(value.dtype), "empty", "meta device", "a nested tensor", "not initialised yet")
    if callable(value):
        yield "returned"
    if isinstance(value, torch.nn.Module):
        yield from words_for(next(value.parameters(), None), depth)
    if isinstance(value, (list, tuple, dict, set)) and depth < 2:
        yield from ("empty", "no ") if not value else ()
        for item in list(dict.keys(value) if isinstance(value, dict) else value)[:3]:
            yield from words_for(item, depth + 1)


@pytest.fixture(scope="module")
def total(request):
    """How many tries had which outcome; printed where more than the everyday sample was asked for."""
    counts: Counter = Counter()
    yield counts
    if "FTCHECK_SLICE" in os.environ:
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            sys.stdout.write(f"\nslice {SLICE}/{SLICES}: {sum(counts.values()):,} tries, {dict(counts)}\n")


@pytest.mark.trains
@pytest.mark.timeout(0 if SLICES < 60 else 600)
@pytest.mark.parametrize("name", TARGETS)
def test_a_hostile_argument_is_taken_or_refused_by_name(name, total, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    counts: Counter = Counter()
    wrong = []
    for parameter, value in tries(TARGETS[name]):
        reseed(0)
        random.seed(0)
        began = time.process_time()
        found = outcome(TARGETS[name], parameter, value)
        seconds = time.process_time() - began
        right = found in ("success", "refused", "user's")
        counts[found if right else "wrong"] += 1
        if not right:
            wrong.append(f"{parameter}={value}: {found}")
        if seconds > SECONDS:
            wrong.append(f"{parameter}={value}: {seconds:.0f} s")
    total += counts
    assert not wrong, f"{len(wrong)} of {sum(counts.values())} tries:\n" + "\n".join(wrong)


def test_every_valid_call_succeeds(tmp_path, monkeypatch):
    """Else a refusal would not be that of the hostile value."""
    monkeypatch.chdir(tmp_path)
    for target in TARGETS.values():
        with contextlib.suppress(CheckFailed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.call(target.make(), target.valid())
        close_all()
