"""``ftcheck list`` and ``ftcheck explain``: what the checks and the faults are, from their declarations and their pages."""

from __future__ import annotations

import difflib
import functools
import re
import textwrap

from ..checks.catalogue import CHECKS, FAULTS, SPECS, explained_by
from ..checks.head import faults as head_faults
from ..checks.spec import Fault
from ..core.formatting import plural
from ..reports import check_docs

#: Faults of ``assert_init_sane``, which judges a head without a trace and so is no check.
INIT_FAULTS = {f.name: f for f in vars(head_faults).values() if isinstance(f, Fault) and f.name not in FAULTS}
#: What each degree of confidence rests on.
CONFIDENCE = {
    "certain": "certain: read off the model's structure or the declared intent",
    "likely": "likely: the measurements point to it",
    "possible": "possible: other causes would look the same",
}


_wrap = functools.partial(textwrap.wrap, break_on_hyphens=False)


# ------------------------------------------------------------------ list
def catalogue() -> list[dict[str, str]]:
    """All checks, in the order in which a run goes: what each asks, its criterion, false-alarm rate and source, as documented.

    >>> catalogue()[0]["check"]
    'optimizer_covers_model'
    """
    rates = check_docs.false_alarms()
    return [
        {
            "check": name,
            "stage": stage_title(name),
            "summary": check_docs.summary(name),
            "criterion": check_docs.criterion(name),
            "false alarms": rates.get(name)
            or check_docs.first_paragraph(name, "Error rates").partition(". ")[0]
            or "not measured yet",
            "source": check_docs.first_paragraph(name, "Source"),
        }
        for name in CHECKS
    ]


def stage_title(check: str) -> str:
    """The stage of a check as a heading.

    >>> stage_title("loss_matches_task")
    'Loss function'
    """
    return SPECS[check].stage.name.replace("_", " ").capitalize()


def list_checks(width: int, *, verbose: bool = False) -> str:
    """All checks by stage, a line each.

    :param verbose: with the whole summary and the false-alarm rate.
    """
    lines: list[str] = []
    rows = catalogue()
    longest = max(len(row["check"]) for row in rows)
    for place, row in enumerate(rows):
        if place == 0 or rows[place - 1]["stage"] != row["stage"]:
            lines += [*[""] * bool(lines and verbose), row["stage"]]
        if verbose:
            lines.append(f"  {row['check']}")
            for text in (row["summary"], f"False alarms: {row['false alarms']}"):
                lines += _wrap(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
        else:
            name = f"  {row['check']:<{longest}}  "
            room = max(20, width - len(name))
            lines.append(name + textwrap.shorten(row["summary"], room, placeholder=" ...", break_on_hyphens=False))
    if verbose:
        more = "False alarms: failures among the healthy runs that the check judged, with a 95 % interval. "
    else:
        more = "ftcheck list -v shows whole summaries and false-alarm rates; "
    closing = (
        f"{plural(len(rows), 'check')}. {more}ftcheck explain CHECK shows the criterion, the faults and the source."
    )
    return "\n".join([*lines, "", *_wrap(closing, width)])


# ------------------------------------------------------------------ explain
def explain(name: str, width: int) -> str:
    """The page of a check or of a fault.

    :raises ValueError: there is neither a check nor a fault of this name.
    """
    plain = name.removeprefix("check_").removeprefix("assert_")
    if plain in CHECKS:
        return _check(plain, width)
    if fault := FAULTS.get(plain) or INIT_FAULTS.get(plain):
        return _fault(fault, width)
    if docstring := check_docs.docstring(f"assert_{plain}"):
        return f"assert_{plain}\n\n{docstring}"
    near = difflib.get_close_matches(plain, [*CHECKS, *FAULTS, *INIT_FAULTS], 3)
    hint = f"did you mean {', '.join(near)}?" if near else f"the checks are: {', '.join(CHECKS)}"
    raise ValueError(f"{name!r} is no check and no fault; {hint}")


def _check(name: str, width: int) -> str:
    page = check_docs.page(name)
    if page is None:
        raise ValueError(f"the page of {name} is missing: reinstall pytest-ftcheck")
    # the faults come from their declarations, in a form that fits a terminal
    page = re.sub(r"^## Faults\n.*?(?=^## |\Z)", "", page, flags=re.MULTILINE | re.DOTALL)
    before, found, after = page.partition("## Error rates\n")
    parts = [check_docs.as_text(before, width)]
    if faults := sorted(SPECS[name].faults, key=lambda fault: fault.rank):
        lines = ["Faults", "------", ""]
        for fault in faults:
            text = f"{fault.name}: {check_docs.plain(fault.title)} ({fault.confidence})"
            lines += _wrap(text, width, initial_indent="* ", subsequent_indent="  ")
        lines += ["", *_wrap(f"ftcheck explain {faults[0].name} shows its cause and its remedy.", width)]
        parts.append("\n".join(lines))
    parts.append(check_docs.as_text(found + after, width))
    return "\n\n".join(part for part in parts if part)


def _fault(fault: Fault, width: int) -> str:
    finders = [name for name, spec in SPECS.items() if any(f.name == fault.name for f in spec.faults)] or ["init_sane"]
    explained = sorted(explained_by(fault) - set(finders), key=list(CHECKS).index) if fault.name in FAULTS else []
    title = fault.title[:1].upper() + fault.title[1:]
    rows = (
        ("Cause", fields_named(fault.cause) or "Depends on the run; the verdict names it."),
        ("Do", fields_named(fault.remedy) or "Depends on the run; the verdict names it."),
        ("Confidence", CONFIDENCE[fault.confidence]),
        ("Found by", ", ".join(finders)),
        ("Explains", ", ".join(explained)),
    )
    lines = [fault.name, "=" * len(fault.name), "", *_wrap(f"{title}.", width), ""]
    for label, text in rows:
        if text:
            sentence = text[:1].upper() + text[1:] if label in ("Cause", "Do") else text
            lines += _wrap(f"{label + ':':<12}{sentence}", width, subsequent_indent=" " * 12)
    if explained:
        because = "The checks that it explains fail because of this fault, and have no cause of their own."
        lines += ["", *_wrap(because, width)]
    return "\n".join([*lines, "", f"More: ftcheck explain {finders[0]}"])


def fields_named(template: str) -> str:
    """A fault's text with the fields that a run fills in shown by name.

    >>> fields_named("{base} gets no mask; AdamW has betas {{0.9, 0.999}}")
    '<base> gets no mask; AdamW has betas {0.9, 0.999}'
    """
    named = re.sub(r"(?<!\{)\{(\w+)[^{}]*\}(?!\})", r"<\1>", template)
    return named.replace("{{", "{").replace("}}", "}")
