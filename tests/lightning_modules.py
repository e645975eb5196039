"""Lightning modules on the toy task, healthy and with one fault each."""

from __future__ import annotations

import lightning
import torch
from torch.nn.functional import cross_entropy, nll_loss
from torch.utils.data import DataLoader, TensorDataset

from pytest_ftcheck import tiny_distilbert, toy_batches

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def loader(rows=256, *, seed=0, batch_size=16, shuffle=True):
    (ids, length, mask), labels = toy_batches(1, rows, seed=seed)[0]
    return DataLoader(TensorDataset(ids, length, mask, labels), batch_size=batch_size, shuffle=shuffle)


def trainer(package=lightning, **options):
    return package.Trainer(**{**QUIET, "max_epochs": 3, **options})


class Classifier(lightning.LightningModule):
    """No ``forward``: the loss is that of ``training_step``."""

    def __init__(self, seed=0, lr=1e-3):
        super().__init__()
        self.net, self.lr = tiny_distilbert(seed=seed), lr

    def logits(self, batch):
        ids, length, mask, _ = batch
        return self.net((ids, length, mask))

    def loss(self, logits, labels):
        return cross_entropy(logits, labels)

    def training_step(self, batch, batch_idx):
        loss = self.loss(self.logits(batch), batch[-1])
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(self.logits(batch), batch[-1]))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


class WithForward(Classifier):
    def forward(self, inputs):
        return self.net(inputs)

    def logits(self, batch):
        return self(tuple(batch[:3]))


class HeadForgotten(Classifier):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.net.base_model.parameters(), lr=self.lr)


class HeadAtZero(Classifier):
    def configure_optimizers(self):
        groups = [
            {"params": list(self.net.base_model.parameters())},
            {"params": list(self.net.classifier.parameters()), "lr": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.lr)


class SoftmaxTwice(Classifier):
    def loss(self, logits, labels):
        return cross_entropy(logits.softmax(-1), labels)


class Negated(Classifier):
    def loss(self, logits, labels):
        return -cross_entropy(logits, labels)


class MaskForgotten(Classifier):
    def logits(self, batch):
        ids, length, mask, _ = batch
        return self.net((ids, length, torch.ones_like(mask)))


class OwnPredictions(Classifier):
    def loss(self, logits, labels):
        return cross_entropy(logits, logits.argmax(-1))


class Manual(Classifier):
    """Manual optimization of two optimizers, accumulation and clipping by hand."""

    def __init__(self, **options):
        super().__init__(**options)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = self.loss(self.logits(batch), batch[-1])
        self.manual_backward(loss / 2)
        if batch_idx % 2:
            for optimizer in self.optimizers():
                self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
                optimizer.step()
                optimizer.zero_grad()
            for scheduler in self.lr_schedulers():
                scheduler.step()
        self.log("loss", loss)

    def configure_optimizers(self):
        optimizers = [
            torch.optim.AdamW(self.net.base_model.parameters(), lr=self.lr),
            torch.optim.AdamW(self.net.classifier.parameters(), lr=self.lr),
        ]
        return optimizers, [torch.optim.lr_scheduler.StepLR(o, step_size=100) for o in optimizers]


class TwoLosses(Manual):
    """As in a GAN: two losses, each with an optimizer of its own."""

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        for optimizer, factor in ((first, 1.0), (second, 0.5)):
            loss = factor * self.loss(self.logits(batch), batch[-1])
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()


class LogProbabilities(Classifier):
    """A healthy twin of `SoftmaxTwice`: ``nll_loss`` of log-probabilities."""

    def loss(self, logits, labels):
        return nll_loss(logits.log_softmax(-1), labels)


class DividesItself(Classifier):
    """Divides for accumulation, as Lightning does anyway."""

    def loss(self, logits, labels):
        return super().loss(logits, labels) / self.trainer.accumulate_grad_batches


class AddsUp(Classifier):
    """Undoes Lightning's division for accumulation."""

    def loss(self, logits, labels):
        return super().loss(logits, labels) * self.trainer.accumulate_grad_batches


class TwoLossesOfOneBatch(Manual):
    """Two losses of the same rows, from one line, before one step: meant to be added up."""

    def training_step(self, batch, batch_idx):
        logits = self.logits(batch)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        for loss in (self.loss(logits, batch[-1]), self.loss(logits.flip(0), batch[-1].flip(0))):
            self.manual_backward(loss, retain_graph=True)
        for optimizer in self.optimizers():
            optimizer.step()
