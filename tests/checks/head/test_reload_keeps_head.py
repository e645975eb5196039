"""reload_keeps_head: what is not saved is named, and why."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pytest_ftcheck import check_reload_keeps_head, example_trace
from pytest_ftcheck.checks.head.record import Head, Outside, Reload
from pytest_ftcheck.checks.head.reload_keeps_head import DIFFERENCE

GOOD = Reload("model", 40, 0.0, 2.0)


def verdict(**changes):
    return check_reload_keeps_head(
        replace(example_trace(), measurements={"head_state": Head(reload=replace(GOOD, **changes))})
    )


def test_kept():
    v = verdict()
    assert v.status == "pass"
    assert "40 tensors of the model" in v.headline


def test_not_measured():
    assert check_reload_keeps_head(example_trace()).status == "inconclusive"
    v = check_reload_keeps_head(
        replace(example_trace(), measurements={"head_state": Head(skipped={"reload": "quantised parameters"})})
    )
    assert (v.status, v.headline) == ("skipped", "Not measured: quantised parameters.")


@pytest.mark.parametrize(
    ("changes", "fault", "word"),
    [
        ({"outside": (Outside((64, 64), False),)}, "outside_the_model", "64 x 64"),
        ({"missing": ("classifier.weight",)}, "not_saved", "classifier.weight"),
        ({"error": "Unexpected key(s) in state_dict"}, "does_not_load", "Unexpected key"),
        ({"difference": 1.5}, "reload_changes_logits", "1.50"),
        ({"difference": math.nan}, "reload_changes_logits", "NaN"),
        ({"buffers": ("classifier.scale",)}, "buffer_not_saved", "classifier.scale"),
        ({"drawn": ("classifier.prototypes",)}, "buffer_not_saved", "random numbers"),
    ],
)
def test_what_is_lost_is_named(changes, fault, word):
    v = verdict(**changes)
    assert (v.status, v.fault) == ("fail", fault)
    assert word in v.headline
    assert v.causes
    assert v.remedy


def test_rounding_passes():
    assert verdict(difference=DIFFERENCE * 2.0 * 0.99).status == "pass"
    assert verdict(difference=DIFFERENCE * 2.0 * 1.01).status == "fail"
    assert verdict(difference=0.0, size=0.0).status == "pass"


def test_what_the_optimizer_was_given_on_purpose_is_noted():
    v = verdict(outside=(Outside((4, 64), True),))
    assert v.status == "pass"
    assert "1 tensor outside the model" in v.notes[0]


def test_wording():
    assert str(verdict(outside=(Outside((64, 64), False),))) == (
        "reload_keeps_head: FAIL. The logits depend on 1 trainable tensor outside the model (64 x 64): not saved, and not in "
        "model.parameters().\n"
        "  cause: layers are kept in a plain python list or dict, in a closure, or as bare tensors: torch does not register "
        "them\n"
        "  do: use nn.ModuleList, nn.ModuleDict or nn.Parameter, or assign the layer to an attribute of the module\n"
        "  limit: logits after reloading within 5.0 % of their rms; every trainable tensor saved\n"
        "  measured: 40 tensors of the model written as safetensors, overwritten and read back; the graph of the logits followed "
        "to its leaves"
    )


@pytest.mark.parametrize(("factor", "fault"), [(0.0, ""), (0.02, "not_saved")])
def test_an_adapter_that_was_pruned_whole_is_not_saved(factor, fault):
    """AdaLoRA leaves out of the checkpoint what it multiplies by zero."""
    trace, names = example_trace(), ("layer.lin1.lora_A.default", "layer.lin1.lora_E.default")
    last = (trace.tensors[0].last, replace(trace.tensors[0].last, rms=factor))
    adapters = [
        replace(trace.tensors[0], name=name, role="adapter", last=end) for name, end in zip(names, last, strict=True)
    ]
    head = Head(reload=replace(GOOD, missing=names))
    trace = replace(trace, tensors=(*trace.tensors, *adapters), measurements={"head_state": head})
    assert check_reload_keeps_head(trace).fault == fault
