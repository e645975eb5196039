"""The public names, except those of checks, and the modules that they are imported from on first use."""

from __future__ import annotations

#: Module -> its public names.
HOMES = {
    "checks.diagnosis": ("Cause", "Diagnosis", "assert_healthy", "diagnose"),
    "core.example_trace": ("example_trace",),
    "core.init_scheme": ("InitScheme",),
    "core.intent": ("Intent",),
    "core.recipe": ("Recipe",),
    "core.trace": ("Trace",),
    "core.trace_writer": ("TraceWriter",),
    "core.verdict": ("CheckFailed", "Verdict"),
    "initialization.extract": ("extract_features",),
    "initialization.features": ("Features",),
    "initialization.goodness_of_fit": ("identify",),
    "initialization.head_module": ("head_of",),
    "initialization.result": ("SweepResult",),
    "initialization.sanity": ("assert_init_sane", "check_init"),
    "initialization.sweep": ("sweep",),
    "initialization.toys": ("toy_features",),
    "initialization.trainable": ("assert_trainable", "check_trainable"),
    "instruments.task_readers.interface": ("TaskReader",),
    "instruments.task_readers.registered": ("register_task",),
    "instruments.toys": ("tiny_distilbert", "toy_batches"),
    "pytest_plugin.subject": ("Subject",),
    "pytest_plugin.suite": ("parametrize_with_checks",),
    "reports.weight_motion": ("explain_weight_motion",),
    "seeds.runs": ("Runs",),
    "training.callback": ("FtcheckCallback",),
    "training.finetune": ("finetune",),
    "training.watch": ("watch",),
}
#: Public name -> module.
HOME_OF = {name: home for home, names in HOMES.items() for name in names}
