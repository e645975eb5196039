"""Traces and sessions that pages are made of, and how a page is read back."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser

from hostile import WORST

from pytest_ftcheck import example_trace
from pytest_ftcheck.checks.data.token_record import TokenLabels
from pytest_ftcheck.checks.data.trained_tokens_record import TokenRow, TrainedTokens
from pytest_ftcheck.checks.head.ablation_record import Counterfactuals, Outcome, Rewound
from pytest_ftcheck.core.observations import Histogram, Iteration
from pytest_ftcheck.reports.session_result import CaseResult, ReportedVerdict, SessionResult

#: Names that must do no harm anywhere.
HOSTILE = (
    "<script>window.harm=1</script>",
    "</script><script>window.harm=2</script>",
    "\"'><img src=x onerror=window.harm=3>",
    "<!--<script>",
    "{{ 7*7 }}{% raw %}${7*7}",
    "a[0].b['c']\\.d\"e",
    "__proto__",
    "constructor",
    "\u202eright to left\u202c \u0645\u0639\u0644\u0645\u0629 \u05e9\u05dc\u05d5\u05dd",
    "emoji \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "null \x00 bell \x07 \x1b[31m",
    "half a pair \ud800",
    "line\nbreak\ttab\u2028separator",
    "javascript:window.harm=4",
    WORST,
    "&amp;&lt;b&gt;",
    "x" * 10_000,
)

#: A prompt, an answer with its end, and padding, the first of which is taught.
TRAINED = TrainedTokens(
    rows=8,
    tokens={"padding": 18, "special": 8, "prompt": 24, "text": 28},
    taught={"padding": 9, "special": 8, "prompt": 0, "text": 28},
    shown=(
        TokenRow(
            ids=(31, 45, 1999, 7, 8, 2, 0, 0),
            kinds=("prompt", "prompt", "prompt", "text", "text", "special", "padding", "padding"),
            attended=(True,) * 6 + (False,) * 2,
            taught=(False,) * 3 + (True,) * 4 + (False,),
            left_out=5,
        ),
    ),
)


def whole_trace(**changes):
    """A healthy trace that has something for every chart."""
    trace = example_trace()
    histograms = tuple(
        Histogram(step, -0.08 - 0.001 * k, 0.08 + 0.001 * k, tuple(1 + (i * 7 + k) % 13 for i in range(16)))
        for k, step in enumerate((-1, 4, 9, 19))
    )
    tensors = tuple(dataclasses.replace(t, histograms=histograms if t.part == "head" else ()) for t in trace.tensors)
    made = Counterfactuals(
        32,
        "training rows",
        Outcome(0.31, 0.9),
        0.53,
        (
            Rewound("classifier", 130, Outcome(0.69, 0.5), Outcome(0.7, 0.47)),
            Rewound("base_model.layer.0", 4160, Outcome(0.35, 0.88)),
        ),
    )
    measurements = {
        "counterfactuals": made,
        "token_labels": TokenLabels(8, 60, 0, trained=TRAINED),
    }
    return dataclasses.replace(trace, tensors=tensors, measurements=measurements, **changes)


def frozen_head_trace():
    """The same with a head that the optimizer does not hold."""
    trace = whole_trace()

    def still(t):
        return dataclasses.replace(
            t,
            group=None,
            first_step=None,
            lr_sum=0.0,
            motion=dataclasses.replace(
                t.motion,
                share_changed=0.0,
                rms=0.0,
                largest=0.0,
                relative=0.0,
                by_gradient=0.0,
                by_decay=0.0,
                max_update=0.0,
            ),
            displacements=tuple(0.0 for _ in t.displacements),
            updates=tuple(0.0 for _ in t.updates),
        )

    return dataclasses.replace(trace, tensors=tuple(still(t) if t.part == "head" else t for t in trace.tensors))


def diverged_trace():
    """Losses, gradients and motion that are not finite."""
    trace = whole_trace()
    nan, inf = float("nan"), float("inf")
    iterations = tuple(
        dataclasses.replace(i, loss=nan if k > 12 else inf if k == 12 else i.loss)
        for k, i in enumerate(trace.iterations)
    )
    steps = tuple(dataclasses.replace(s, grad_norm=nan if k > 11 else s.grad_norm) for k, s in enumerate(trace.steps))
    tensors = tuple(
        dataclasses.replace(
            t,
            grad_norms=(*t.grad_norms[:12], *([nan] * (len(t.grad_norms) - 12))),
            displacements=(*t.displacements[:12], *([inf] * (len(t.displacements) - 12))),
            motion=dataclasses.replace(t.motion, rms=nan, by_gradient=nan, largest=inf),
        )
        for t in trace.tensors
    )
    return dataclasses.replace(
        trace, iterations=iterations, steps=steps, tensors=tensors, stopped="the loss was not finite"
    )


def empty_trace():
    """A run in which nothing was told and nothing stepped."""
    return example_trace(
        iterations=(Iteration(None, None, 0, True),),
        steps=(),
        recorded=(),
        tensors=(),
        probe_loss=None,
        metrics=(),
        recipe=None,
    )


def hostile_trace():
    """Hostile texts wherever a trace has a text of somebody else's."""
    trace = whole_trace()
    base, head = trace.tensors[0], trace.tensors[2]
    tensors = [dataclasses.replace(head, name="classifier." + HOSTILE[2])]
    tensors += [dataclasses.replace(base, name=f"base.{i}{name}.weight") for i, name in enumerate(HOSTILE)]
    tensors += [dataclasses.replace(head, name=f"{name}.classifier") for name in HOSTILE]
    parts = tuple(Rewound(name, 3, Outcome(0.5, 0.5)) for name in HOSTILE)
    return dataclasses.replace(
        trace,
        tensors=tuple(tensors),
        head=("classifier", *HOSTILE),
        metrics=tuple(dataclasses.replace(trace.metrics[0], name=name, source=name) for name in HOSTILE[:4]),
        measurements={"counterfactuals": dataclasses.replace(trace.measured(Counterfactuals), parts=parts)},
        environment={name: name for name in HOSTILE},
        notes=HOSTILE,
        skipped={name: name for name in HOSTILE},
        stopped=HOSTILE[1],
        probe_loss=dataclasses.replace(trace.probe_loss, source=HOSTILE[0]),
    )


