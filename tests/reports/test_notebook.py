"""What a notebook shows: every number from the trace, every name escaped, nothing that runs or is fetched."""

from __future__ import annotations

import dataclasses
import html.parser
import math

import pytest

from pytest_ftcheck import Verdict, diagnose
from pytest_ftcheck.core.example_trace import example_trace, tensor
from pytest_ftcheck.core.observations import Iteration, Metric, Optimizer

HOSTILE = "</pre></div><script>alert(1)</script><img src=x onerror='a'>\"' \x00\x1b[31m \u202e" + "x" * 10_000


class Page(html.parser.HTMLParser):
    """Tags, attributes and text; fails where a tag is not closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag != "br":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def safe(thing):
    page = Page(thing._repr_html_())
    assert not {"script", "style", "link", "img", "iframe", "object"} & set(page.tags)
    assert not [a for a in page.attributes if a[1].startswith("on") or a[1] in ("href", "src")]
    assert "url(" not in thing._repr_html_()
    return page


def test_a_trace_in_its_numbers():
    page = safe(example_trace())
    for told in (
        "0.700 -> 0.320",
        "0.700 -> 0.310",
        "25 %",
        "accuracy",
        "Should the weights move more?",
        "Meaning",
        "0.693",
    ):
        assert told in page.text
    assert page.tags.count("svg") == page.tags.count("polyline") == 5
    labels = [value for tag, name, value in page.attributes if name == "aria-label"]
    assert "training loss, 0.700 -> 0.320" in labels


def test_bars_are_as_long_as_the_share():
    text = example_trace()._repr_html_()
    assert text.count("width:50px") == 2  # 25 % of 200


def test_curves_end_where_they_should():
    made = example_trace(
        iterations=tuple(Iteration(v, i, 1, True) for i, v in enumerate((1.0, 0.5, 0.0))), probe_loss=None
    )
    points = [value for tag, name, value in safe(made).attributes if tag == "polyline"]
    (curve,) = [value for value in points if value.startswith("2.0,2.0")][:1]
    assert curve == "2.0,2.0 100.0,18.0 198.0,34.0"


def test_hostile_names_do_no_harm():
    made = example_trace(
        tensors=(tensor(HOSTILE, "head"), tensor("a" + HOSTILE, "base")),
        head=(HOSTILE,),
        notes=(HOSTILE,),
        metrics=(Metric(HOSTILE, 0.5, 0.9, 8, HOSTILE, 0.5),),
    )
    page = safe(made)
    assert "\x00" not in page.text
    assert "\u202e" not in page.text
    assert len(made._repr_html_()) < 40_000
    safe(Verdict("weights_move", "fail", HOSTILE, ({"tensor": HOSTILE, "why": HOSTILE},), remedy=HOSTILE))
    safe(diagnose(made))


ODD = {
    "nothing": example_trace(
        tensors=(),
        steps=(),
        iterations=(),
        recorded=(),
        probe_loss=None,
        metrics=(),
        optimizer=Optimizer("", "other", ()),
    ),
    "diverged": example_trace(
        iterations=tuple(
            Iteration(v, i, 1, True) for i, v in enumerate((1.0, 1e300, -1e308, 1.7e308, math.inf, math.nan))
        )
    ),
    "one": example_trace(iterations=(Iteration(1.0, 0, 1, True),)),
    "long": example_trace(iterations=tuple(Iteration(1.0 / (i + 1), i, 1, True) for i in range(50_000))),
}


@pytest.mark.parametrize("name", ODD)
def test_every_trace_is_shown(name):
    page = safe(ODD[name])
    assert len(ODD[name]._repr_html_()) < 60_000
    assert not [value for tag, attribute, value in page.attributes if "nan" in value or "inf" in value]


@pytest.mark.parametrize("status", ["pass", "fail", "inconclusive", "skipped", "advice"])
def test_verdicts(status):
    verdict = Verdict("weights_move", status, "1 of 4 moved.", ({"tensor": "a.b", "share": 0.25},), remedy="THE-REMEDY")
    page = safe(verdict)
    assert page.text.startswith(f"{status} weights_move 1 of 4 moved.")
    assert ("THE-REMEDY" in page.text) == (status in ("fail", "inconclusive", "advice"))
    assert (("details", "open", None) in page.attributes) == (status in ("fail", "inconclusive"))


def test_a_diagnosis_has_its_causes_and_every_verdict():
    healthy = diagnose(example_trace())
    page = safe(healthy)
    assert all(v.check in page.text for v in healthy.verdicts)
    assert f"{healthy.coverage}." in page.text
    assert page.text.count("not measured ") >= len(healthy.not_measured)
    assert "does not apply frozen_stay_frozen" in page.text
    assert "skipped" not in page.text
    weight = example_trace().tensors[2]
    still = dataclasses.replace(
        weight,
        group=None,
        lr_sum=0.0,
        motion=dataclasses.replace(weight.motion, share_changed=0.0, by_gradient=0.0, rms=0.0),
    )
    unhealthy = diagnose(example_trace(tensors=(still,)))
    page = safe(unhealthy)
    assert page.text.startswith("unhealthy")
    assert all(" ".join(cause.title.split()) in page.text for cause in unhealthy.causes)
