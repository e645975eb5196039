"""The settings of a test session: one table, read from the command line and from the configuration file."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from ..core import fail_level
from ..core.files import irregular, not_writable
from ..core.formatting import one_line
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
    #: The default in words, where the recipe's is None.
    default: str = ""
    #: None in a recipe is written 0 here, because neither a flag nor an ini file has a None.
    zero_is_none: bool = False

    @property
    def flag(self) -> str:
        """``--ftcheck-max-seconds``."""
        return _flag(self.ini)

    @property
    def ini(self) -> str:
        """``ftcheck_max_seconds``."""
        return f"ftcheck_{self.field}"

    @property
    def help(self) -> str:
        """Text, accepted values, and the default."""
        return f"{self.text}: {self.accepts} (default: {self.default or getattr(Recipe, self.field)})"


SETTINGS = (
    Setting("steps", int, "Batches in a fine-tune", "a whole number >= 1"),
    Setting("lr", float, "Peak learning rate", "a finite number >= 0"),
    Setting("optimizer", str, "Optimizer", f"one of {', '.join(OPTIMIZERS)}"),
    Setting("schedule", str, "Learning-rate schedule after the warm-up", f"one of {', '.join(SCHEDULES)}"),
    Setting("warmup", float, "Length of the warm-up", "a share of the steps below 1, or a whole number of steps"),
    Setting("weight_decay", float, "Weight decay", "a finite number >= 0"),
    Setting(
        "max_grad_norm",
        float,
        "L2 norm that gradients are clipped to",
        "a finite number > 0, or 0 for no clipping",
        zero_is_none=True,
    ),
    Setting("seed", int, "Random seed", "a whole number >= 0"),
    Setting("device", str, "Device to train on", "a device such as cpu, cuda or cuda:1", "the model's"),
    Setting(
        "threads",
        int,
        "CPU threads of torch",
        "a whole number >= 1",
        "1 below a million parameters, else torch's own setting",
    ),
    Setting("dtype", str, "Dtype that parameters are converted to", f"one of {', '.join(DTYPES)}", "the model's"),
    Setting("autocast", str, "Dtype of torch.autocast", f"one of {', '.join(AUTOCASTS)}", "no autocast"),
    Setting(
        "max_seconds",
        float,
        "Seconds after which a fine-tune ends early",
        "a number > 0, or 0 for no limit",
        "0",
        zero_is_none=True,
    ),
)

#: Heading in ``pytest --help``.
GROUP = "fine-tuning checks (ftcheck)"
NO_PROGRESS = "ftcheck_no_progress"
NO_GITHUB = "ftcheck_no_github"
NO_PROPERTIES = "ftcheck_no_properties"
_SEEDS = "ftcheck_seeds"
_EXECUTOR = "ftcheck_executor"
_EXTEND = "ftcheck_extend_seconds"
#: Both longer runs of a fine-tune (`checks.longer_runs`) cost at most six times the first: enough for one of five seconds.
EXTEND_DEFAULT = 30.0
_CALIBRATE = "ftcheck_calibrate"
FAIL_ON = "ftcheck_fail_on"
BASELINE = "ftcheck_baseline"
_BASELINE_UPDATE = "ftcheck_baseline_update"
_BASELINE_NEW = "ftcheck_baseline_new_only"
_BASELINE_STRICT = "ftcheck_baseline_strict"
MODEL = "ftcheck_model"
#: Format -> help of ``--ftcheck-FORMAT=FILE``.
REPORTS = {
    "json": "Write every verdict, and the metrics of every run, to this JSON file",
    "sarif": "Write the findings to this SARIF 2.1.0 file, for code scanning",
    "gitlab": "Write the findings to this GitLab code quality report",
    "html": "Write an HTML page with every fine-tune to this file: causes, charts, numbers. Needs the extra html",
}

#: Environment variables of CI machines. GitHub, GitLab and most others set the first; Jenkins and TeamCity the second, Azure Pipelines
#: the third.
CI = ("CI", "BUILD_NUMBER", "TF_BUILD")

#: Recipe field -> value, of the fields that the session sets.
FIELDS: pytest.StashKey[dict[str, Any]] = pytest.StashKey()
#: Number of seeds of the fixture ``finetune``; None: one.
SEEDS: pytest.StashKey[Seeds | None] = pytest.StashKey()
#: Seconds that the longer runs of a fine-tune may take which is too short for a check; None: not set.
EXTEND_SECONDS: pytest.StashKey[float | None] = pytest.StashKey()


def add(parser: pytest.Parser) -> None:
    """Register the options, most of them as a flag and as an ini key."""
    group = parser.getgroup("ftcheck", GROUP)
    for setting in SETTINGS:
        # no argparse type: a bad value is refused in one place and with one message, wherever it comes from
        metavar = {int: "N", float: "NUMBER", str: "NAME"}[setting.kind]
        group.addoption(setting.flag, dest=setting.ini, default=None, metavar=metavar, help=setting.help)
        # a typed key takes text from ini files and numbers from native TOML, which a "string" key refuses
        kinds = {int: "int", float: "float", str: "string"}
        parser.addini(setting.ini, setting.help, type=kinds[setting.kind], default=None)  # type: ignore[arg-type]
    _add_text(
        parser,
        group,
        _SEEDS,
        "N",
        "Run each fine-tune under several seeds: a whole number >= 3, auto for as many as the verdict needs, or 1 (default: 1). "
        "--ftcheck-max-seconds then limits all seeds together",
    )
    _add_text(
        parser,
        group,
        _EXECUTOR,
        "FUNCTION",
        "Train the seeds on the executor that this function makes, pkg.module:make: several at once, also on other machines "
        "(default: here, one after the other)",
    )
    text = (
        "Seconds in which a fine-tune of the fixture finetune is run again with twice and four times the steps where a check is "
        "inconclusive: a number >= 0, 0 for never "
        f"(default: {EXTEND_DEFAULT:g}). --ftcheck-max-seconds, where it is set, limits all of them together"
    )
    group.addoption(_flag(_EXTEND), dest=_EXTEND, default=None, metavar="NUMBER", help=text)
    parser.addini(_EXTEND, text, type="float", default=None)
    text = (
        "Calibrate: run each fine-tune, assumed to be healthy, under N seeds (a whole number >= 3) and print every statistic next to "
        "its threshold. Nothing fails"
    )
    group.addoption(_flag(_CALIBRATE), dest=_CALIBRATE, default=None, metavar="N", help=text)
    text = (
        "Run every check on this model, one test per check: pkg.module:make_model, hf:NAME (a folder, or a name on the Hugging Face "
        "hub) or tiny:ARCHITECTURE[/TASK] (such as tiny:gpt2/causal-lm). May be given more than once"
    )
    group.addoption(_flag(MODEL), dest=MODEL, action="append", default=None, metavar="MODEL", help=text)
    parser.addini(MODEL, f"{text}. Ignored where pytest is started with paths", type="linelist", default=[])
    _add_text(parser, group, BASELINE, "FILE", "Compare every fine-tune with the runs in this baseline file")
    for name, text in (
        (
            _BASELINE_UPDATE,
            "Write the baseline file instead: each fine-tune under five seeds, or under more if --ftcheck-seeds says so",
        ),
        (_BASELINE_NEW, "Add runs that are missing from the baseline file; compare the others"),
    ):
        group.addoption(_flag(name), dest=name, action="store_true", default=False, help=text)
    levels = ", ".join(fail_level.LEVELS)
    text = f"Lowest status that fails an assertion: one of {levels} (default: {fail_level.DEFAULT})"
    _add_text(parser, group, FAIL_ON, "STATUS", text)
    for name, text in REPORTS.items():
        _add_text(parser, group, f"ftcheck_{name}", "FILE", text)
    for name, text in (
        (
            _BASELINE_STRICT,
            "Fail every run that is not compared with the baseline: one that is not in the file, or whose setup has changed",
        ),
        (NO_GITHUB, "Write no annotations and no job summary on GitHub Actions"),
        (NO_PROPERTIES, "Write no verdicts and metrics as properties into JUnit files"),
        (NO_PROGRESS, "Show no progress line for fine-tunes of more than two seconds (default: shown on a terminal)"),
    ):
        group.addoption(_flag(name), dest=name, action="store_true", default=None, help=text)
        parser.addini(name, text, type="bool", default=False)


def _add_text(parser: pytest.Parser, group: Any, name: str, metavar: str, text: str) -> None:
    """Register an option that takes a text, as a flag and as an ini key."""
    group.addoption(_flag(name), dest=name, default=None, metavar=metavar, help=text)
    parser.addini(name, text, type="string", default=None)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def read(config: pytest.Config) -> dict[str, Any]:
    """The recipe fields that this session sets; the command line takes precedence over the configuration file.

    :raises pytest.UsageError: a value that a `Recipe` would refuse.
    """
    fields: dict[str, Any] = {}
    for setting in SETTINGS:
        raw = config.getoption(setting.ini)
        given = one_line(f"{setting.flag}={raw}", 300)
        try:
            if raw is None:
                given = setting.ini  # pytest may refuse the value itself, and its message has the value
                raw = config.getini(setting.ini)
                given = one_line(f"{setting.ini} = {raw}", 300)
            if raw is not None:
                fields[setting.field] = _value(setting, raw)
        except (TypeError, ValueError, pytest.UsageError) as error:  # pytest 9.2 raises UsageError
            details = f" ({error})" if given == setting.ini else ""
            raise pytest.UsageError(f"{given}: expected {setting.accepts}{details}") from None
    return fields


def progress_wanted(config: pytest.Config) -> bool:
    """Whether the options allow a progress line."""
    return not _switched(config, NO_PROGRESS)


def github_wanted(config: pytest.Config) -> bool:
    """Whether the options allow annotations and a job summary on GitHub Actions."""
    return not _switched(config, NO_GITHUB)


def seeds(config: pytest.Config) -> Seeds | None:
    """Number of seeds of each fine-tune; None: one.  :raises pytest.UsageError: too few seeds for a verdict."""
    if (calibrated := calibrate(config)) is not None:
        return calibrated
    raw, given, _ = _text(config, _SEEDS)
    if raw is None or raw == "1":
        return None
    return _seeds(raw, given, "auto, 1, or a whole number >= 3")


def executor(config: pytest.Config) -> tuple[str, str] | None:
    """The name of the function that makes an executor, and how it was given; None: seeds are trained here."""
    raw, given, _ = _text(config, _EXECUTOR)
    return None if raw is None else (raw, given)


def extend_seconds(config: pytest.Config) -> float | None:
    """Seconds for longer runs; None: not set.  :raises pytest.UsageError: no finite number >= 0."""
    raw, given, _ = _text(config, _EXTEND, "a number >= 0")
    if raw is None:
        return None
    try:
        seconds = float(raw)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise pytest.UsageError(f"{given}: expected a number >= 0, 0 for never")
    return seconds


def calibrate(config: pytest.Config) -> int | None:
    """Number of seeds to calibrate with; None: no calibration.  :raises pytest.UsageError: an invalid number."""
    raw = config.getoption(_CALIBRATE)
    if raw is None:
        return None
    found = _seeds("" if raw == "auto" else raw, f"--ftcheck-calibrate={raw}", "a whole number >= 3")
    assert isinstance(found, int)
    return found


def models(config: pytest.Config) -> tuple[list[str], bool]:
    """The models to run every check on, and whether they come from the configuration file; the command line takes precedence."""
    given: list[str] | None = config.getoption(MODEL)
    if given is not None:
        return list(given), False
    try:
        return list(config.getini(MODEL)), True
    except (TypeError, ValueError, pytest.UsageError) as error:
        raise pytest.UsageError(f"{MODEL}: expected a list of names ({error})") from None


def _seeds(raw: str, given: str, accepted: str) -> Seeds:
    from ..seeds.sprt import check_seeds  # lazily: every start of pytest pays for imports

    try:
        return check_seeds(raw if raw == "auto" else int(raw))
    except ValueError:
        raise pytest.UsageError(f"{given}: expected {accepted}") from None


def properties_wanted(config: pytest.Config) -> bool:
    """Whether the options allow JUnit properties."""
    return not _switched(config, NO_PROPERTIES)


def fail_on(config: pytest.Config) -> str:
    """The lowest status that fails an assertion.  :raises pytest.UsageError: an unknown status."""
    level, given, _ = _text(config, FAIL_ON)
    if level is None:
        return fail_level.DEFAULT
    if level not in fail_level.LEVELS:
        raise pytest.UsageError(f"{given}: expected one of {', '.join(fail_level.LEVELS)}")
    return level


def baseline_strict(config: pytest.Config) -> bool:
    """Whether a run that is not compared with the baseline fails."""
    return _switched(config, _BASELINE_STRICT)


def baseline(config: pytest.Config) -> tuple[Path, Mode] | None:
    """The baseline file, and whether to compare with it (``compare``), write it (``update``) or add to it (``new``); None: no baseline.

    :raises pytest.UsageError: an invalid file name; writing or strictness without one; writing on a CI machine, or while calibrating.
    """
    update, new = config.getoption(_BASELINE_UPDATE), config.getoption(_BASELINE_NEW)
    flag = _flag(_BASELINE_NEW if new else _BASELINE_UPDATE)
    raw, given, base = _text(config, BASELINE)
    if raw is None:
        if update or new:
            raise pytest.UsageError(f"{flag}: needs --ftcheck-baseline=FILE")
        if baseline_strict(config):
            raise pytest.UsageError(f"{_flag(_BASELINE_STRICT)}: needs --ftcheck-baseline=FILE")
        return None
    path = _file(given, raw, base, "a file name", written=update or new)
    if not (update or new):
        return None if calibrate(config) is not None else (path, "compare")
    if calibrate(config) is not None:
        raise pytest.UsageError(f"{flag}: cannot be combined with --ftcheck-calibrate")
    for name in CI:
        if os.environ.get(name, "").strip().lower() not in ("", "0", "false", "no"):
            raise pytest.UsageError(
                f"{flag}: refused on a CI machine ({name}={os.environ[name]}); write the baseline locally and commit it"
            )
    return path, "new" if new else "update"


def reports(config: pytest.Config) -> dict[str, Path]:
    """The files to write: format -> path. A flag is relative to the folder where pytest was started, an ini key to pytest's root.

    :raises pytest.UsageError: an empty name, a file that cannot be written, one file for two reports, or a
        missing package of the extra ``html``.
    """
    found: dict[str, Path] = {}
    for name in REPORTS:
        raw, given, base = _text(config, f"ftcheck_{name}")
        if raw is None:
            continue
        path = _file(given, raw, base, "the name of a file to write")
        if other := next((n for n, p in found.items() if p.resolve() == path.resolve()), None):
            raise pytest.UsageError(f"{given}: expected another file than that of --ftcheck-{other}")
        if name == "html":
            from ..reports.html import missing  # lazily: every start of pytest pays for imports

            if absent := missing():
                raise pytest.UsageError(f"{given}: needs {', '.join(absent)}: pip install 'pytest-ftcheck[html]'")
        found[name] = path
    return found


def _file(given: str, raw: str, base: Path, accepted: str, *, written: bool = True) -> Path:
    """The path of a regular file, which is there or can be made.

    :param written: it is going to be written.  :raises pytest.UsageError: it is none; the message says why.
    """
    if not raw.strip():
        raise pytest.UsageError(f"{given}: expected {accepted}")
    try:
        path = base / Path(raw).expanduser()
        reason = not_writable(path) if written else irregular(path)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home of that name
        path, reason = base, str(error)
    if reason:
        raise pytest.UsageError(f"{given}: expected {accepted} ({one_line(reason, 200)})")
    return path


def _text(config: pytest.Config, name: str, accepted: str = "a text") -> tuple[str | None, str, Path]:
    """A setting that is a text (None: not set), how it was given, and the folder that paths are relative to."""
    raw = config.getoption(name)
    if raw is not None:
        return raw, one_line(f"{_flag(name)}={raw}", 300), config.invocation_params.dir
    try:
        raw = config.getini(name)
    except (TypeError, ValueError, pytest.UsageError) as error:
        raise pytest.UsageError(f"{name}: expected {accepted} ({error})") from None
    return raw, one_line(f"{name} = {raw}", 300), config.rootpath


def _switched(config: pytest.Config, name: str) -> bool:
    flag = config.getoption(name)
    try:
        return bool(config.getini(name) if flag is None else flag)
    except (TypeError, ValueError, pytest.UsageError) as error:
        raise pytest.UsageError(f"{name}: expected true or false ({error})") from None


def _value(setting: Setting, raw: Any) -> Any:
    """``raw`` as the recipe's field. ``ValueError``, ``TypeError``: it is not a valid value."""
    value = setting.kind(raw) if isinstance(raw, str) else raw
    if value == "":  # as in --ftcheck-device=$DEVICE with nothing in it
        raise ValueError("empty")
    if setting.zero_is_none and value == 0:
        return None
    field: dict[str, Any] = {setting.field: value}
    Recipe(**field)  # the recipe validates it
    return value
