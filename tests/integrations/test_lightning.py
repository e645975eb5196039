"""Lightning's loop, watched: what its adapter says, that it changes nothing, and which verdicts come of it."""

from __future__ import annotations

import lightning
import lightning_modules as modules
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning_modules import Classifier, loader, trainer

from pytest_ftcheck import CheckFailed, FtcheckCallback, check_loss_scale, diagnose, watch
from pytest_ftcheck.checks.loss.loss_scale_record import LossScale
from pytest_ftcheck.instruments.batches import tensors_in
from pytest_ftcheck.instruments.undisturbed import quiet
from pytest_ftcheck.integrations.lightning import LightningAdapter, package_of

pytestmark = [
    pytest.mark.trains,
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:The number of training batches.*"),
    pytest.mark.filterwarnings("ignore:You requested to overfit.*"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*"),
]


class Listener:
    """Keeps what it hears; reads the loss of the probe batch whenever training begins or ends."""

    def __init__(self):
        self.loops, self.errors, self.losses = [], [], []

    def training_begins(self, loop):
        self.loops.append(loop)
        self._read()

    def training_ends(self, error=None):
        self.errors.append(error)
        self._read()

    def _read(self):
        loop = self.loops[0]
        if loop.loss_fn is not None:
            with quiet(loop.model):
                loss = loop.loss_fn(loop.model, loop.probe_batch)
            self.losses.append(loss)


def fit(module, *, watched=True, data=None, seed=1, val=None, package=lightning, **options):
    """What the listener heard, and the weights after the training."""
    torch.manual_seed(seed)
    listener, runner = Listener(), trainer(package, **options)
    before = list(runner.callbacks)
    adapter = LightningAdapter(runner)
    if watched:
        adapter.attach(listener)
    try:
        runner.fit(module, loader() if data is None else data() if callable(data) else data, val)
    finally:
        adapter.detach()
    assert runner.callbacks == before
    return listener, {n: p.detach().clone() for n, p in module.named_parameters()}


def test_the_loop_is_described_when_the_first_batch_is_there():
    module = Classifier()
    heard, _ = fit(module, max_epochs=1)
    (loop,) = heard.loops
    assert loop.model is module
    assert [type(o) for o in loop.optimizers] == [torch.optim.AdamW]
    assert len(loop.probe_batch[-1]) == 64
    assert loop.notes == ()
    assert heard.errors == [None]


def test_the_probe_is_the_loss_and_the_logits_of_training_step():
    module = Classifier()
    heard, _ = fit(module, max_epochs=1)
    batch = heard.loops[0].probe_batch
    loss, logits = heard.losses[-1]
    with quiet(module):
        expected = module.logits(batch)
    assert torch.equal(logits, expected)
    assert torch.equal(loss, torch.nn.functional.cross_entropy(expected, batch[-1]))


@pytest.mark.parametrize(
    "kind", [modules.Classifier, modules.WithForward, modules.Manual, modules.TwoLosses], ids=lambda k: k.__name__
)
def test_training_is_the_same_to_the_bit(kind):
    _, alone = fit(kind(), watched=False, max_epochs=2, val=loader(32, seed=5, shuffle=False))
    _, watched = fit(kind(), max_epochs=2, val=loader(32, seed=5, shuffle=False))
    assert all(torch.equal(alone[n], watched[n]) for n in alone)


def test_manual_optimization_is_not_done_by_the_probe():
    module = modules.Manual()
    heard, _ = fit(module, max_epochs=1)
    loss, logits = heard.losses[0]
    expected = torch.nn.functional.cross_entropy(logits, heard.loops[0].probe_batch[-1]) / 2
    assert torch.equal(loss, expected)
    assert len(heard.loops[0].optimizers) == 2


def test_several_losses_are_no_probe():
    heard, _ = fit(modules.TwoLosses(), max_epochs=1)
    (loop,) = heard.loops
    assert loop.loss_fn is None
    assert loop.probe_batch is None
    assert "calls backward() 2 times" in loop.notes[0]


def test_an_optimizer_of_ones_own_is_not_stepped_by_the_probe():
    class Own(Classifier):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.steps = 0

        def training_step(self, batch, batch_idx):
            optimizer = self.trainer.optimizers[0]
            optimizer.zero_grad()
            self.manual_backward(self.loss(self.logits(batch), batch[-1]))
            optimizer.step()

    heard, watched = fit(Own(), max_epochs=1)
    _, alone = fit(Own(), max_epochs=1, watched=False)
    assert "steps an optimizer that it did not get from self.optimizers()" in heard.loops[0].notes[0]
    assert all(torch.equal(alone[n], watched[n]) for n in alone)


def test_overfit_batches_probes_the_rows_that_are_trained():
    data = loader()
    heard, _ = fit(Classifier(), max_epochs=1, overfit_batches=2, data=data)
    ids = heard.loops[0].probe_batch[0]
    trained = {tuple(row.tolist()) for row in data.dataset.tensors[0][:32]}
    assert len(ids) == 32
    assert {tuple(row.tolist()) for row in ids} == trained


def test_a_stream_is_probed_on_its_first_batch():
    class Stream(torch.utils.data.IterableDataset):
        def __init__(self, rows):
            self.rows = rows

        def __iter__(self):
            return iter(self.rows)

    # trained for a number of steps, because its length is not known
    def stream():
        rows = list(zip(*loader(64).dataset.tensors, strict=True))
        return torch.utils.data.DataLoader(Stream(rows), batch_size=16)

    heard, watched = fit(Classifier(), max_epochs=1, data=stream)
    _, alone = fit(Classifier(), max_epochs=1, data=stream, watched=False)
    assert torch.equal(heard.loops[0].probe_batch[0], next(iter(stream()))[0])
    assert all(torch.equal(alone[n], watched[n]) for n in alone)


def test_training_ends_before_averaged_weights_are_loaded():
    module = Classifier()
    averaging = StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=1)
    heard, _ = fit(module, max_epochs=3, callbacks=[averaging])
    with quiet(module):
        loss_after, _ = heard.loops[0].loss_fn(module, heard.loops[0].probe_batch)
    assert heard.errors == [None]
    assert not torch.equal(heard.losses[-1][0], loss_after)


