"""What the page says: its numbers are the trace's, its texts are harmless, and what is missing is said."""

from __future__ import annotations

import dataclasses
import json
import re
from statistics import median

import pytest

from pytest_ftcheck.checks.head.ablation_record import Counterfactuals

pytest.importorskip("vl_convert", reason="the extra html is not installed")

from example_pages import (
    blocks,
    case,
    diverged_trace,
    embedded,
    empty_trace,
    frozen_head_trace,
    hostile_page,
    links_out,
    read,
    session,
    whole_trace,
)

from pytest_ftcheck import Intent, Trace, Verdict, diagnose, example_trace
from pytest_ftcheck.checks.catalogue import CHECKS
from pytest_ftcheck.checks.head.ablation_record import Outcome
from pytest_ftcheck.core.observations import Metric
from pytest_ftcheck.core.recipe import Recipe
from pytest_ftcheck.reports.html.charts import charts
from pytest_ftcheck.reports.html.compressed_trace import TraceSender, pack, pack_all, thinned, unpack
from pytest_ftcheck.reports.html.page import FOLDER, page
from pytest_ftcheck.reports.html.views import FineTune, code, names
from pytest_ftcheck.reports.weight_motion import explain_weight_motion


def page_of(*traces, tests=None):
    return page([FineTune(t, name=f"run {i}") for i, t in enumerate(traces, 1)], tests)


@pytest.fixture(scope="module")
def whole():
    """A page of one run, and the data that its charts are drawn from."""
    made = page_of(whole_trace())
    return made, embedded(made)["run-1-data"]


