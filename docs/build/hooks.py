"""MkDocs hooks: pages that are made while the site is built.

* one page for each public name of the package, from its docstring; those of a check stand on the check's own page. The type stub,
  from which they are read, is written first;
* a page for each source file that a page links to;
* the tutorial with the output and the pictures of a run made now; `build/docs-cache` keeps them until code or versions change.

A public name without a docstring, or one that no page shows, ends the build.
"""

from __future__ import annotations

import ast
import itertools
import os
import re
import sys
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.nav import Link, Navigation, Section
from mkdocs.structure.pages import Page

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

import outputs  # noqa: E402
import type_stub  # noqa: E402

import pytest_ftcheck  # noqa: E402  (imports nothing heavy)

PACKAGE = "pytest_ftcheck"
#: Not named in mkdocs.yml: put into the navigation here, or linked to.
HIDDEN = InclusionLevel.NOT_IN_NAV
_LINK = re.compile(r"\]\(([^)\s#]+\.py)\)")
_CHECK = re.compile(r"(?:check|assert)_(\w+)")


def own_page(name: str) -> str | None:
    """Where a public name is shown: on the page of its check, else on one of its own.

    >>> own_page("check_weights_move"), own_page("finetune")
    ('reference/checks/weights_move.md', 'reference/python/finetune.md')
    """
    if name.startswith("__"):
        return None
    found = _CHECK.fullmatch(name)
    if found and (ROOT / "docs/reference/checks" / f"{found[1]}.md").exists():
        return f"reference/checks/{found[1]}.md"
    return f"reference/python/{name}.md"


def strategies() -> list[str]:
    """The names of `pytest_ftcheck.strategies` that it does not only pass on, without importing hypothesis."""
    tree = ast.parse((ROOT / PACKAGE / "strategies.py").read_text(encoding="utf-8"))
    names = next(
        ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "__all__"
    )
    return [name for name in names if name not in pytest_ftcheck.__all__]


def is_built(file: File) -> bool:
    """Whether the page's code is run for the site; with ``DOCS_COMMITTED`` set the committed copies are shown, which takes seconds."""
    return not file.generated_by and outputs.BUILT in file.content_string and not os.environ.get("DOCS_COMMITTED")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Writes the type stub, where the functions of the registered checks are found."""
    type_stub.write()
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the pages of public names and of linked sources, and the pictures that are drawn now."""
    for page in [f for f in files.documentation_pages() if is_built(f)]:
        try:
            pictures = outputs.made(ROOT / "docs" / page.src_uri)[1]
        except RuntimeError as error:
            raise PluginError(str(error)) from error
        for name, content in pictures.items():
            uri = f"images/{Path(page.src_uri).stem}/{name}"
            if committed := files.get_file_from_path(uri):
                files.remove(committed)
            files.append(File.generated(config, uri, content=content))
    for check in check_names():
        if found := files.get_file_from_path(f"reference/checks/{check}.md"):
            found.inclusion = HIDDEN
    for name in pytest_ftcheck.__all__:
        page = own_page(name)
        if page and page.startswith("reference/python/"):
            files.append(
                File.generated(
                    config, page, content=f"---\ntitle: {name}\n---\n\n::: {PACKAGE}.{name}\n", inclusion=HIDDEN
                )
            )
    shown = "\n\n".join(f"::: {PACKAGE}.strategies.{name}\n    options: {{heading_level: 2}}" for name in strategies())
    text = f"# {PACKAGE}.strategies\n\n[How to use them](../strategies.md).\n\n{shown}\n"
    files.append(File.generated(config, "reference/python/strategies.md", content=text, inclusion=HIDDEN))
    for source in sorted({s for f in files.documentation_pages() for s in sources(f)}):
        code = (ROOT / source).read_text(encoding="utf-8")
        text = f"---\nsearch: {{exclude: true}}\n---\n\n# {PurePosixPath(source).name}\n\n`{source}`\n\n````python\n{code}````\n"
        files.append(File.generated(config, f"source/{source}.md", content=text, inclusion=HIDDEN))
    return files


def sources(file: File) -> list[str]:
    """The project's Python files that a page links to, from its root."""
    if file.generated_by:
        return []
    folder = (ROOT / "docs" / file.src_uri).parent
    found = [(folder / link).resolve() for link in _LINK.findall(file.content_string)]
    return [p.relative_to(ROOT).as_posix() for p in found if p.is_file() and p.is_relative_to(ROOT)]


