"""Models that torch allows and few people write: worked with as any other, or refused in one line that names the peculiarity.

A healthy model is silent whatever its oddity: no check fails, and everything is as before.
"""

from __future__ import annotations

import pytest
import torch
from everything import bits
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from pytest_ftcheck import check_grads_nonzero, check_init, diagnose, extract_features, finetune, watch

pytestmark = pytest.mark.trains
HEALTHY, REFUSED = {}, {}


class Net(nn.Module):
    def __init__(self, body=None, classifier=None):
        super().__init__()
        self.body = nn.Linear(6, 8) if body is None else body
        self.classifier = nn.Linear(8, 2) if classifier is None else classifier

    def forward(self, x):
        return self.classifier(torch.relu(self.body(x)))


def batches(count=8, rows=16):
    g = torch.Generator().manual_seed(0)
    return [(v := torch.randn(rows, 6, generator=g), (v[:, 0] > 0).long()) for _ in range(count)]


def healthy(make):
    HEALTHY[make.__name__] = make
    return make


def refused(*words):
    def register(make):
        REFUSED[make.__name__] = make, words
        return make

    return register


def state(model):
    """Of all modules, bit for bit; those of TorchScript show their tensors only."""
    seen = {}
    if isinstance(model, torch.jit.ScriptModule):
        return [(name, value.tolist()) for name, value in model.state_dict().items()]
    return [bits(vars(m), seen) for m in model.modules()]


# ------------------------------------------------------------------ worked with
@healthy
def spectral_norm():
    return Net(parametrizations.spectral_norm(nn.Linear(6, 8)), parametrizations.spectral_norm(nn.Linear(8, 2)))


@healthy
def spectral_norm_by_hooks():
    return Net(nn.utils.spectral_norm(nn.Linear(6, 8)))


@healthy
def weight_norm():
    return Net(parametrizations.weight_norm(nn.Linear(6, 8)), parametrizations.weight_norm(nn.Linear(8, 2)))


@healthy
def orthogonal_by_cayley():
    return Net(parametrizations.orthogonal(nn.Linear(6, 8), orthogonal_map="cayley"))


@healthy
def orthogonal_of_a_square():
    return Net(parametrizations.orthogonal(nn.Linear(6, 6)), nn.Linear(6, 2))


@healthy
def tied_weights():
    class Tied(Net):
        def __init__(self):
            super().__init__(nn.Linear(6, 6), nn.Linear(6, 2))
            self.second = nn.Linear(6, 6)
            self.second.weight = self.body.weight

        def forward(self, x):
            return self.classifier(torch.relu(self.second(torch.relu(self.body(x)))))

    return Tied()


@healthy
def one_module_twice():
    class Twice(Net):
        def __init__(self):
            super().__init__(nn.Linear(6, 6), nn.Linear(6, 2))
            self.again = self.body

        def forward(self, x):
            return self.classifier(torch.relu(self.again(torch.relu(self.body(x)))))

    return Twice()


@healthy
def a_complex_buffer():
    class Complex(Net):
        def __init__(self):
            super().__init__()
            self.register_buffer("phase", torch.ones(8, dtype=torch.complex64))

        def forward(self, x):
            return self.classifier(torch.relu(self.body(x) * self.phase.real))

    return Complex()


@healthy
def a_tensor_subclass():
    class Sub(torch.Tensor):
        pass

    model = Net()
    model.body.weight = nn.Parameter(model.body.weight.detach().as_subclass(Sub))
    return model


@healthy
def data_parallel():
    return nn.DataParallel(Net())


@healthy
def scripted():
    return torch.jit.script(Net())


@healthy
def without_length():
    return type("NoLength", (Net,), {"__len__": lambda self: 0})()


def _raises(*_):
    raise LookupError("of the user's model")


@healthy
def without_truth_value():
    return type("NoTruth", (Net,), {"__bool__": _raises})()


@healthy
def without_equality():
    return type("NoEquality", (Net,), {"__eq__": _raises, "__hash__": nn.Module.__hash__})()


@healthy
def without_copy():
    return type("NoCopy", (Net,), {"__deepcopy__": _raises, "__reduce_ex__": _raises})()


