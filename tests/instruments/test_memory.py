"""Memory that may not be written to: it is never written, and what differs is restored."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_ftcheck import assert_reload_keeps_head, finetune, watch
from pytest_ftcheck.checks.probes import PROBES
from pytest_ftcheck.instruments.kept_tensors import FreshMemory, KeptTensor, identical
from pytest_ftcheck.instruments.undisturbed import perturbed

pytestmark = pytest.mark.trains
ROWS, WIDTH = 50, 6


def read_only(path):
    numpy.save(path / "table.npy", numpy.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype("float32"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that the array is not writable
        return torch.from_numpy(numpy.load(path / "table.npy", mmap_mode="r"))


def shared_with_a_file(path):
    numpy.arange(ROWS * WIDTH, dtype="float32").tofile(path / "table.bin")
    return torch.from_file(str(path / "table.bin"), shared=True, size=ROWS * WIDTH).reshape(ROWS, WIDTH)


def expanded(path):
    return torch.full((1, WIDTH), 0.3).expand(ROWS, WIDTH)


def of_inference(path):
    with torch.inference_mode():
        return torch.full((ROWS, WIDTH), 0.3)


def with_negative_zeros(path):
    return torch.zeros(ROWS, WIDTH).neg()


TABLES = [read_only, shared_with_a_file, expanded, of_inference, with_negative_zeros]


class Model(nn.Module):
    """A small classifier with a table that it reads and never writes."""

    def __init__(self, table, frozen_parameter):
        super().__init__()
        self.base, self.classifier = nn.Linear(WIDTH, 8), nn.Linear(8, 2)
        if frozen_parameter:
            self.table = nn.Parameter(table, requires_grad=False)
        else:
            self.register_buffer("table", table)

    def forward(self, x):
        return self.classifier(torch.relu(self.base(x + self.table[: len(x)])))


def rows(number=3):
    g = torch.Generator().manual_seed(0)
    return [(x := torch.randn(16, WIDTH, generator=g), (x[:, 0] > 0).long()) for _ in range(number)]


def place_of(t):
    return t.data_ptr(), t.stride(), t.is_inference()


def made(kind, path, frozen_parameter=False):
    torch.manual_seed(0)
    model = Model(kind(path), frozen_parameter)
    tensors = [*model.parameters(), *model.buffers()]
    return model, [(t, place_of(t), t.detach().clone()) for t in tensors]


def unchanged(before):
    """The same bits in the same memory. That nothing is written, not even the same bits, is seen with `read_only`: it would segfault."""
    for tensor, place, values in before:
        assert place_of(tensor) == place
        assert identical(tensor.detach(), values)


FROZEN = [t for t in TABLES if t is not of_inference]  # finetune refuses parameters of inference mode
CASES = [(t, False, PROBES) for t in TABLES] + [(t, True, PROBES) for t in FROZEN] + [(t, True, ()) for t in FROZEN]


@pytest.mark.parametrize(
    ("kind", "frozen_parameter", "probes"),
    CASES,
    ids=[f"{t.__name__}, {'parameter' if p else 'buffer'}, {'all probes' if e else 'none'}" for t, p, e in CASES],
)
def test_a_fine_tune_writes_to_no_table(kind, frozen_parameter, probes, tmp_path):
    model, before = made(kind, tmp_path, frozen_parameter)
    trace = finetune(model, rows(), steps=3, lr=1e-2, probes=probes)
    unchanged(before)
    assert not [why for why in trace.skipped.values() if "raised" in why]


@pytest.mark.parametrize("kind", TABLES)
def test_a_watched_loop_writes_to_no_table(kind, tmp_path):
    model, before = made(kind, tmp_path)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watch(model, optimizer, probe_batch=rows()[0], probes=[p for p in PROBES if p != "permuted"]):
        for x, y in rows():
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    unchanged(before[-1:])


def test_saving_is_judged_as_ever_where_a_table_is_read_only(tmp_path):
    model, _ = made(read_only, tmp_path, frozen_parameter=True)
    assert assert_reload_keeps_head(finetune(model, rows(), steps=3, lr=1e-2)).status == "pass"


def test_a_file_that_a_table_is_shared_with_is_as_before_when_the_process_is_killed_while_probes_run(tmp_path):
    numpy.arange(ROWS * WIDTH, dtype="float32").tofile(tmp_path / "table.bin")
    before = (tmp_path / "table.bin").read_bytes()
    program = f"""
        import os, sys, torch
        sys.path[:0] = {sys.path!r}
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import test_memory as t
        from pytest_ftcheck.checks.head.probe import reload
        table = torch.from_file({str(tmp_path / "table.bin")!r}, shared=True, size={ROWS * WIDTH}).reshape({ROWS}, {WIDTH})
        write = reload._overwrite
        def killed(model, chosen):
            write(model, chosen)
            assert model.table.unique().tolist() == [torch.tensor(0.1).item()]
            os.kill(os.getpid(), 9)
        reload._overwrite = killed
        t.finetune(t.Model(table, True), t.rows(), steps=2, lr=1e-2)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert ended.returncode == -9, ended.stderr[-2000:]
    assert (tmp_path / "table.bin").read_bytes() == before