def on_nav(nav: Navigation, *, config: MkDocsConfig, files: Files) -> Navigation:
    """The checks and the public names, below "Reference"."""
    reference = next(item for item in nav.items if item.title == "Reference")

    def section(title: str, uris: list[str]) -> Section:
        pages = [f.page or Page(None, f, config) for uri in uris if (f := files.get_file_from_path(uri))]
        made = Section(title, list(pages))
        made.parent = reference
        for page in pages:
            page.parent = made
        nav.pages.extend(page for page in pages if page not in nav.pages)
        return made

    checks = [f"reference/checks/{name}.md" for name in check_names()]
    names = sorted(
        {p for n in pytest_ftcheck.__all__ if (p := own_page(n)) and p.startswith("reference/python/")}, key=str.lower
    )
    reference.children += [
        section("Each check", checks),
        section("Python", [*names, "reference/python/strategies.md"]),
    ]
    sourced = [f for f in files.documentation_pages() if f.src_uri.startswith("source/")]
    if sourced:
        for f in sourced:
            f.page = f.page or Page(None, f, config)
    link(nav)
    return nav


def link(nav: Navigation) -> None:
    """Previous and next, in the order of the navigation."""
    ordered: list[Page] = []

    def walk(items: list[Any]) -> None:
        for item in items:
            if isinstance(item, Page):
                ordered.append(item)
            elif not isinstance(item, Link):
                walk(item.children)

    walk(nav.items)
    nav.pages[:] = ordered
    for before, after in itertools.pairwise(ordered):
        before.next_page, after.previous_page = after, before


def check_names() -> list[str]:
    """The checks in the order in which they are run."""
    from pytest_ftcheck.checks.catalogue import CHECKS

    return list(CHECKS)


def index() -> str:
    """All checks by the stage of a run at which they look, with the first line of their docstrings."""
    from pytest_ftcheck.checks.catalogue import SPECS

    lines: list[str] = []
    stage = None
    for name, spec in SPECS.items():
        if spec.stage is not stage:
            stage = spec.stage
            lines += ["", f"## {stage.title}", "", "| check | asks whether |", "|---|---|"]
        asked = (spec.check.__doc__ or "").strip().splitlines()[0]
        lines.append(f"| [`check_{name}`, `assert_{name}`](checks/{name}.md) | {asked} |")
    return "\n".join(lines).strip()


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """The functions on their check's page; the index of checks; links to sources."""
    here = PurePosixPath(page.file.src_uri)
    markdown = markdown.replace("<!-- index of checks -->", index())
    if str(here.parent) == "reference/checks" and here.stem in check_names():
        markdown += "\n\n## Functions\n" + "".join(
            f"\n::: {PACKAGE}.{kind}_{here.stem}\n    options: {{heading_level: 3}}\n" for kind in ("check", "assert")
        )
    if page.file.generated_by:
        return markdown
    if is_built(page.file):
        markdown = outputs.written(markdown, outputs.made(ROOT / "docs" / here)[0])
    folder = (ROOT / "docs" / here).parent

    def to_source(found: re.Match[str]) -> str:
        path = (folder / found[1]).resolve()
        if not path.is_file():
            return found[0]
        return f"]({'../' * (len(here.parts) - 1)}source/{path.relative_to(ROOT).as_posix()}.md)"

    return _LINK.sub(to_source, markdown)


def on_post_page(output: str, **_: Any) -> str:
    """The theme's search is a dialog without a name, which a screen reader cannot announce."""
    return output.replace(
        'data-md-component="search" role="dialog"', 'data-md-component="search" role="dialog" aria-label="Search"'
    )


def on_post_build(*, config: MkDocsConfig) -> None:
    """Every public name is shown somewhere, with what its docstring says."""
    missing = []
    for name in [*pytest_ftcheck.__all__, *(f"strategies.{n}" for n in strategies())]:
        if name.startswith("__"):
            continue
        uri = "reference/python/strategies.md" if "." in name else own_page(name)
        page = Path(config.site_dir) / f"{uri}".replace(".md", ".html")
        text = page.read_text(encoding="utf-8") if page.exists() else ""
        shown = re.search(
            rf'id="{PACKAGE}\.{re.escape(name)}".*?<div class="doc doc-contents[^"]*">\s*(.*?)</div>', text, re.DOTALL
        )
        if not shown or not re.search(r"<p>\w", shown[1]):
            missing.append(name)
    if missing:
        raise PluginError(f"public names without a description in the site: {', '.join(missing)}")
