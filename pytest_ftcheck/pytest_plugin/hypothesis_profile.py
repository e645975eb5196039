"""The hypothesis profile ``ftcheck``: settings that suit tests which train.

Hypothesis calls :func:`register` itself when it is imported (entry point group ``hypothesis``), so ``--hypothesis-profile=ftcheck``
and ``settings.load_profile("ftcheck")`` work everywhere. Without hypothesis nothing is loaded.
"""

from __future__ import annotations

NAME = "ftcheck"
#: An example trains for 10 to 500 ms: 25 of them take seconds, hypothesis' default of 100 up to a minute.
EXAMPLES = 25


def register() -> None:
    """Register the profile. It extends the active profile, so that runs in CI stay reproducible (hypothesis' profile ``ci``).

    * ``deadline=None``: hypothesis' limit of 200 ms an example is too short for training.
    * ``max_examples=25``.
    * no ``explain`` phase: it repeats the smallest failure with other values, a training each, to find which of *our* lines ran.
    * ``print_blob=True``: a failure in CI prints the line that reproduces it.

    No health check is suppressed.
    """
    from hypothesis import Phase, settings

    settings.register_profile(
        NAME,
        deadline=None,
        max_examples=EXAMPLES,
        phases=[phase for phase in settings().phases if phase is not Phase.explain],
        print_blob=True,
    )