def test_a_buffer_that_rows_share_is_restored_where_the_model_writes_to_it(tmp_path):
    class Counting(Model):
        def forward(self, x):
            self.table[0] += 1
            return super().forward(x)

    table = torch.zeros(1, WIDTH).expand(ROWS, WIDTH)
    model = Counting(table, False)
    finetune(model, rows(), steps=3)
    assert model.table.stride() == (0, 1)
    assert not model.table.any()


def test_a_buffer_of_inference_mode_is_restored_where_the_model_writes_to_it(tmp_path):
    class Counting(Model):
        def forward(self, x):
            with torch.inference_mode():
                self.table.add_(1)
            return super().forward(x)

    model = Counting(of_inference(None), False)
    place = model.table.data_ptr()
    finetune(model, rows(), steps=3)
    assert model.table.data_ptr() == place
    assert model.table.is_inference()
    assert identical(model.table, of_inference(None))


# ------------------------------------------------------------------ one tensor
@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([0.0, -0.0, float("nan")]),
        torch.arange(6).reshape(2, 3).t(),
        torch.ones(3, dtype=torch.bfloat16),
        torch.ones(3).to(torch.float8_e4m3fn),
        torch.ones(2, dtype=torch.complex64),
        torch.tensor([True, False]),
        torch.eye(3).to_sparse(),
        torch.tensor(3.0),
        torch.zeros(0, 2),
    ],
    ids=lambda t: f"{t.dtype} {t.layout}",
)
def test_a_kept_tensor_of_any_kind_is_restored(tensor):
    before = tensor.clone()
    kept = KeptTensor(tensor)
    assert not kept.restore()
    if tensor.numel():
        tensor.data = tensor * 2 if tensor.layout is torch.sparse_coo else torch.full_like(tensor, 0)
        if not identical(tensor, before):
            assert kept.restore()
    assert identical(tensor, before)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.neg_(),
        lambda t: t.resize_(9),
        lambda t: setattr(t, "data", torch.ones(2, dtype=torch.float64)),
        lambda t: t.set_(torch.ones(5)),
        lambda t: t.t_(),
    ],
)
def test_memory_shape_and_the_sign_of_zero_are_restored(change):
    tensor = torch.zeros(2, 3)
    place = tensor.data_ptr()
    kept = KeptTensor(tensor)
    change(tensor)
    assert kept.restore()
    assert identical(tensor, torch.zeros(2, 3))
    assert (tensor.stride(), tensor.dtype) == ((3, 1), torch.float32)
    if tensor.data_ptr() != place:
        assert change(torch.zeros(2, 3)).numel() == 9  # only resizing may move the memory itself


def test_tensors_that_are_tied_by_their_memory_stay_tied_in_fresh_memory():
    a, b, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    b.data = a.data
    place = a.data_ptr()
    with perturbed([a, b, other]):
        a.data.fill_(5)
        assert b.tolist() == [5, 5, 5]
        assert other.tolist() == [1, 1, 1]
        assert a.data_ptr() != place
    assert a.data_ptr() == b.data_ptr() == place
    assert a.tolist() == [1, 1, 1]


def test_what_is_half_lent_is_given_back():
    class Refusing:
        """A tensor that takes no other memory."""

    tensors = [torch.ones(2), torch.ones(2)]
    fresh = FreshMemory(tensors)
    fresh.kept.append((Refusing(), torch.ones(2)))
    places = [t.data_ptr() for t in tensors]
    with pytest.raises(AttributeError):
        fresh.lend()
    fresh.kept.pop()
    fresh.restore()
    assert [t.data_ptr() for t in tensors] == places


class MemoryBank(nn.Module):
    """Keeps a row of each batch in a buffer that grows where it is."""

    def __init__(self):
        super().__init__()
        self.body, self.classifier = nn.Linear(WIDTH, 8), nn.Linear(8, 2)
        self.register_buffer("seen", torch.zeros(1, WIDTH))
        self.register_buffer("counts", torch.zeros(2, dtype=torch.int64))

    def forward(self, x):
        if self.training:
            self.seen.resize_(len(self.seen) + 1, WIDTH)[-1].copy_(x[0])
        return self.classifier(torch.relu(self.body(x)))


def resizable(*things):
    return [t.untyped_storage().resizable() for t in things]


def test_a_buffer_grows_in_its_own_memory_while_it_is_watched(rows):
    model = MemoryBank()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    with watch(model, probe_batch=rows[0]):
        for x, y in rows:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert len(model.seen) == 1 + len(rows)
    assert all(resizable(*model.buffers(), *rows[0], *optimizer.state[model.body.weight].values()))


def test_what_a_run_has_read_can_be_resized_as_before(rows):
    model = MemoryBank()
    for p in model.body.parameters():
        p.requires_grad_(False)
    tokens = [(torch.randint(9, (16, WIDTH)), y.clone()) for _, y in rows]  # integers, as token ids are
    held_out = [(x.clone(), y.clone()) for x, y in rows[:2]]
    own = [(x.clone(), y.clone()) for x, y in rows]
    finetune(model, own, eval_batches=held_out, lr=2e-2, steps=6)
    model.body = nn.Sequential(nn.Embedding(9, 8), nn.Flatten(), nn.Linear(8 * WIDTH, 8))
    finetune(model, tokens, lr=2e-2, steps=6)
    assert all(resizable(*model.parameters(), *model.buffers(), *(t for b in (*own, *tokens, *held_out) for t in b)))