class TestNumbers:
    def test_losses_and_rates(self, whole):
        trace, chart = whole_trace(), whole[1]["loss"]
        curves = blocks(chart)
        steps = [float(i + 1) for i in range(20)]
        assert curves["training"] == (steps, list(trace.losses))
        assert curves["probe, dropout off"] == (
            [p.step for p in trace.probe_loss.points],
            [p.loss for p in trace.probe_loss.points],
        )
        assert set(curves["class prior"][1]) == {trace.probe_loss.prior_entropy}
        assert blocks(chart, "below") == {"learning rate": (steps, [s.lrs[0] for s in trace.steps])}

    def test_gradient_norms(self, whole):
        trace, curves = whole_trace(), blocks(whole[1]["gradients"])
        assert curves["all"][1] == [s.grad_norm for s in trace.steps]
        assert curves["all, before clipping"][1] == [s.grad_norm_unclipped for s in trace.steps]
        head = [t for t in trace.tensors if t.part == "head"]
        expected = [sum(t.grad_norms[k] ** 2 for t in head) ** 0.5 for k in range(20)]
        assert curves["head"][1] == pytest.approx(expected, rel=1e-12)

    def test_motion_is_the_share_of_the_budget(self, whole):
        trace, (block,) = whole_trace(), whole[1]["motion"]["data"]["bars"]
        rows = dict(zip(block["columns"]["part"], block["columns"]["used"], strict=True))
        for part in ("head", "base"):
            used = [t.motion.by_gradient / t.lr_sum for t in trace.tensors if t.part == part]
            assert rows[part] == median(used)

    def test_histograms_and_displacement(self, whole):
        trace = whole_trace()
        tensor = trace.tensor("classifier.weight")
        first, last = whole[1]["histogram"]["data"]["bins"]
        for block, histogram in ((first, tensor.histograms[0]), (last, tensor.histograms[-1])):
            assert block["columns"]["count"] == list(histogram.counts)
            assert (block["same"]["low"], block["same"]["high"]) == (histogram.low, histogram.high)
        over_time = whole[1]["time"]["data"]["bins"]
        assert [b["same"]["step"] for b in over_time] == [h.step + 1 for h in tensor.histograms]
        curves = blocks(whole[1]["displacement"])
        assert curves["displacement (rms)"][1] == list(tensor.displacements)
        assert curves["LR budget so far"][1][-1] == pytest.approx(tensor.lr_sum)

    def test_parts_put_back(self, whole):
        made, data = whole_trace().measured(Counterfactuals), whole[1]["rewound"]["data"]
        columns = data["bars"][0]["columns"]
        told = set(zip(columns["how"], columns["loss"], columns["accuracy"], strict=True))
        assert told == {
            ("initial values", 0.69, 0.5),
            ("initial values, shuffled", 0.7, 0.47),
            ("initial values", 0.35, 0.88),
        }
        assert data["rules"][0]["columns"] == {"at": [made.trained.loss], "accuracy": [made.trained.accuracy]}

    def test_metric_and_baseline(self, whole):
        metric, data = whole_trace().metrics[0], whole[1]["metric-0"]["data"]
        assert data["bars"][0]["columns"]["value"] == [metric.first, metric.last]
        assert data["rules"][0]["columns"]["at"] == [metric.baseline]

    def test_metrics_between_0_and_1_share_an_axis(self):
        metrics = tuple(
            Metric(name, first, last, 8, "rows", None)
            for name, first, last in (
                ("a", 0.1, 0.4),
                ("b", 0.0, 0.8),
                ("r2", -3.0, 0.5),
                ("score", 20.0, 70.0),
                ("lost", float("nan"), 0.2),
            )
        )
        drawn = charts(whole_trace(metrics=metrics))
        same = [drawn[f"metric-{i}"].data["bars"][0]["same"] for i in range(5)]
        assert [(s["low"], s["high"]) for s in same] == [(0, 0.8), (0, 0.8), (-3.0, 0.5), (0, 70.0), (0, 0.8)]

    def test_the_trace_to_save_is_the_trace(self, whole):
        long = whole_trace()  # longer than any text of a page may be
        long = dataclasses.replace(
            long, tensors=tuple(dataclasses.replace(t, name=f"{i}.{t.name}") for i in range(9) for t in long.tensors)
        )
        for made, trace in ((whole[0], whole_trace()), (page_of(long), long)):
            (link,) = (a for tag, a in read(made).tags if tag == "a" and "download" in a)
            assert unpack(link["href"].partition("base64,")[2]) == trace

    def test_recipe_environment_and_the_four_lines(self, whole):
        page, trace = whole[0], whole_trace()
        assert "Recipe()  # all defaults" in page
        for line in explain_weight_motion(trace).splitlines():
            assert line.partition(":")[2].strip().replace("->", "-&gt;").replace("|", "|")[:60] in page
        for value in trace.environment.values():
            assert f"<bdi>{value}</bdi>" in page

    def test_what_is_not_finite_stays_so(self):
        data = embedded(page_of(diverged_trace()))["run-1-data"]
        assert blocks(data["loss"])["training"][1][11:14] == [0.48, "Infinity", "NaN"]
        assert set(data["motion"]["data"]["bars"][0]["columns"]["used"]) == {"NaN"}

    def test_long_curves_keep_their_peaks(self):
        trace = example_trace()
        peak = [trace.iterations[0]] * 5000
        peak[2345] = dataclasses.replace(peak[0], loss=99.0)
        peak = [dataclasses.replace(i, step=k) for k, i in enumerate(peak)]
        x, y = blocks(charts(dataclasses.replace(trace, iterations=tuple(peak)))["loss"].plain())["training"]
        assert len(x) <= 400
        assert y[x.index(2346.0)] == 99.0


def headline(made):
    return re.search(r"<h1>.*?<span>(.*?)</span></h1>", made, re.DOTALL).group(1)


