"""An interrupt, an exception and a signal in each probe: all that is the user's is as before, bit for bit.

Two places of each probe's room; `make interrupts` tries every line that runs, the first and the last time that it runs.
"""

from __future__ import annotations

import pytest
import torch
from everything import Everything, bits, process_state
from interrupted import KINDS, WHOLE, Lines, stopped, timer  # noqa: F401 - a fixture
from special_tensors import add_tables

from pytest_ftcheck import Intent, finetune
from pytest_ftcheck.checks.probes import PROBE_CLASSES
from pytest_ftcheck.instruments import undisturbed as blocks
from pytest_ftcheck.instruments.tiny_architectures import tiny
from pytest_ftcheck.instruments.tiny_tasks import batches_for
from pytest_ftcheck.instruments.undo import _blocks

pytestmark = [
    pytest.mark.trains,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # interrupted while it is freed
]
#: Probes that read tokens, and a task on which they measure.
TASKS = {
    "token_labels": "token-classification",
    "answer_spans": "question-answering",
    "lm_targets": "causal-lm",
    "base_twin": "text-classification",
}
#: Of several processes: tests/ranks.
ELSEWHERE = {"ranks"}


class Tokens:
    """A tiny transformers model, a used optimizer, and how they look, bit for bit."""

    def __init__(self, task):
        torch.manual_seed(0)
        self.model = add_tables(tiny("gpt2" if task == "causal-lm" else "distilbert", task))
        self.batches = batches_for(self.model)[:2]
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.model(**self.batches[0]).loss.backward()
        self.optimizer.step()

    def state(self):
        """All of it, as plain data."""
        seen = {}
        of_modules = [bits(vars(m), seen) for m in self.model.modules()]
        return of_modules, bits(vars(self.optimizer), seen), bits(vars(self.model.config), seen), process_state()


def by_label(model, batch):
    """A contrastive loss: embeddings of one label are near each other."""
    z, labels = model(batch[0]), batch[1]
    distance = (z[:, None] - z).pow(2).sum(-1)
    same = labels[:, None] == labels
    return (distance * same + (4 - distance).clamp_min(0) * ~same).mean()


def things_for(name):
    """A user's things on which the probe measures, and the arguments of `finetune`."""
    things = Tokens(TASKS[name]) if name in TASKS else Everything()
    given = {"optimizer": things.optimizer, "steps": 2, "probes": [name]}
    if name == "embeddings":
        given |= {"loss_fn": by_label, "intent": Intent(task="embedding")}
    if name == "pretrained":
        given["intent"] = Intent(pretrained={n: p.detach() * 1.01 for n, p in things.model.named_parameters()})
    return things, given


@pytest.mark.parametrize("kind", [k for k in PROBE_CLASSES if k.name not in ELSEWHERE], ids=lambda k: k.name)
def test_what_stops_a_probe_leaves_everything_as_before(kind, timer):  # noqa: F811
    things, given = things_for(kind.name)
    room = "/".join(kind.__module__.split(".")[1:3]) + "/"

    def run():
        return finetune(things.model, things.batches, **given)

    trace = run()
    assert kind.name in trace.measurements, trace.skipped.get(kind.name)
    before = things.state()
    with Lines(files=room) as lines:
        run()
    assert things.state() == before
    for i, at in enumerate(lines.chosen(0 if WHOLE else 2), PROBE_CLASSES.index(kind)):
        for error in KINDS if WHOLE else (KINDS[i % len(KINDS)],):
            where = stopped(run, at, room, error)
            assert things.state() == before, where
            assert not blocks.is_probing(), where
            assert not _blocks.open, where
