"""units_alive: a layer that passes nothing on fails, and a third of dead units does not."""

from __future__ import annotations

from dataclasses import replace

from pytest_ftcheck import check_units_alive, example_trace
from pytest_ftcheck.checks.head.record import Head, Hidden, Layer, UnitState
from pytest_ftcheck.checks.head.units_alive import DEAD, PASSED_ON, SATURATED, VARIES

FINE = UnitState(0.3, 0.0, None, 0.5, 0.4, 0.01, 2.0)
LAYER = Hidden("classifier.0", "classifier.3", 64, "relu", FINE, FINE)


def verdict(*hidden, features=(0.5, 0.6), layers=()):
    return check_units_alive(
        replace(
            example_trace(), measurements={"head_state": Head(rows=32, hidden=hidden, features=features, layers=layers)}
        )
    )


def both(**changes):
    return replace(LAYER, first=replace(FINE, **changes), last=replace(FINE, **changes))


def test_alive():
    v = verdict(LAYER)
    assert v.status == "pass"
    assert "at most 30 %" in v.headline


def test_not_measured():
    assert check_units_alive(example_trace()).status == "inconclusive"
    v = check_units_alive(replace(example_trace(), measurements={"head_state": Head()}))
    assert "no hidden layer" in v.headline
    v = check_units_alive(replace(example_trace(), measurements={"head_state": Head(skipped={"units": "it raised"})}))
    assert (v.status, v.headline) == ("skipped", "Not measured: it raised.")


def test_dead_layers_and_their_causes():
    dead = both(dead=1.0, mean_before=-4.6, largest_before=-4.2)
    bias = Layer("classifier.0", 64, 64, 0, 0.02, 0.1, 3, 0, False, 4.6, -4.6, False, True)
    v = verdict(dead, layers=(bias,))
    assert (v.status, v.fault) == ("fail", "units_dead_bias")
    assert "100 % of the 64 units of classifier.0" in v.headline
    assert "-4.60" in v.causes[0]
    assert verdict(dead).fault == "units_dead_from_start"
    v = verdict(replace(LAYER, last=replace(FINE, dead=1.0)))
    assert v.fault == "units_died"
    assert "30 % were dead before" in v.causes[0]


def test_a_layer_is_dead_at_the_end_or_not_at_all():
    assert verdict(replace(LAYER, first=replace(FINE, dead=1.0))).status == "pass"
    assert verdict(both(dead=DEAD - 0.001)).status == "pass"
    assert verdict(both(dead=DEAD)).status == "fail"
    assert verdict(replace(both(dead=1.0), last=None)).status == "pass"


def test_a_layer_at_zero_is_asleep_unless_its_activation_is_flat_there():
    asleep = {"dead": 1.0, "mean_before": 0.0, "largest_before": 0.0}
    assert verdict(replace(both(**asleep), activation="gelu")).status == "pass"
    assert verdict(both(**asleep)).status == "fail"


def test_saturated_before_and_after():
    v = verdict(replace(both(saturated=SATURATED), activation="tanh"))
    assert (v.status, v.fault) == ("fail", "units_saturated")
    assert "75 % of the tanh values" in v.headline
    assert verdict(both(saturated=SATURATED - 0.01)).status == "pass"
    # features that training made binary saturate at the end alone
    assert verdict(replace(LAYER, last=replace(FINE, saturated=1.0))).status == "pass"


def test_rows_that_the_head_loses():
    v = verdict(both(variation=1e-7))
    assert (v.status, v.fault) == ("fail", "signal_lost_in_head")
    assert verdict(both(variation=2 * VARIES)).status == "pass"
    assert verdict(replace(LAYER, first=replace(FINE, variation=1e-7))).status == "pass"  # training found it
    # what never came in cannot be lost
    assert verdict(both(variation=1e-7), features=(1e-7, 1e-7)).status == "pass"
    edge = 5e-5 / PASSED_ON
    assert verdict(both(variation=5e-5), features=(edge * 1.1, edge * 1.1)).status == "fail"
    assert verdict(both(variation=5e-5), features=(edge * 0.9, edge * 0.9)).status == "pass"
    assert verdict(both(variation=1e-7), features=(0.5, None)).status == "pass"


def test_two_linear_layers_in_a_row():
    v = verdict(replace(LAYER, activation="identity"))
    assert (v.status, v.fault) == ("advice", "linear_after_linear")
    assert "between classifier.0 and classifier.3" in v.headline
    assert v.ok


def test_wording():
    assert str(verdict(both(dead=1.0, mean_before=-4.6, largest_before=-4.2))) == (
        "units_alive: FAIL. 100 % of the 64 units of classifier.0 are zero for all 32 rows: no signal passes, and no gradient "
        "comes back.\n"
        "  layer         units  activation  dead before  dead after  varies by  before activation, mean  largest\n"
        "  classifier.0     64  relu              100 %       100 %      0.500                    -4.60    -4.20\n"
        "  cause: a bias or a mean far below zero keeps the units of classifier.0 at zero, or its input does not vary\n"
        "  do: initialise classifier.0 with weights around zero and zero biases\n"
        "  limit: less than 99 % of a layer's units dead after the run (a third is common and harmless)\n"
        "  measured: 32 rows, dropout off, before and after the run"
    )