class TestWords:
    def test_the_unhealthy_run_comes_first_and_open(self):
        made = page_of(whole_trace(), frozen_head_trace())
        assert re.search(r"<h1>.*?1 of 2 fine-tunes is unhealthy", made, re.DOTALL)
        runs = [a for tag, a in read(made).tags if tag == "details" and "run" in a.get("class", "").split()]
        assert [(a["class"], "open" in a) for a in runs] == [("run unhealthy", True), ("run healthy", False)]

    def test_causes_and_remedies_are_the_diagnosis(self):
        trace = frozen_head_trace()
        made, found = page_of(trace), diagnose(trace)
        assert found.causes
        for cause in found.causes:
            assert cause.remedy[:40].split("'")[0] in made
            assert all(f"<code>{check}</code>" in made for check in cause.checks)
        at = [made.index(text) for text in ('<ol class="causes"', 'id="run-1-loss"', 'id="run-1-checks"')]
        assert at == sorted(at)

    def test_what_the_trace_lacks_is_said(self):
        made = page_of(empty_trace())
        assert embedded(made)["run-1-data"] == {}
        for sentence in (
            "No loss was reported",
            "The trace has no tensors.",
            "No metric was measured",
            "there is no recipe",
        ):
            assert sentence in made

    def test_parts_whose_loss_is_not_finite_are_a_sentence(self):
        nan = float("nan")
        trace = whole_trace()
        parts = tuple(
            dataclasses.replace(p, rewound=Outcome(nan, 0.5), shuffled=None)
            for p in trace.measured(Counterfactuals).parts
        )
        made = dataclasses.replace(trace.measured(Counterfactuals), trained=Outcome(nan, 0.5), parts=parts)
        assert (
            "whichever part is reset"
            in charts(dataclasses.replace(trace, measurements={"counterfactuals": made}))["rewound"].missing
        )

    def test_every_test_is_in_it(self):
        tests = session(
            case("t.py::test_a", "failed", "fail", "0 of 4 moved"),
            case("t.py::test_b"),
            case("t.py::test_c", "skipped"),
        )
        runs = [FineTune(frozen_head_trace(), tests=tests.tests[:2])]
        made = page(runs, tests)
        assert "t.py::test_a and 1 more test" in made
        assert "3 tests: " in made
        assert "Tests without a fine-tune in this page" in made
        assert "0 of 4 moved" in made
        assert "No test failed because of this" not in made
        assert "No test failed because of this" in page([FineTune(frozen_head_trace(), tests=tests.tests[1:2])], tests)

    def test_the_verdicts_of_the_tests_are_shown_and_no_others(self):
        failed = Verdict("weights_move", "fail", "0.3 is below the threshold of this test.")
        passed = Verdict("loss_decreases", "pass", "It fell.")
        test = case("t.py::test_a", "failed", "fail", failed.headline)
        made = page([FineTune(whole_trace(), tests=(test,), verdicts=(passed, failed))], session(test))
        assert headline(made) == "The fine-tune is unhealthy"
        assert set(re.findall(r'<li class="verdict (\w+)">', made)) == {"fail", "pass"}
        assert f"1 check failed; 2 of {len(CHECKS)} checks judged; {len(CHECKS) - 2} not run." in made
        assert "These are the verdicts of the tests." in made
        passing = page([FineTune(frozen_head_trace(), tests=(test,), verdicts=(passed,))], session(test))
        assert headline(passing) == "The fine-tune is healthy, but 1 test failed"

    def test_a_run_that_no_test_judged_is_diagnosed_once(self, monkeypatch):
        calls = []
        monkeypatch.setattr(
            "pytest_ftcheck.checks.diagnosis.diagnose", lambda trace: calls.append(trace) or diagnose(trace)
        )
        judged = FineTune(whole_trace(), verdicts=(Verdict("weights_move", "pass", "4 of 4 moved."),))
        unjudged = FineTune(frozen_head_trace(), tests=(case("t.py::test_a"),))
        assert "No test judged this run" in page([judged, unjudged])
        assert calls == [unjudged.trace]

    def test_a_frozen_head_is_a_question_unless_it_was_declared(self):
        trace = whole_trace()
        frozen = tuple(
            dataclasses.replace(
                t, trainable=False, trainable_last=False, motion=dataclasses.replace(t.motion, share_changed=0.0)
            )
            if t.part == "head"
            else t
            for t in trace.tensors
        )
        trace = dataclasses.replace(trace, tensors=frozen)
        assert headline(page_of(trace)) == "The fine-tune is healthy, but its whole head is frozen: is that intended?"
        declared = dataclasses.replace(trace, intent=Intent(frozen="classifier"))
        assert headline(page_of(declared)) == "The fine-tune is healthy"

    def test_a_session_without_runs(self):
        assert "No fine-tune was measured" in page([], session(case("t.py::test_a")))

    def test_more_runs_than_fit_are_counted(self, monkeypatch):
        monkeypatch.setattr("pytest_ftcheck.reports.html.page.MOST", 2)
        made = page_of(whole_trace(), whole_trace(), frozen_head_trace())
        assert "1 further fine-tunes are not shown" in made
        assert made.count('<details class="run ') == 2

    def test_names_are_never_alike(self):
        runs = [FineTune(whole_trace(), tests=(case("t.py::test_a"),)) for _ in range(2)]
        assert names(runs) == ["t.py::test_a (run 1 of 2)", "t.py::test_a (run 2 of 2)"]

    def test_the_recipe_can_be_pasted(self):
        recipe = Recipe(lr=3e-4, steps=7, max_grad_norm=None, device="cpu")
        scope: dict = {}
        exec(code(dataclasses.asdict(recipe)).rsplit("\n", 1)[0], scope)
        assert scope["recipe"] == recipe

    def test_the_recipe_of_a_custom_loop_names_what_it_needs_and_no_field_that_was_not_in_force(self):
        recipe = Recipe(lr=3e-4, steps=7, max_grad_norm=None)
        trace = dataclasses.replace(whole_trace(), recipe=recipe, own_arguments=("optimizer", "step"))
        found = code(trace.recipe_in_force, trace.own_arguments)
        assert "recipe = Recipe(\n    steps=7,\n)" in found
        assert "# yours, and not in the trace: model, batches, optimizer, step" in found
        scope = {name: name for name in ("model", "batches", "optimizer", "step")}
        calls = []
        exec(
            found.replace("import Recipe, finetune", "import Recipe"),
            {**scope, "finetune": lambda *a, **k: calls.append((a, k))},
        )
        assert calls == [(("model", "batches", Recipe(steps=7)), {"optimizer": "optimizer", "step": "step"})]
        assert found.replace("'", "&#39;") in page_of(trace)

    def test_the_cause_stands_once_above_the_second_section_of_a_page_of_several_runs(self):
        """In the list of all fine-tunes, or in the section right below it."""
        bad = frozen_head_trace()
        other = dataclasses.replace(bad, seconds=bad.seconds + 1)
        (cause, *_) = diagnose(bad).causes
        made = re.sub(r"<script.*?</script>", "", page_of(bad, other, whole_trace()), flags=re.DOTALL)
        title = cause.title.replace("'", "&#39;")
        assert len(re.findall(title, made[: made.index('id="run-2"')], re.IGNORECASE)) == 1
        assert len(re.findall(title, made, re.IGNORECASE)) == 2
        rows = re.findall(r'<span class="cause">(.*?)</span>', made)
        assert re.fullmatch(r"\d+ checks? failed: the causes? (is|are) below\.", rows[0])
        assert re.fullmatch(r"\d+ checks? failed: the causes? (is|are) that of .+\.", rows[1])

    def test_another_cause_stands_in_the_list(self):
        bad, worse = frozen_head_trace(), diverged_trace()
        made = page_of(bad, worse)
        rows = re.findall(r'<span class="cause">(.*?)</span>', made)
        assert "below" in rows[0]
        assert "check" in rows[1]
        assert "that of" not in rows[1]

    def test_the_cause_stands_once_in_a_page_of_one_run(self):
        trace = frozen_head_trace()
        (cause, *_) = diagnose(trace).causes
        text = re.sub(r"<script.*?</script>", "", page_of(trace), flags=re.DOTALL)
        assert text.lower().count(cause.title.lower()) == 1

    def test_remarks_tell_probes_that_do_not_apply_from_those_that_were_left_out(self):
        trace = whole_trace(skipped={"inputs": "left out", "pretrained": "none"}, not_applicable=("pretrained",))
        made = page_of(trace)
        assert "Not measured: inputs (left out)" in made
        assert "Does not apply: pretrained (none)" in made

    def test_what_was_not_measured_and_what_does_not_apply_stand_apart(self):
        made = page_of(whole_trace())
        found = diagnose(whole_trace())
        assert found.coverage in made
        assert f"Not measured: {len(found.not_measured)}<" in made
        assert f"Does not apply: {len(found.not_applicable)}<" in made