def test_training_ends_before_averaged_weights_get_their_batch_statistics():
    class Normed(Classifier):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(2)

        def logits(self, batch):
            return self.norm(super().logits(batch))

    module, ends = Normed(), []

    class At(Listener):
        def training_ends(self, error=None):
            ends.append(runner.current_epoch)

    runner = trainer(max_epochs=3, callbacks=[StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=1)])
    adapter = LightningAdapter(runner)
    adapter.attach(At())
    runner.fit(module, loader())
    adapter.detach()
    assert ends == [3]


def test_a_crash_is_heard_and_leaves_the_trainer_as_it_was():
    class Crash(Classifier):
        def training_step(self, batch, batch_idx):
            if self.global_step == 3:
                raise RuntimeError("the disk is full")
            return super().training_step(batch, batch_idx)

    listener, runner = Listener(), trainer()
    before = list(runner.callbacks)
    adapter = LightningAdapter(runner)
    adapter.attach(listener)
    with pytest.raises(RuntimeError, match="disk is full"):
        runner.fit(Crash(), loader())
    adapter.detach()
    adapter.detach()
    assert [str(e) for e in listener.errors] == ["the disk is full"]
    assert runner.callbacks == before


def test_nothing_is_logged_by_the_probe(tmp_path):
    class Logging(Classifier):
        def training_step(self, batch, batch_idx):
            self.logger.log_metrics({"direct": 1.0})
            self.seen = getattr(self, "seen", 0) + 1
            return super().training_step(batch, batch_idx)

    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path)
    logged = []
    logger.log_metrics = lambda metrics, step=None: logged.append(metrics)
    module = Logging()
    fit(module, max_epochs=1, data=loader(32), logger=logger, log_every_n_steps=1)
    assert module.seen == 2
    assert [m for m in logged if "direct" in m] == [{"direct": 1.0}] * 2
    assert "log" not in vars(module)


