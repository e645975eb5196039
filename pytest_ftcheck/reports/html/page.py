"""The page: a session's tests and fine-tunes as one HTML file that needs nothing else.

No request leaves the machine: style, scripts and numbers are in the file, and its content security policy forbids everything else. The
policy names the scripts by their digests, so that a script in somebody's test id would not run even if it got into the page.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.trace import Trace
from . import missing
from .compressed_trace import pack_all
from .escaping import clean, script_safe
from .views import FineTune, Section, one_at_a_time, overview, rows, sections_of, sorted_verdicts

if TYPE_CHECKING:
    from ..session_result import SessionResult

FOLDER = Path(__file__).parent / "templates"
#: Fine-tunes shown with charts; of more, the first in the order of `sections_of`; the others are counted.
MOST = 200


def page(fine_tunes: Sequence[FineTune], session: SessionResult | None = None, title: str = "") -> str:
    """The whole page as HTML.

    :param fine_tunes: the runs to show.  :param session: the tests; None: there are none, for example for a saved trace.
    :param title: of the browser's window; empty: the headline.
    :raises ImportError: a package of the extra ``html`` is missing.
    """
    if absent := missing():
        raise ImportError(f"the HTML page needs {', '.join(absent)}: pip install 'pytest-ftcheck[html]'")
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    sections = sections_of(fine_tunes)
    shown = sections[:MOST]
    for section, packed in zip(shown, pack_all([s.fine_tune.text for s in shown]), strict=True):
        section.packed = Markup(packed.text)  # base64 needs no escaping, and must not be shortened
        section.every = packed.every
    library, script = _library(), _enclosed(_text("charts.js") + _text("page.js"))
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else clean(value),
    )
    environment.globals |= {"rows": rows, "sorted_verdicts": sorted_verdicts, "one_at_a_time": one_at_a_time}
    summary = overview(sections, session)
    text: str = environment.get_template("page.html").render(
        title=title or summary.headline,
        overview=summary,
        sections=shown,
        session=session,
        style=Markup(_text("page.css")),
        library=Markup(library),
        script=Markup(script),
        policy=_policy(library, script),
        data=_data,
        left_out=len(sections) - len(shown),
    )
    return text.strip() + "\n"


def _data(section: Section) -> Any:
    from markupsafe import Markup

    drawn = {chart.id: chart.plain() for chart in section.charts if chart.drawn}
    return Markup(script_safe(json.dumps(drawn, allow_nan=False, separators=(",", ":"))))


def _text(file: str) -> str:
    return (FOLDER / file).read_text(encoding="utf-8")


def _enclosed(script: str) -> str:
    """A script whose names do not become the page's."""
    return "(function () {\n" + script + "})();"


@cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed=vegaEmbed;")
    if "</script" in bundle.lower() or "<!--" in bundle:
        raise ValueError("the drawing library cannot be embedded: it contains the end of a script")
    return _enclosed(bundle)


def _policy(*scripts: str) -> str:
    """The content security policy: our own scripts by their digests, our own style, images from the file, and nothing else."""
    digests = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(s.encode('utf-8')).digest()).decode()}'" for s in scripts
    )
    return (
        f"default-src 'none'; script-src {digests}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def page_of_traces(traces: Sequence[Trace]) -> str:
    """The page of fine-tunes that no session has judged."""
    return page([FineTune(trace) for trace in traces])
