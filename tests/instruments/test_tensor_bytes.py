"""Bytes of tensors of every kind: read where they are, and their storage stays one that can be resized."""

from __future__ import annotations

import math
import warnings
import zlib

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from pytest_ftcheck import check_all_finite, finetune, watch
from pytest_ftcheck.instruments.environment import data_hash
from pytest_ftcheck.instruments.kept_tensors import KeptTensors, identical, overwrite
from pytest_ftcheck.instruments.tensor_bytes import digest, of_bytes
from pytest_ftcheck.instruments.tensor_statistics import NonfiniteElements

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch says of some layouts that they are new
    TABLE = torch.arange(16.0).reshape(4, 4)
    ROWS = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0, 5.0])]
    IN_PARTS = {
        "coo": lambda: TABLE.to_sparse(),
        "csr": lambda: TABLE.to_sparse_csr(),
        "csc": lambda: TABLE.to_sparse_csc(),
        "bsr": lambda: TABLE.to_sparse_bsr((2, 2)),
        "nested": lambda: torch.nested.nested_tensor(ROWS),
        "jagged": lambda: torch.nested.nested_tensor(ROWS, layout=torch.jagged),
    }
pytestmark = pytest.mark.filterwarnings("ignore:.*(Sparse|nested|quantized).*:UserWarning")


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.arange(6.0),
        lambda: torch.arange(6.0)[2:],
        lambda: torch.arange(6.0).reshape(2, 3).t(),
        lambda: torch.arange(6.0).bfloat16(),
        lambda: torch.tensor([True, False]),
        lambda: torch.tensor(3.0),
        lambda: nn.Parameter(torch.ones(2)),
        lambda: torch.tensor([1 + 2j]).conj(),
        lambda: torch.zeros(2).expand(3, 2),
        lambda: torch.zeros(0),
        lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    ],
)
def test_the_bytes_are_those_of_the_elements(make):
    tensor = make()
    plain = tensor.detach().int_repr() if tensor.is_quantized else tensor.detach().resolve_conj()
    plain = plain.clone(memory_format=torch.contiguous_format).reshape(-1)
    expected = bytes(plain.view(torch.uint8).numpy()) if plain.numel() else b""
    assert of_bytes(tensor, bytes) == expected
    assert digest(tensor) == zlib.crc32(expected)
    assert tensor.untyped_storage().resizable()


@pytest.mark.parametrize("kind", IN_PARTS)
def test_what_is_made_of_parts_is_compared_by_them(kind):
    one, two = IN_PARTS[kind](), IN_PARTS[kind]()
    assert digest(one) == digest(two) is not None
    values = one.unbind()[1] if one.is_nested else one._values() if kind == "coo" else one.values()
    values.reshape(-1)[-1] = 9
    assert digest(one) != digest(two)


@pytest.mark.parametrize("kind", [*IN_PARTS, "mkldnn"])
def test_what_is_made_of_parts_is_kept_and_restored(kind):
    make = IN_PARTS.get(kind, lambda: torch.ones(3).to_mkldnn())
    tensor = make()
    kept = KeptTensors([("it", tensor)])
    assert kept.restore() == []
    overwrite(tensor.data, other_values(make()))
    assert kept.restore() == ["it"]
    assert identical(tensor, make())
    assert kept.restore() == []


def other_values(tensor):
    if tensor.is_mkldnn:
        return (tensor.to_dense() * 2).to_mkldnn()
    return tensor * 2


class WithBuffer(nn.Module):
    def __init__(self, buffer):
        super().__init__()
        self.body, self.classifier = nn.Linear(6, 8), nn.Linear(8, 2)
        self.register_buffer("odd", buffer)

    def forward(self, x):
        return self.classifier(torch.relu(self.body(x)))


@pytest.mark.parametrize("kind", [*IN_PARTS, "mkldnn"])
@pytest.mark.trains
def test_a_buffer_of_any_kind_is_trained_beside(kind, rows):
    model = WithBuffer(IN_PARTS.get(kind, lambda: torch.ones(3).to_mkldnn())())
    trace = finetune(model, list(rows), steps=2, probes=())
    compared = [b.name for b in trace.buffers]
    assert compared == ([] if kind == "mkldnn" else ["odd"])
    assert any("not compared" in note and "odd" in note for note in trace.notes) is (kind == "mkldnn")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model) as w:
        for x, y in rows[:2]:
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            if kind == "csr":
                model.odd.values().mul_(2)
    assert [b.unchanged for b in w.trace.buffers] == ([] if kind == "mkldnn" else [kind != "csr"])


@pytest.mark.trains
def test_what_was_not_finite_before_the_training_is_no_event_of_it(rows):
    model = WithBuffer(torch.tensor([math.inf, math.nan, 0.0]))
    assert check_all_finite(finetune(model, list(rows), steps=2, probes=())).status == "pass"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model) as w:
        x, y = rows[0]
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        model.odd[2] = math.inf
    assert (check_all_finite(w.trace).fault, w.trace.buffers[0].nonfinite) == ("nonfinite_buffer", 1)


@pytest.mark.parametrize(
    ("before", "after", "count"),
    [
        ([math.inf, 1.0], [math.inf, 2.0], 0),
        ([math.inf, 1.0], [math.nan, 1.0], 1),
        ([math.inf, 1.0], [1.0, math.inf], 1),
        ([-math.inf, 1.0], [-math.inf, math.nan], 1),
        ([math.nan], [math.nan, math.nan], 1),
        ([0.0], [math.nan, math.nan], 2),
        ([1, 2], [1, 2], 0),
    ],
)
def test_nonfinite_elements_are_counted_where_they_are_new(before, after, count):
    assert NonfiniteElements(torch.tensor(before)).since(torch.tensor(after)) == count


def test_what_has_no_values_is_not_read():
    inside = []
    torch.func.grad(lambda x: [inside.append(digest(x)), x.sum()][1])(torch.zeros(2))
    torch.func.vmap(lambda x: [inside.append(digest(x)), x][1])(torch.zeros(2, 2))
    with FakeTensorMode():
        fake = torch.zeros(2)
        inside.append(digest(fake))
    freed = torch.zeros(2)
    freed.untyped_storage().resize_(4)
    others = [digest(t) for t in (fake, freed, torch.zeros(2, device="meta"), torch.zeros(2).to_mkldnn())]
    assert {*inside, *others} == {None}


def test_the_fingerprint_of_batches_leaves_their_storage_resizable():
    batch = torch.zeros(2, 3)
    data_hash([batch])
    batch.resize_(4, 3)
