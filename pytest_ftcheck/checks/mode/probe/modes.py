"""The probe of modes: what is random in training and in evaluation mode, and in which mode are the model's parts while it trains?"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ....core.effect import Effect
from ....core.formatting import named_error
from ....instruments.base_model import BaseModel, effect, find_base_models, hidden_of, precision_of
from ....instruments.batches import row_count, split, take_rows
from ....instruments.global_state import seed_everything
from ....instruments.graph_leaves import leaves_of
from ....instruments.kept_tensors import same_bits
from ....instruments.parameter_roles import in_part
from ....instruments.probe import Probe, ProbeContext
from ....instruments.tokens import find_tokens
from ....instruments.undisturbed import quiet
from ..record import DropoutSite, Modes
from .dropout_sites import (
    DropoutCalls,
    Site,
    dropout_outputs,
    dropped_patterns,
    find_sites,
    last_of_all,
    rate_at_the_end,
    zeroed_share,
)
from .forward_passes import BatchNormObserver, TrainingPasses, input_checksum, modes_of_passes

#: Rows run twice.
ROWS = 4
#: Iterations at the beginning, in the middle and at the end at which modes are read, each.
OBSERVED = 3
#: Values of each parameter that are compared before and after the user's evaluation, about.
SAMPLED = 4096


class ModesProbe(Probe):
    """Runs the model twice in each mode and reads the modes of its parts while it trains.

    Modes are read right before and right after a step: a part counts as off if it is off at both moments.
    """

    name = "modes"
    order = 20

    def __init__(self, context: ProbeContext) -> None:
        super().__init__(context)
        self.sites = list(find_sites(context.model))
        middle = context.steps // 2
        self.iterations = {
            *range(OBSERVED),
            *range(middle, middle + OBSERVED),
            *range(context.steps - OBSERVED, context.steps),
        }
        self.due = False
        self.before_step: tuple[int, bool, list[bool]] | None = None
        self.observed: list[int] = []
        self.model_off_at: list[int] = []
        self.batch_norms = BatchNormObserver.all_in(context.model)
        self.random_states: list[tuple[int, int]] = []
        self.given: int | None = None
        self.used_and_given: list[tuple[int, int]] = []
        self.passes: TrainingPasses | None = None
        self.unmeasured: dict[str, str] = {}
        self.fields: dict[str, Any] = {}
        self.in_evaluation: torch.Tensor | None = None
        self.rows = min(ROWS, row_count(split(context.fixed_batches[0])[0]) or 0)
        self.reduced = False

    def cost(self) -> float:
        """Two passes in each mode, and the user's evaluation once."""
        if self.reduced or self.context.user_metric is None:
            return 4.0 * self.rows
        held_out = self.context.held_out or self.context.fixed_batches
        return 4.0 * self.rows + sum(row_count(split(b)[0]) or 0 for b in held_out)

    def reduce(self, reason: str) -> bool:
        """Read the modes alone: rates, and what was off at which step, cost nothing."""
        if self.reduced:
            return False
        self.rows, self.reduced = 0, True
        self.unmeasured = dict.fromkeys(("training", "evaluation", "evaluate"), reason)
        return True

    def idle(self, moment: str, number: int) -> bool:
        """In the other iterations, and after their steps."""
        if moment == "stepped":
            return self.before_step is None
        # with accumulation a step takes several iterations: until there is one, each is observed
        self.due = self.due or number in self.iterations
        self.before_step = None
        return not self.due

    def iteration(self, number: int, batch: Any) -> None:
        """Read the modes."""
        self.before_step = number, self.context.model.training, [s.module.training for s in self.sites]
        self.close()
        self.passes = TrainingPasses(self.context.model, self.context.device)
        self.given = input_checksum(split(batch)[0])

    def stepped(self, number: int) -> None:  # noqa: ARG002
        """Read the modes again: off is what was off before the step and is off after it."""
        assert self.before_step is not None
        self.due = False
        if self.passes is not None:
            if self.passes.random_states is not None:
                self.random_states.append(self.passes.random_states)
            if self.passes.used is not None and self.given is not None:
                self.used_and_given.append((self.passes.used, self.given))
            self.close()
        for norm in self.batch_norms:
            norm.observed += norm.module.training
        iteration, model_on, modes = self.before_step
        self.observed.append(iteration)
        if not model_on and not self.context.model.training:
            self.model_off_at.append(iteration)
        for site, on in zip(self.sites, modes, strict=True):
            if any(p.requires_grad for p in site.owner.parameters()):
                site.observed += 1
                if not on and not site.module.training:
                    site.off_at.append(iteration)

    def close(self) -> None:
        """Remove the hooks."""
        if self.passes is not None:
            self.passes.remove()
            self.passes = None

    def after(self) -> None:
        """Run the model twice in each mode, and the user's evaluation once."""
        model = self.context.model
        if self.rows:
            batch = take_rows(self.context.fixed_batches[0], range(self.rows))
            self._measure("evaluation", lambda: self._evaluation(batch))
            self._measure("training", lambda: self._training(batch))
            self.in_evaluation = None
        if self.context.user_metric is not None and not self.reduced:
            model.train()  # a part that keeps to its own mode stays in it
            self._measure("evaluate", self._evaluate)

    def record(self) -> Modes | None:
        """What was measured."""
        with_gradients = [t.name for t in self.context.tensors if t.gradients.max_norm > 0]
        return Modes(
            self.rows,
            tuple(self.observed),
            tuple(self.model_off_at),
            tuple(self._site(s, with_gradients) for s in self.sites),
            random_states_before=tuple(s for s, _ in self.random_states),
            random_states_after=tuple(e for _, e in self.random_states),
            inputs_used=tuple(u for u, _ in self.used_and_given),
            inputs_given=tuple(g for _, g in self.used_and_given),
            batch_norms=tuple(n.statistics() for n in self.batch_norms if n.used and n.observed == len(self.observed)),
            unmeasured=dict(self.unmeasured),
            reduced=self.reduced,
            **self.fields,
        )

    def _site(self, site: Site, with_gradients: Sequence[str]) -> DropoutSite:
        part = "head" if in_part(site.name, self.context.head) else "base"
        # a teacher in evaluation mode is not trained, whatever its requires_grad
        trained = any(not site.owner_name or in_part(name, (site.owner_name,)) for name in with_gradients)
        observed, off_at = (site.observed, tuple(site.off_at)) if trained else (0, ())
        return DropoutSite(site.name, site.kind, site.rate, part, observed, off_at, trained)

    def _measure(self, part: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - one mode may fail where the other does not
            self.unmeasured[part] = named_error(error, 160)

    def _evaluation(self, batch: Any) -> None:
        """Evaluation mode: nothing should be random. Where something is: is it the base, and is that a library's?"""
        with quiet(self.context.model):
            with self.context.recalling():  # kept for others; what was kept before is another pass all the same
                self.in_evaluation = self.context.reader.logits(batch)
            difference = self._effect(self.in_evaluation, self.context.reader.logits(batch))
            if difference is None:
                raise ValueError("the outputs are not finite")
            self.fields["evaluation"] = difference
            if difference.change == 0:
                return
            self.fields["parameters_made"] = self._parameters_made(batch)
            self.fields["evaluation_same_seed"] = self._after_other_rows(batch)
            tokens = find_tokens(batch, self.context.intent.pad_token_id)
            if tokens is None:
                return
            for base in find_base_models(self.context.model):
                if (difference := self._base_twice(base, batch, tokens.ids)) is not None:
                    self.fields["base"], self.fields["base_library"] = base.name, base.library
                    self.fields["base_evaluation"] = difference
                    return

    def _parameters_made(self, batch: Any) -> int:
        """Parameters that a pass ends in and the next one does not, none of the model's: what stands in a list is in both."""
        own = {id(p) for p in self.context.model.parameters()}
        with torch.enable_grad():
            one, two = (
                [p for p in leaves_of(self.context.reader.logits(batch)) if isinstance(p, nn.Parameter)]
                for _ in range(2)
            )
        return sum(id(p) not in own and all(p is not q for q in two) for p in one)

    def _base_twice(self, base: BaseModel, batch: Any, ids: torch.Tensor) -> Effect | None:
        """The base called twice with the very inputs that the model passes to it: what comes before it may be random, too."""
        calls: list[tuple[Any, dict[str, Any]]] = []
        hook = base.module.register_forward_pre_hook(lambda _m, a, k: calls.append((a, k)), with_kwargs=True)
        try:
            self.context.reader.logits(batch)
        finally:
            hook.remove()
        if not calls:
            return None
        args, kwargs = calls[0]
        one, two = (hidden_of(base.module(*args, **kwargs), ids) for _ in range(2))
        return None if one is None or two is None else effect(one, two, None, precision_of(self.context.model))

    def _training(self, batch: Any) -> None:
        """Training mode, with all modules in it: is anything random, and does dropout repeat its pattern?"""
        modes = [(m, m.training) for m in self.context.model.modules()]
        for module, _ in modes:
            module.training = True
        # in a type that is not the loop's a model might not run
        kind = self.context.recipe.autocast if self.context.recipe_loop else None
        precision = torch.autocast(self.context.device.type, getattr(torch, kind)) if kind else contextlib.nullcontext()
        try:
            with precision, dropped_patterns(self.sites) as patterns, dropout_outputs(self.sites) as outputs:
                one = self.context.reader.logits(batch)
                with DropoutCalls() as calls:
                    two = self.context.reader.logits(batch)
                self.fields["training"] = self._effect(one, two)
            if one is not None and two is not None and self.context.reader.task is not None:
                dropout, rate = last_of_all(outputs, two), rate_at_the_end(calls, two)
                self.fields |= {"dropped_logits": dropout, "dropped_logits_rate": rate}
                if dropout is None and rate is None and self.in_evaluation is not None:
                    self.fields["zeroed_logits"] = zeroed_share(self.in_evaluation, [one, two])
            self.fields["same_values_dropped"] = any(len(p) > 1 and len(set(p)) == 1 for p in patterns.values())
        finally:
            for module, mode in modes:
                module.training = mode

    def _after_other_rows(self, batch: Any) -> Effect | None:
        """Two passes that begin in the same random state, the second one after a pass over the rows in another order: a state that is
        carried settles where the same rows come again and again."""
        logits = self.context.reader.logits
        seed_everything(0)
        one = logits(batch)
        logits(take_rows(batch, range(self.rows - 1, -1, -1)))
        seed_everything(0)
        return self._effect(one, logits(batch))

    def _effect(self, one: torch.Tensor | None, two: torch.Tensor | None) -> Effect | None:
        if one is None or two is None:
            raise ValueError("no logits could be read from the model's outputs")
        return effect(one, two, None, precision_of(self.context.model))

    def _evaluate(self) -> None:
        """The user's evaluation: in which mode does it call the model, and what does it leave changed?"""
        model, evaluate = self.context.model, self.context.user_metric
        assert evaluate is not None
        before = {n: (_sample(p), p.requires_grad) for n, p in model.named_parameters() if p.device.type != "meta"}
        flags = [(p, p.requires_grad) for p in model.parameters()]
        try:
            with torch.enable_grad(), modes_of_passes(model, self.sites) as passes:
                evaluate(model)
                on = torch.is_grad_enabled()
            self.fields |= {
                "passes": len(passes),
                "passes_training": sum(training for training, _ in passes),
                "passes_random": sum(random for _, random in passes),
                "leaves_evaluation_mode": bool(passes) and not model.training,
                "leaves_gradients_off": not on,
            }
            now = {n: p for n, p in model.named_parameters() if n in before}
            self.fields["changes_values"] = tuple(n for n, p in now.items() if not same_bits(_sample(p), before[n][0]))
            self.fields["changes_requires_grad"] = tuple(n for n, p in now.items() if p.requires_grad != before[n][1])
        finally:
            for p, flag in flags:
                if p.requires_grad != flag:
                    p.requires_grad_(flag)


def _sample(p: torch.Tensor) -> torch.Tensor:
    """Values spread over a tensor; of a small one, all."""
    return p.detach().reshape(-1)[:: max(1, p.numel() // SAMPLED)].clone()