@healthy
def attributes_only_of_torch():
    """It takes what train(), eval() and hooks set, and nothing else."""

    class Closed(Net):
        def __setattr__(self, name, value):
            if getattr(self, "closed", False) and name not in vars(self):
                raise AttributeError(name)
            super().__setattr__(name, value)

    model = Closed()
    model.closed = True
    return model


@healthy
def writes_into_its_input():
    class InPlace(Net):
        def forward(self, x):
            return super().forward(x.mul_(0.999))

    return InPlace()


@pytest.mark.filterwarnings("ignore:.*(weight_norm|torch.jit|spectral_norm).*")
@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_odd_model_is_silent_and_left_as_it_was(name):
    model = HEALTHY[name]()
    before = state(model)
    trace = finetune(model, batches(), lr=2e-2, steps=60)
    assert diagnose(trace).having("fail") == ()
    assert trace.losses[-1] < 0.8 * trace.losses[0]
    assert state(model) == before


@pytest.mark.filterwarnings("ignore:.*(weight_norm|torch.jit|spectral_norm).*")
@pytest.mark.parametrize("name", [n for n in HEALTHY if n != "data_parallel"])
def test_a_healthy_odd_model_is_watched(name):
    model = HEALTHY[name]()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    with watch(model, optimizer) as w:
        for x, y in batches() * 4:
            optimizer.zero_grad()
            F.cross_entropy(model(x.clone()), y).backward()
            optimizer.step()
    assert len(w.trace.steps) == 32
    assert diagnose(w.trace).having("fail") == ()


# ------------------------------------------------------------------ refused by name
@refused("a NoHash", "has no __hash__", "__hash__ = torch.nn.Module.__hash__")
def without_hash():
    return type("NoHash", (Net,), {"__eq__": lambda self, other: self is other})()


@refused("its module 'classifier', a NoHash", "has no __hash__")
def a_layer_without_hash():
    return Net(classifier=type("NoHash", (nn.Linear,), {"__eq__": lambda self, other: self is other})(8, 2))


@refused("a Sealed", "refuses attributes", "of the user's model", "__setattr__")
def attributes_refused():
    model = Net()
    model.__class__ = type("Sealed", (Net,), {"__setattr__": _raises})
    return model


@refused("'body.weight'", "not initialised yet (a lazy module)", "one forward pass first")
def a_lazy_module():
    return Net(nn.LazyLinear(8))


@refused("'body.phase'", "complex", "real floating-point")
def a_complex_parameter():
    model = Net()
    model.body.phase = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    return model


@refused("'body.steps'", "quantized (torch.int8)")
def whole_numbers_as_a_parameter():
    model = Net()
    model.body.steps = nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)
    return model


@refused("'body.weight'", "meta device")
def on_the_meta_device():
    return Net(nn.Linear(6, 8, device="meta"))


@pytest.mark.parametrize("name", REFUSED)
def test_an_odd_model_is_refused_by_name(name):
    make, words = REFUSED[name]
    with pytest.raises(ValueError, match=r"^model: ") as info:
        finetune(make(), batches(), steps=2)
    message = str(info.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["without_hash", "a_layer_without_hash"])
def test_what_torch_cannot_list_is_refused_everywhere(name):
    make = REFUSED[name][0]
    for call in (watch, lambda m: check_init(m, batches()), lambda m: extract_features(m, batches())):
        with pytest.raises(ValueError, match="has no __hash__"):
            call(make())


# ------------------------------------------------------------------ the model or we: a bare loop decides
def orthogonal():
    torch.manual_seed(0)
    return Net(parametrizations.orthogonal(nn.Linear(6, 8)))


def test_orthogonal_under_weight_decay_loses_its_weight_in_a_bare_loop_too():
    """The diagonal holds signs that are cast to int: a 1 that was decayed is a 0."""
    model = orthogonal()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    F.cross_entropy(model(batches()[0][0]), batches()[0][1]).backward()
    optimizer.step()
    assert model.body.weight.norm() == 0


def test_orthogonal_under_weight_decay_is_named():
    verdict = check_grads_nonzero(finetune(orthogonal(), batches(), lr=1e-2, steps=40))
    assert verdict.fault == "parametrization_decayed"
    assert "body.parametrizations.weight.original" in verdict.causes[0]
    assert "Weight decay (0.0100)" in verdict.causes[0]
    assert "no weight decay for *.parametrizations.*.original" in verdict.remedy