def test_hooks_of_batch_transfer_make_the_probe_batch():
    class Transfer(Classifier):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            ids, length, mask, labels = batch
            return ids, length, mask, 1 - labels

    data = loader()
    heard, _ = fit(Transfer(), max_epochs=1, data=data)
    known = {tuple(r.tolist()): int(y) for r, y in zip(data.dataset.tensors[0], data.dataset.tensors[3], strict=True)}
    ids, *_, labels = heard.loops[0].probe_batch
    assert [int(y) for y in labels] == [1 - known[tuple(r.tolist())] for r in ids]


def test_two_views_of_a_row_are_embeddings_and_no_logits():
    class Pairs(Classifier):
        def training_step(self, batch, batch_idx):
            one, other = self.logits(batch), self.logits(batch)
            return (one - other).pow(2).mean() - one.var()

    heard, _ = fit(Pairs(), max_epochs=1)
    assert isinstance(heard.losses[0], torch.Tensor)


def test_pytorch_lightning_is_the_same():
    class Old(pytorch_lightning.LightningModule):
        __init__ = Classifier.__init__
        logits, loss = Classifier.logits, Classifier.loss
        training_step, configure_optimizers = Classifier.training_step, Classifier.configure_optimizers

    Old.__init__ = lambda self: (
        pytorch_lightning.LightningModule.__init__(self),
        setattr(self, "net", modules.tiny_distilbert(seed=0)),
        setattr(self, "lr", 1e-3),
    )[0]
    heard, _ = fit(Old(), max_epochs=1, package=pytorch_lightning)
    assert heard.errors == [None]
    assert isinstance(heard.losses[0][1], torch.Tensor)


def test_another_object_is_no_trainer_of_lightnings():
    assert package_of(object()) is None
    with pytest.raises(TypeError, match=r"expected a lightning\.Trainer"):
        LightningAdapter(object())
    with pytest.raises(TypeError, match="module is a Linear"):
        LightningAdapter(trainer(), module=torch.nn.Linear(2, 2))


def test_another_module_than_the_one_that_is_trained_is_an_error():
    runner = trainer()
    adapter = LightningAdapter(runner, module=Classifier())
    adapter.attach(Listener())
    with pytest.raises(ValueError, match="module is another Classifier"):
        runner.fit(Classifier(), loader())
    adapter.detach()


def test_the_probe_batch_is_a_copy():
    heard, _ = fit(Classifier(), max_epochs=1)
    assert all(t.is_contiguous() for t in tensors_in(heard.loops[0].probe_batch))


# ---------------------------------------------------------------------- verdicts
def watched(module, **options):
    torch.manual_seed(0)
    runner = trainer(max_epochs=2, **options)
    with watch(runner, module=module) as w:
        runner.fit(module, loader())
    return w.trace


def first_cause(trace):
    causes = diagnose(trace).causes
    return causes[0].fault if causes else None


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (modules.Classifier, {"accumulate_grad_batches": 2, "gradient_clip_val": 1.0, "max_epochs": 3}),
        (modules.WithForward, {}),
        (modules.LogProbabilities, {}),
        (modules.Manual, {"max_epochs": 3}),
        (modules.TwoLosses, {}),
    ],
    ids=["accumulated and clipped", "forward", "log-probabilities", "manual", "two losses"],
)
def test_healthy_modules_are_silent(kind, options):
    torch.manual_seed(0)
    runner = trainer(**{"max_epochs": 2, **options})
    module = kind()
    with watch(runner, module=module) as w:
        runner.fit(module, loader())
    assert first_cause(w.trace) is None, diagnose(w.trace)


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        (modules.HeadForgotten, "not_in_optimizer"),
        (modules.HeadAtZero, "lr_zero"),
        (modules.SoftmaxTwice, "double_softmax"),
        (modules.Negated, "loss_negated"),
        (modules.MaskForgotten, "mask_all_ones"),
        (modules.OwnPredictions, "own_predictions_as_targets"),
    ],
    ids=lambda v: v if isinstance(v, str) else v.__name__,
)
def test_the_fault_is_the_first_cause(kind, fault):
    assert first_cause(watched(kind())) == fault