@pytest.fixture(scope="module")
def hostile():
    return hostile_page()


class TestSafety:
    def test_no_element_is_added(self, hostile, whole):
        tags = {tag for tag, _ in read(hostile).tags}
        assert tags <= {tag for tag, _ in read(whole[0]).tags} | {
            "ol",
            "table",
            "thead",
            "tbody",
            "th",
            "tr",
            "td",
            "polyline",
        }
        kinds = [a.get("type", "code") for a, _ in read(hostile).scripts]
        assert kinds == ["application/json"] * 2 + ["code"] * 2
        handlers = [k for _, attrs in read(hostile).tags for k in attrs if k.startswith("on")]
        assert handlers == []

    def test_data_survives_as_it_was(self, hostile):
        data = embedded(hostile)
        kinds = {k for run in data.values() for k in json.dumps(run)}
        assert "\x00" not in kinds
        for found in (text for attrs, text in read(hostile).scripts if attrs.get("type")):
            assert "<" not in found

    def test_no_character_that_cannot_be_seen(self, hostile):
        text = re.sub(r"<script.*?</script>", "", hostile, flags=re.DOTALL)
        assert not [c for c in set(text) - {"\n"} if not c.isprintable()]
        hostile.encode("utf-8")

    def test_long_names_are_cut(self, hostile):
        assert "x" * 2_000 not in re.sub(r"<script.*?</script>", "", hostile, flags=re.DOTALL)

    def test_nothing_is_fetched(self, hostile):
        assert links_out(hostile) == []
        (policy,) = (a["content"] for tag, a in read(hostile).tags if a.get("http-equiv") == "Content-Security-Policy")
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        assert "unsafe-eval" not in policy
        assert "http" not in policy

    def test_the_same_session_gives_the_same_page(self):
        assert page_of(whole_trace(), frozen_head_trace()) == page_of(whole_trace(), frozen_head_trace())