def test_orthogonal_without_weight_decay_is_healthy():
    trace = finetune(orthogonal(), batches(), lr=2e-2, steps=60, weight_decay=0.0)
    assert diagnose(trace).having("fail") == ()


# ------------------------------------------------------------------ batches
class Popping(Net):
    """It takes its input out of the batch."""

    def forward(self, batch):
        return super().forward(batch.pop("x"))


@pytest.mark.parametrize("way", ["default", "loss_fn", "forward", "step"])
def test_a_forward_that_pops_from_its_batch_takes_nothing_of_the_users(way):
    def loss_fn(model, batch):
        labels = batch["labels"]
        return F.cross_entropy(model(batch), labels)

    def forward(model, batch):
        return model(batch)

    def step(model, batch, optimizer, scheduler):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch), batch.pop("labels"))
        loss.backward()
        optimizer.step()
        return loss

    ways = {"default": {}, "loss_fn": {"loss_fn": loss_fn}, "forward": {"forward": forward}, "step": {"step": step}}
    given = [{"x": x, "labels": y} for x, y in batches(4)]
    trace = finetune(Popping(), given, steps=9, lr=1e-2, **ways[way])  # every batch twice, and one a third time
    assert len(trace.steps) == 9
    assert all(list(batch) == ["x", "labels"] for batch in given)


class Normalised(Net):
    def __init__(self):
        super().__init__(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)))


def with_last(rows):
    given = batches(4)
    return [*given[:-1], tuple(part[:rows] for part in given[-1])]


def test_a_last_batch_of_one_row_under_batch_norm_is_named_with_its_remedy():
    model = Normalised()
    before = state(model)
    with pytest.raises(ValueError, match=r"^batches\[3\] has one row, and BatchNorm \(body.1\) .*drop_last=True"):
        finetune(model, with_last(1), steps=8)
    assert state(model) == before
    assert len(finetune(model, with_last(2), steps=8).steps) == 8
    assert len(finetune(Net(), with_last(1), steps=8).steps) == 8  # no BatchNorm: no matter


def test_a_last_batch_of_one_row_in_the_users_own_step_keeps_its_error():
    def step(model, batch, optimizer, scheduler):
        optimizer.zero_grad()
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()

    with pytest.raises(ValueError, match="more than 1 value per channel") as info:
        finetune(Normalised(), with_last(1), steps=8, step=step)
    if hasattr(info.value, "add_note"):
        assert "drop_last=True" in "".join(info.value.__notes__)


@pytest.mark.parametrize("at", [0, 3])
def test_a_batch_without_rows_is_named_before_any_training(at):
    given = batches(4)
    given[at] = tuple(part[:0] for part in given[at])
    with pytest.raises(ValueError, match=rf"^batches\[{at}\] has no rows: the mean of no losses is NaN"):
        finetune(Net(), given, steps=8)


# ------------------------------------------------------------------ sparse gradients
class Embedded(nn.Module):
    def __init__(self, sparse=True):
        super().__init__()
        self.embedding, self.classifier = nn.Embedding(20, 8, sparse=sparse), nn.Linear(8, 2)

    def forward(self, ids):
        return self.classifier(self.embedding(ids).mean(1))


def token_rows():
    g = torch.Generator().manual_seed(0)
    return [(ids := torch.randint(0, 20, (16, 3), generator=g), (ids[:, 0] > 9).long()) for _ in range(8)]


def test_sparse_embeddings_under_our_default_optimizer_are_refused_by_name():
    with pytest.raises(ValueError, match=r"^optimizer='adamw' takes no sparse gradients, and embedding .*SparseAdam"):
        finetune(Embedded(), token_rows(), steps=2)


def test_sparse_embeddings_with_an_optimizer_that_takes_them():
    frozen = Embedded()
    frozen.embedding.weight.requires_grad_(False)
    assert len(finetune(frozen, token_rows(), steps=2).steps) == 2
    assert len(finetune(Embedded(sparse=False), token_rows(), steps=2).steps) == 2
    trace = finetune(Embedded(), token_rows(), steps=40, optimizer="sgd", lr=0.5, weight_decay=0.0)
    assert diagnose(trace).having("fail") == ()
    own = finetune(
        Embedded(),
        token_rows(),
        steps=40,
        optimizer=lambda model: torch.optim.SparseAdam([model.embedding.weight], lr=0.1),
    )
    assert len(own.steps) == 40
