"""``FtcheckCallback``: a training that a framework runs, watched by a callback in the framework's own list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..checks.probes import chosen_probes
from ..core import arguments
from ..core.intent import Intent
from ..core.late_binding import provided
from ..integrations.trainer_guard import CrashGuard, calling_trainer
from .lightning_callback import LightningEvents
from .watch import watch

if TYPE_CHECKING:
    from ..core.trace import Trace
    from ..instruments.reader import LossFn


class FtcheckCallback(LightningEvents):
    """Watch the training of a ``transformers.Trainer`` by a callback: ``trainer.add_callback(FtcheckCallback(raises=True))``; that of a
    ``lightning.Trainer``: ``Trainer(callbacks=[FtcheckCallback()])``.

    What it watches, and how, is that of ``watch(trainer)``. A second training of the same trainer is watched anew.

    :param raises: judge the trace with `assert_healthy` when the training ends.
    :param head, intent, probe_batch, loss_fn, probes: as for `watch`.
    :raises ValueError, TypeError: bad input.
    :raises CheckFailed: when the training ends, with ``raises=True``: a check failed.

    >>> FtcheckCallback(raises="yes")
    Traceback (most recent call last):
    TypeError: raises is a str: expected True or False
    """

    def __init__(
        self,
        *,
        raises: bool = False,
        head: str | Sequence[str] | None = None,
        intent: Intent | None = None,
        probe_batch: Any = None,
        loss_fn: LossFn | None = None,
        probes: Sequence[str] | None = None,
    ) -> None:
        arguments.instance("raises", raises, bool, "True or False")
        arguments.instance("intent", intent, Intent, "a pytest_ftcheck.Intent", optional=True)
        arguments.callables(loss_fn=loss_fn)
        chosen_probes(probes)
        self.raises = raises
        self._options = {
            "head": head,
            "intent": intent,
            "probe_batch": probe_batch,
            "loss_fn": loss_fn,
            "probes": probes,
        }
        self._watch: watch | None = None
        self._guard: CrashGuard | None = None
        self._open = False

    @property
    def trace(self) -> Trace:
        """What happened in the last training.

        :raises RuntimeError: no training has ended.
        """
        if self._watch is None or self._open:
            raise RuntimeError("FtcheckCallback.trace is ready after the training")
        return self._watch.trace

    # ------------------------------------------------------------------ events of transformers.Trainer
    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Called by a Trainer. `watch` appends a callback that this same event reaches last."""
        trainer = calling_trainer(self)
        self._begin(trainer)
        self._guard = CrashGuard(trainer, self._close)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Called by every framework when all is over."""
        self._close()
        if self.raises:
            provided("assert_healthy")(self.trace)

    def __getattr__(self, name: str) -> Callable[..., None]:
        if not name.startswith("on_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return _ignore

    # ------------------------------------------------------------------ the watch
    def _begin(self, subject: Any, **options: Any) -> None:
        if self._open:
            self._close(RuntimeError("the training before this one did not end"))
        self._watch = watch(subject, **self._options, **options)
        self._open = True
        self._watch.__enter__()

    def _close(self, error: BaseException | None = None) -> None:
        """The training is over: every hook is taken off. May be called twice."""
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.remove()
        if self._open and self._watch is not None:
            self._open = False
            self._watch.__exit__(type(error) if error is not None else None, error, None)


def _ignore(*_: Any, **__: Any) -> None:
    """An event that is of no interest."""