def case(nodeid, outcome="passed", status="pass", told="4 of 4 moved", **changes):
    verdict = ReportedVerdict(
        "weights_move",
        status,
        told,
        told,
        told,
        "",
        "",
        (),
        "",
        None,
        {status: 1},
        outcome == "failed",
        "call",
        "t.py",
        3,
    )
    return CaseResult(nodeid, outcome, "t.py", 3, (verdict,), **changes)


def session(*cases):
    return SessionResult(tests=tuple(cases), environment={"python": "3"}, settings={"steps": "5"})


class _Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.scripts, self.tags, self._in = [], [], None

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in = dict(attrs) if tag == "script" else None
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data):
        if self._in is not None:
            attrs, text = self.scripts[-1]
            self.scripts[-1] = (attrs, text + data)

    def handle_endtag(self, tag):
        self._in = None


def read(page):
    """The page's elements, and what is in its scripts."""
    reader = _Reader()
    reader.feed(page)
    return reader


def embedded(page):
    """Id of a data block -> its JSON."""
    return {a["id"]: json.loads(text) for a, text in read(page).scripts if a.get("type") == "application/json"}


def blocks(chart, name="lines"):
    """A chart's curves by name: ``(x, y)``."""
    return {b["same"]["series"]: (b["columns"]["x"], b["columns"]["y"]) for b in chart["data"][name]}


def links_out(page):
    """Addresses in attributes that would be fetched."""
    found = [v for _, attrs in read(page).tags for k, v in attrs.items() if k in ("src", "href", "action") and v]
    return [v for v in found if not re.match(r"#|data:", v)]


def hostile_page():
    """A page of hostile tests and fine-tunes."""
    from pytest_ftcheck.reports.html.page import page
    from pytest_ftcheck.reports.html.views import FineTune

    tests = session(*(case(name, "failed", "fail", name, reason=name, worker=name) for name in HOSTILE))
    return page([FineTune(hostile_trace(), tests=tests.tests), FineTune(whole_trace(), name=HOSTILE[1])], tests)