class TestPacked:
    def test_a_trace_that_is_too_long_is_thinned_and_says_so(self):
        long = example_trace(recorded=tuple(range(512)))
        noise = tuple((i * 7919 % 1009) / 997 for i in range(512))
        long = dataclasses.replace(
            long, tensors=tuple(dataclasses.replace(t, grad_norms=noise, updates=noise) for t in long.tensors)
        )
        whole = pack(long)
        packed = pack(long, len(whole.text) // 2)
        found = unpack(packed.text)
        assert packed.every > 1
        assert found.recorded == long.recorded[:: packed.every]
        assert found.tensors[0].grad_norms == noise[:: packed.every]
        assert dataclasses.replace(found, recorded=(), tensors=()) == dataclasses.replace(long, recorded=(), tensors=())
        assert [v.status for v in diagnose(thinned(long)).verdicts] == [v.status for v in diagnose(long).verdicts]

    def test_all_stay_within_the_limit_and_the_small_stay_whole(self):
        text = pack(example_trace()).text
        one, texts = len(text), [lambda: text] * 3
        found = pack_all(texts, most=2 * one + one // 2)
        assert sum(len(p.text) for p in found) <= 2 * one + one // 2
        assert [p.every for p in pack_all(texts, most=3 * one)] == [1, 1, 1]

    def test_each_trace_is_sent_once(self):
        sender, trace, other = TraceSender(), example_trace(), example_trace(seconds=2.0)
        first, again = sender.send(trace), sender.send(trace)
        assert (again.digest, again.packed) == (first.digest, "")
        assert sender.send(other).digest != first.digest
        assert unpack(first.packed) == trace

    @pytest.mark.parametrize("text", ["", "!", "QQ==", pack(example_trace()).text[:-8]])
    def test_what_is_none_is_refused(self, text):
        with pytest.raises(ValueError, match="not a packed trace"):
            unpack(text)


def test_every_kind_of_chart_has_a_specification_and_the_other_way_round():
    kinds = {
        c.kind for t in (whole_trace(), example_trace(), frozen_head_trace()) for c in charts(t).values() if c.drawn
    }
    no_steps = dataclasses.replace(whole_trace(), steps=(), recorded=())
    kinds |= {c.kind for c in charts(no_steps).values() if c.drawn}
    script = (FOLDER / "charts.js").read_text(encoding="utf-8")
    assert kinds == set(re.findall(r"^  (\w+): ", script.rpartition("\nreturn {\n")[2], re.MULTILINE))


def test_to_html_writes_a_page(tmp_path):
    whole_trace().to_html(tmp_path / "run.html")
    assert embedded((tmp_path / "run.html").read_text(encoding="utf-8"))["run-1-data"]["loss"]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("pytest_ftcheck.reports.html.NEEDED", {"no_such_module": "no-such-package"})
    with pytest.raises(ImportError, match=r"no-such-package.*pytest-ftcheck\[html\]"):
        page([])


def test_a_saved_trace_round_trips_through_json(tmp_path):
    whole_trace().save(tmp_path / "t.json")
    assert Trace.load(tmp_path / "t.json") == whole_trace()


def test_which_tokens_are_trained(whole):
    words = re.sub(r"<[^>]+>", " ", whole[0][whole[0].index("Which tokens are trained</h3>") :])
    words = " ".join(words.split())
    for text in (
        "31 pr , prompt, not taught, attended to",
        "7 , text, taught, attended to",
        "2 sp , special, taught, attended to",
        "0 pad , padding, taught, not attended to",
        "and 5 more",
        "padding 18 50 % special 8 100 % prompt 24 0 % text 28 100 %",
        "Token ids of 1 row of the first batch; shares over 8 rows.",
    ):
        assert text in words
    assert "Which tokens are trained" not in page_of(example_trace())
