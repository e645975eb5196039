"""The settings of a test session: one table, read from the command line and from the configuration file."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from .recipe import AUTOCASTS, DTYPES, OPTIMIZERS, SCHEDULES, Recipe


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

#: What the session sets: recipe field -> value; only what somebody did set.
FIELDS: pytest.StashKey[dict[str, Any]] = pytest.StashKey()


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
    flag = config.getoption(NO_PROGRESS)
    try:
        return not (config.getini(NO_PROGRESS) if flag is None else flag)
    except (TypeError, ValueError, pytest.UsageError) as error:
        raise pytest.UsageError(f"{NO_PROGRESS}: expected true or false ({error})") from None


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