@pytest.mark.parametrize(
    ("kind", "status", "fault"),
    [
        (modules.Classifier, "pass", ""),
        (modules.DividesItself, "advice", ""),  # the gradient is too short to be clipped: eps alone sees it
        (modules.AddsUp, "fail", "accumulation_not_averaged"),
    ],
)
def test_the_scale_of_the_loss_under_automatic_optimization(kind, status, fault):
    found = check_loss_scale(watched(kind(), accumulate_grad_batches=4, gradient_clip_val=0.1))
    assert (found.status, found.fault) == (status, fault)


def test_rows_are_known_where_only_a_part_of_the_module_is_called():
    (window, *_) = watched(Classifier(), accumulate_grad_batches=4).measured(LossScale).windows
    assert [b.rows for b in window.backwards] == [16] * 4
    assert not any(b.repeated for b in window.backwards)


def test_two_losses_of_one_batch_may_be_added_up():
    trace = watched(modules.TwoLossesOfOneBatch())
    assert [b.repeated for b in trace.measured(LossScale).windows[0].backwards] == [False, True]
    assert check_loss_scale(trace).status == "skipped"


def test_overfitting_a_few_batches_and_validation_are_silent():
    torch.manual_seed(0)
    runner, module = trainer(max_epochs=20, overfit_batches=2, check_val_every_n_epoch=5), Classifier()
    with watch(runner, module=module) as w:
        runner.fit(module, loader(), loader(32, seed=5, shuffle=False))
    assert len(w.trace.iterations) == len(w.trace.steps) == 40
    assert first_cause(w.trace) is None, diagnose(w.trace)


def test_averaged_weights_are_silent():
    trace = watched(Classifier(), callbacks=[StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=1)])
    assert first_cause(trace) is None, diagnose(trace)


def test_a_crash_leaves_a_trace_that_says_so():
    class Crash(Classifier):
        def training_step(self, batch, batch_idx):
            if self.global_step == 3:
                raise RuntimeError("the disk is full")
            return super().training_step(batch, batch_idx)

    runner, module = trainer(), Crash()
    with pytest.raises(RuntimeError, match="disk is full") as caught, watch(runner, module=module):
        runner.fit(module, loader())
    assert caught.value.ftcheck_trace.stopped == "RuntimeError: the disk is full"
    assert len(caught.value.ftcheck_trace.steps) == 3


# ---------------------------------------------------------------------- FtcheckCallback
def by_callback(module, **options):
    torch.manual_seed(0)
    callback = FtcheckCallback(**options)
    runner = trainer(max_epochs=2, callbacks=callback)
    runner.fit(module, loader())
    assert runner.callbacks == [callback]
    return callback.trace


@pytest.mark.parametrize("kind", [Classifier, modules.SoftmaxTwice, modules.HeadForgotten], ids=lambda k: k.__name__)
def test_the_callback_and_the_block_agree(kind):
    one, other = by_callback(kind()), watched(kind())
    assert one.losses == other.losses
    assert [v.status for v in diagnose(one).verdicts] == [v.status for v in diagnose(other).verdicts]
    assert first_cause(one) == first_cause(other)


def test_the_callback_raises_when_the_training_ends():
    with pytest.raises(CheckFailed, match="softmax"):
        by_callback(modules.SoftmaxTwice(), raises=True)


def test_other_callbacks_are_called_all_the_same():
    class Ends(lightning.Callback):
        ended = 0

        def on_train_end(self, trainer, pl_module):
            self.ended += 1

    one, other, callback = Ends(), Ends(), FtcheckCallback()
    runner = trainer(max_epochs=1, callbacks=[one, callback, other])
    runner.fit(Classifier(), loader())
    assert (one.ended, other.ended) == (1, 1)
    assert runner.callbacks == [one, callback, other]


def test_the_callback_is_closed_by_a_crash_and_watches_anew():
    class Crash(Classifier):
        def training_step(self, batch, batch_idx):
            if self.global_step == 3:
                raise RuntimeError("the disk is full")
            return super().training_step(batch, batch_idx)

    callback = FtcheckCallback()
    with pytest.raises(RuntimeError, match="disk is full"):
        trainer(callbacks=[callback]).fit(Crash(), loader())
    assert callback.trace.stopped == "RuntimeError: the disk is full"
    trainer(max_epochs=1, callbacks=[callback]).fit(Classifier(), loader())
    assert callback.trace.stopped is None
    assert len(callback.trace.steps) == 16
