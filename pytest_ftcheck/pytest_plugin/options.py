"""The settings of a test session: one table, read from the command line and from the configuration file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from ..core import fail_level
from ..core.recipe import AUTOCASTS, DTYPES, OPTIMIZERS, SCHEDULES, Recipe

if TYPE_CHECKING:
    from ..seeds.sprt import Seeds
    from .baseline.recorder import Mode


class Setting(NamedTuple):
    """One field of the `Recipe` that a whole test session can set."""

    #: The recipe's field; flag, ini key and default follow from it.
    field: str
    kind: type[int] | type[float] | type[str]
    #: What it is, with its unit.
    text: str
    #: The values it takes.
    accepts: str
    #: What a recipe spells None is spelled 0 here, because neither a flag nor an ini file has a None.
    zero_is_none: bool = False

    @property
    def flag(self) -> str:
        """``--ftcheck-max-seconds``."""
        return "--" + self.ini.replace("_", "-")

    @property
    def ini(self) -> str:
        """``ftcheck_max_seconds``."""
        return f"ftcheck_{self.field}"

    @property
    def help(self) -> str:
        """Text, values, and the default that holds when nobody says anything."""
        default = getattr(Recipe, self.field)
        spelled = ("0" if self.zero_is_none else "what the model has") if default is None else default
        return f"{self.text}: {self.accepts} (default: {spelled})"


SETTINGS = (
    Setting("steps", int, "batches in a fine-tune", "a whole number >= 1"),
    Setting("lr", float, "peak learning rate", "a finite number >= 0"),
    Setting("optimizer", str, "optimizer", f"one of {', '.join(OPTIMIZERS)}"),
    Setting("schedule", str, "learning rate after the warm-up", f"one of {', '.join(SCHEDULES)}"),
    Setting("warmup", float, "length of the warm-up", "a share of the steps below 1, or a whole number of steps"),
    Setting("weight_decay", float, "weight decay", "a finite number >= 0"),
    Setting(
        "max_grad_norm",
        float,
        "L2 norm to clip gradients to",
        "a finite number > 0, or 0 for no clipping",
        True,
    ),
    Setting("seed", int, "seed of data order and dropout", "a whole number >= 0"),
    Setting("device", str, "where to train", "a device such as cpu, cuda or cuda:1"),
    Setting("threads", int, "threads torch computes with", "a whole number >= 1"),
    Setting("dtype", str, "dtype to convert parameters to", f"one of {', '.join(DTYPES)}"),
    Setting("autocast", str, "dtype for torch.autocast", f"one of {', '.join(AUTOCASTS)}"),
    Setting(
        "max_seconds",
        float,
        "seconds after which a fine-tune ends early",
        "a number > 0, or 0 for no limit",
        True,
    ),
)

#: Shown by ``pytest --help``.
GROUP = "fine-tuning checks (ftcheck)"
NO_PROGRESS = "ftcheck_no_progress"
NO_GITHUB = "ftcheck_no_github"
NO_PROPERTIES = "ftcheck_no_properties"
_SEEDS = "ftcheck_seeds"
_CALIBRATE = "ftcheck_calibrate"
FAIL_ON = "ftcheck_fail_on"
BASELINE = "ftcheck_baseline"
_BASELINE_UPDATE = "ftcheck_baseline_update"
_BASELINE_NEW = "ftcheck_baseline_new_only"
MODEL = "ftcheck_model"
#: Format -> what ``--ftcheck-FORMAT=FILE`` writes at the end of the session.
REPORTS = {
    "json": "every verdict, and the metrics of every run",
    "sarif": "what was found, as SARIF 2.1.0 for code scanning",
    "gitlab": "what was found, as a GitLab code quality report",
    "html": "one page with every fine-tune: causes, charts, numbers; needs the extra html",
}

#: Any of them: a CI machine. GitHub, GitLab and most others set the first; Jenkins and TeamCity the second, Azure Pipelines the third.
CI = ("CI", "BUILD_NUMBER", "TF_BUILD")

#: What the session sets: recipe field -> value; only what somebody did set.
FIELDS: pytest.StashKey[dict[str, Any]] = pytest.StashKey()
#: Over how many seeds the fixture ``finetune`` runs; None: one.
SEEDS: pytest.StashKey[Seeds | None] = pytest.StashKey()


def add(parser: pytest.Parser) -> None:
    """Register every setting twice: as a flag and as an ini key."""
    group = parser.getgroup("ftcheck", GROUP)
    for setting in SETTINGS:
        # no argparse type: a bad value is refused in one place and in one wording, wherever it comes from
        group.addoption(setting.flag, dest=setting.ini, default=None, metavar=setting.kind.__name__, help=setting.help)
        # a typed key takes text from ini files and numbers from native TOML, which a "string" key refuses
        kinds = {int: "int", float: "float", str: "string"}
        parser.addini(setting.ini, setting.help, type=kinds[setting.kind], default=None)  # type: ignore[arg-type]
    text = "no live line while a fine-tune takes more than two seconds (default: a line, on a terminal)"
    group.addoption("--ftcheck-no-progress", dest=NO_PROGRESS, action="store_true", default=None, help=text)
    parser.addini(NO_PROGRESS, text, type="bool", default=False)
    text = (
        "seeds of each fine-tune, from its own on: a whole number >= 3, auto for as many as it takes to decide, or 1 (default: 1); "
        "--ftcheck-max-seconds is then the limit of all together"
    )
    group.addoption("--ftcheck-seeds", dest=_SEEDS, default=None, metavar="n|auto", help=text)
    parser.addini(_SEEDS, text, type="string", default=None)
    text = (
        "judge nothing: run each fine-tune, taken to be healthy, under so many seeds (a whole number >= 3) and print what its "
        "statistics come to beside their limits (default: judge)"
    )
    group.addoption("--ftcheck-calibrate", dest=_CALIBRATE, default=None, metavar="n", help=text)
    text = (
        "run every check on this model, each a test: pkg.module:make_model, hf:NAME (a folder, or a name on the Hugging Face hub), or "
        "tiny:ARCHITECTURE (tiny:distilbert); may be given more than once (default: none)"
    )
    group.addoption("--ftcheck-model", dest=MODEL, action="append", default=None, metavar="model", help=text)
    parser.addini(MODEL, f"{text}; left out where pytest is started with paths", type="linelist", default=[])
    _add_baseline(parser, group)
    _add_reports(parser, group)


def _add_baseline(parser: pytest.Parser, group: Any) -> None:
    text = "compare every fine-tune with what this file, written earlier and committed, says of it (default: none)"
    group.addoption("--ftcheck-baseline", dest=BASELINE, default=None, metavar="file", help=text)
    parser.addini(BASELINE, text, type="string", default=None)
    for name, text in (
        (
            _BASELINE_UPDATE,
            "write the baseline instead: each fine-tune under five seeds, or as many as --ftcheck-seeds says",
        ),
        (_BASELINE_NEW, "write what the baseline has not yet, and compare the rest"),
    ):
        group.addoption(f"--{name.replace('_', '-')}", dest=name, action="store_true", default=False, help=text)


def _add_reports(parser: pytest.Parser, group: Any) -> None:
    text = f"the least that makes an assertion raise: one of {', '.join(fail_level.LEVELS)} (default: {fail_level.DEFAULT})"
    group.addoption("--ftcheck-fail-on", dest=FAIL_ON, default=None, metavar="level", help=text)
    parser.addini(FAIL_ON, text, type="string", default=None)
    for name, what in REPORTS.items():
        text = f"write to this file: {what} (default: none)"
        group.addoption(f"--ftcheck-{name}", dest=f"ftcheck_{name}", default=None, metavar="file", help=text)
        parser.addini(f"ftcheck_{name}", text, type="string", default=None)
    for name, text in (
        (NO_GITHUB, "no annotations and no job summary on GitHub Actions (default: both)"),
        (NO_PROPERTIES, "no properties in JUnit files (default: each verdict, and the metrics of each run)"),
    ):
        group.addoption(f"--{name.replace('_', '-')}", dest=name, action="store_true", default=None, help=text)
        parser.addini(name, text, type="bool", default=False)


def read(config: pytest.Config) -> dict[str, Any]:
    """The recipe fields that this session sets; the command line goes before the file.

    :raises pytest.UsageError: a value that a `Recipe` would refuse.
    """
    fields: dict[str, Any] = {}
    for setting in SETTINGS:
        raw = config.getoption(setting.ini)
        given = f"{setting.flag}={raw}"
        try:
            if raw is None:
                given = setting.ini  # pytest may refuse the value itself, and then says which it was
                raw = config.getini(setting.ini)
                given = f"{setting.ini} = {raw}"
            if raw is not None:
                fields[setting.field] = _value(setting, raw)
        except (TypeError, ValueError, pytest.UsageError) as error:  # pytest 9.2 raises the last itself
            why = f" ({error})" if given == setting.ini else ""
            raise pytest.UsageError(f"{given}: expected {setting.accepts}{why}") from None
    return fields


def progress_wanted(config: pytest.Config) -> bool:
    """Whether a live line may be shown, as far as settings go."""
    return not _switched(config, NO_PROGRESS)


def github_wanted(config: pytest.Config) -> bool:
    """Whether GitHub Actions may be told, as far as settings go."""
    return not _switched(config, NO_GITHUB)


def seeds(config: pytest.Config) -> Seeds | None:
    """Over how many seeds each fine-tune goes; None: one.  :raises pytest.UsageError: a number that decides nothing."""
    if (calibrated := calibrate(config)) is not None:
        return calibrated
    raw, given, _ = _text(config, _SEEDS)
    if raw is None or raw == "1":
        return None
    return _seeds(raw, given, "auto, 1, or a whole number >= 3")


def calibrate(config: pytest.Config) -> int | None:
    """Over how many seeds to calibrate; None: judge.  :raises pytest.UsageError: no such number."""
    raw = config.getoption(_CALIBRATE)
    if raw is None:
        return None
    found = _seeds("" if raw == "auto" else raw, f"--ftcheck-calibrate={raw}", "a whole number >= 3")
    assert isinstance(found, int)
    return found


def models(config: pytest.Config) -> tuple[list[str], bool]:
    """The models to run every check on, and whether they come from the configuration file; the command line goes before it."""
    given: list[str] | None = config.getoption(MODEL)
    if given is not None:
        return list(given), False
    try:
        return list(config.getini(MODEL)), True
    except (TypeError, ValueError, pytest.UsageError) as error:
        raise pytest.UsageError(f"{MODEL}: expected a list of names ({error})") from None


def _seeds(raw: str, given: str, accepted: str) -> Seeds:
    from ..seeds.sprt import check_seeds  # only where it is asked for: every start of pytest pays for imports

    try:
        return check_seeds(raw if raw == "auto" else int(raw))
    except ValueError:
        raise pytest.UsageError(f"{given}: expected {accepted}") from None


def properties_wanted(config: pytest.Config) -> bool:
    """Whether tests get properties, as far as settings go."""
    return not _switched(config, NO_PROPERTIES)


def fail_on(config: pytest.Config) -> str:
    """The level at which assertions raise.  :raises pytest.UsageError: there is no such level."""
    level, given, _ = _text(config, FAIL_ON)
    if level is None:
        return fail_level.DEFAULT
    if level not in fail_level.LEVELS:
        raise pytest.UsageError(f"{given}: expected one of {', '.join(fail_level.LEVELS)}")
    return level


def baseline(config: pytest.Config) -> tuple[Path, Mode] | None:
    """The baseline's file, and whether it is compared with (``compare``), written (``update``) or added to (``new``); None: there is none.

    :raises pytest.UsageError: no name of a file; writing without one, on a CI machine, or while calibrating.
    """
    update, new = config.getoption(_BASELINE_UPDATE), config.getoption(_BASELINE_NEW)
    flag = f"--{(_BASELINE_NEW if new else _BASELINE_UPDATE).replace('_', '-')}"
    raw, given, base = _text(config, BASELINE)
    if raw is None:
        if update or new:
            raise pytest.UsageError(f"{flag}: expected --ftcheck-baseline=FILE beside it")
        return None
    path = base / Path(raw).expanduser()
    if not raw.strip() or "\0" in raw or path.is_dir():
        raise pytest.UsageError(f"{given}: expected the name of a file")
    if not (update or new):
        return None if calibrate(config) is not None else (path, "compare")
    if calibrate(config) is not None:
        raise pytest.UsageError(f"{flag}: not together with --ftcheck-calibrate, which judges nothing")
    for name in CI:
        if os.environ.get(name, "").strip().lower() not in ("", "0", "false", "no"):
            raise pytest.UsageError(
                f"{flag}: refused on a CI machine ({name}={os.environ[name]}), where runs are judged; write it at home, and commit it"
            )
    return path, "new" if new else "update"


def reports(config: pytest.Config) -> dict[str, Path]:
    """The files to write: format -> path. From the command line relative to where pytest was started, from a file to the root.

    :raises pytest.UsageError: an empty name, a folder, one file for two reports, or a page without the packages that make it.
    """
    found: dict[str, Path] = {}
    for name in REPORTS:
        raw, given, base = _text(config, f"ftcheck_{name}")
        if raw is None:
            continue
        path = base / Path(raw).expanduser()
        if not raw.strip() or "\0" in raw or path.is_dir():
            raise pytest.UsageError(f"{given}: expected the name of a file to write")
        if other := next((n for n, p in found.items() if p.resolve() == path.resolve()), None):
            raise pytest.UsageError(f"{given}: expected another file than that of --ftcheck-{other}")
        if name == "html":
            from ..reports.html import missing  # only where it is asked for: every start of pytest pays for imports

            if absent := missing():
                raise pytest.UsageError(f"{given}: needs {', '.join(absent)}: pip install 'pytest-ftcheck[html]'")
        found[name] = path
    return found


def _text(config: pytest.Config, name: str) -> tuple[str | None, str, Path]:
    """A setting that is a text (None: not set), how it was given, and the folder it is relative to."""
    raw = config.getoption(name)
    if raw is not None:
        return raw, f"--{name.replace('_', '-')}={raw}", config.invocation_params.dir
    try:
        raw = config.getini(name)
    except (TypeError, ValueError, pytest.UsageError) as error:
        raise pytest.UsageError(f"{name}: expected a text ({error})") from None
    return raw, f"{name} = {raw}", config.rootpath


def _switched(config: pytest.Config, name: str) -> bool:
    flag = config.getoption(name)
    try:
        return bool(config.getini(name) if flag is None else flag)
    except (TypeError, ValueError, pytest.UsageError) as error:
        raise pytest.UsageError(f"{name}: expected true or false ({error})") from None


def _value(setting: Setting, raw: Any) -> Any:
    """``raw`` as the recipe's field; ``ValueError`` or ``TypeError`` if it cannot be one."""
    value = setting.kind(raw) if isinstance(raw, str) else raw
    if value == "":  # as in --ftcheck-device=$DEVICE with nothing in it
        raise ValueError("empty")
    if setting.zero_is_none and value == 0:
        return None
    field: dict[str, Any] = {setting.field: value}
    Recipe(**field)  # the recipe knows what it takes
    return value
