"""``module:path`` on the command line: the object that it names."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from ..core.formatting import one_line, text_of


def named_object(module: str, path: str, accepted: str) -> tuple[Any, str]:
    """The object, and its full name.

    :param path: names of attributes with points between them.
    :param accepted: what may be given here, for the message about a name that is none.
    :raises ValueError: names the part that does not resolve, or the error of the user's module.

    >>> named_object("os.path", "join.__name__", "expected a function")
    ('join', 'os.path.join.__name__')
    >>> named_object("os.path", "joint", "expected a function")
    Traceback (most recent call last):
    ValueError: os.path has no 'joint'; did you mean join?
    """
    thing, reached = _module(module, accepted), module
    for part in path.split("."):
        if not _has(thing, part, f"{reached}.{part}"):
            near = difflib.get_close_matches(part, [n for n in dir(thing) if not n.startswith("_")], 3)
            raise ValueError(f"{reached} has no {part!r}{'; did you mean ' + ', '.join(near) + '?' if near else ''}")
        thing, reached = getattr(thing, part), f"{reached}.{part}"
    return thing, reached


def _has(thing: Any, part: str, name: str) -> bool:
    try:
        return hasattr(thing, part)
    except Exception as error:  # a property, or a __getattr__ of the user's
        message = one_line(text_of(error), 300) or "no message"
        raise ValueError(f"{name} cannot be read: {type(error).__name__}: {message}") from error


def _module(name: str, accepted: str) -> Any:
    """The module. ``ValueError`` names the first part that does not exist, or the error in the module."""
    if not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f"{name!r} is not a module name: {accepted}")
    found = ""
    for part in name.split("."):
        wanted = f"{found}.{part}" if found else part
        try:
            module = importlib.import_module(wanted)
        except ModuleNotFoundError as error:
            if error.name == wanted:
                where = f"the package {found!r} has no module {part!r}" if found else f"there is no module {part!r}"
                raise ValueError(where) from None
            raise ValueError(f"{wanted} cannot be imported: {error}") from error
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # the user's module may raise anything; pytest's skip is no Exception
            message = one_line(text_of(error), 300) or "no message"
            raise ValueError(f"{wanted} cannot be imported: {type(error).__name__}: {message}") from error
        found = wanted
    return module
