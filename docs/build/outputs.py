"""What the documentation shows as output is output: pages are run, and what their blocks print is compared or written.

A Python block followed by ``<!-- output -->`` and a text block: what it prints. A Python block behind ``<!-- file: NAME -->`` is a file of
that name, not run by itself. A console block behind ``<!-- run -->`` is a command (``$ pytest ...``) and what it prints. In a text, a line
``...`` stands for any lines. Numbers may differ between machines, words may not.

The blocks of a page are independent of each other, unless the page says ``<!-- one after another -->``; with ``, when the site is built``
the site shows what they print and draw then. They run in an empty folder; pictures that they save have to be in
``docs/images/PAGE/`` already.

``python docs/build/outputs.py PAGE... --write`` runs pages and rewrites outputs and pictures; without ``--write`` it tells what differs.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import functools
import hashlib
import importlib.metadata
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1]
IN_ORDER = re.compile(r"^<!-- one after another\b", re.MULTILINE)
BUILT = "<!-- one after another, when the site is built -->"
PICTURES = (".svg", ".png")
_BLOCK = re.compile(
    r"(?:^<!-- file: (?P<file>\S+) -->\n+)?^```python\n(?P<python>.*?)^```$"
    r"(?:\n+<!-- output -->\n+```text\n(?P<output>.*?)^```$)?"
    r"|^<!-- run -->\n+```console\n(?P<console>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_NUMBER = re.compile(r"(?<![A-Za-z_])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Block:
    """One block of a page."""

    #: ``python``, ``file`` or ``console``.
    kind: str
    #: Code, or the command.
    source: str
    #: Name of the file.
    name: str
    #: Where it stands in the page, as offsets; and the line of the code's first line, from 0.
    start: int
    end: int
    line: int
    #: The text that the page shows as printed; None: it shows none.
    output: str | None
    #: Where that text stands.
    span: tuple[int, int]


def blocks(text: str) -> list[Block]:
    """The blocks of a page, in order.

    >>> [b.output for b in blocks("```python\\nprint(1)\\n```\\n\\n<!-- output -->\\n```text\\n1\\n```\\n")]
    ['1\\n']
    """
    found = []
    for m in _BLOCK.finditer(text):
        kind = "file" if m["file"] else "python" if m["python"] is not None else "console"
        source, output, span = m["python"], m["output"], m.span("output")
        if kind == "console":
            command, _, output = m["console"].partition("\n")
            source = command.removeprefix("$ ")
            span = (m.start("console") + len(command) + 1, m.end("console"))
        line = text.count("\n", 0, m.start(kind if kind == "console" else "python"))
        found.append(Block(kind, source, m["file"] or "", m.start(), m.end(), line, output, span))
    return found


def skeleton(text: str) -> list[str]:
    """Lines without their numbers, bars and spaces.

    >>> skeleton("loss  1.61 -> 0.77 \\u2581\\u2588\\n\\n")
    ['loss # -> # ~']
    """
    text = re.sub(r"(?<=s) \(\d+:\d\d:\d\d\)", "", text)  # pytest, of what took more than a minute
    text = re.sub(r"[\u2581-\u2588]+", "~", _NUMBER.sub("#", text))
    text = re.sub(r"={3,}|-{3,}|_{3,}", "===", text)
    return [line for raw in text.splitlines() if (line := " ".join(raw.split()))]


def alike(shown: str, printed: str) -> bool:
    """Whether a page shows what was printed, up to numbers; a line ``...`` stands for any number of lines.

    >>> alike("a 1\\n...\\nz", "a 2\\nb\\nc\\nz"), alike("a", "b")
    (True, False)
    """
    expected, real = skeleton(shown), skeleton(printed)
    pattern = "".join(r"(?:.*\n)*?" if line == "..." else re.escape(line) + r"\n" for line in expected)
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in real)) is not None


def difference(shown: str, printed: str) -> str:
    """For a message."""
    return "\n".join(
        difflib.unified_diff(shown.splitlines(), printed.splitlines(), "shown", "printed", lineterm="", n=1)
    )


# ---------------------------------------------------------------------- running
@contextlib.contextmanager
def workshop() -> Iterator[Path]:
    """An empty folder to run in; what is written there, and ``docs/examples``, can be imported."""
    before, examples = Path.cwd(), str(DOCS / "examples")
    with tempfile.TemporaryDirectory() as folder:
        sys.path[:0] = [examples, folder]
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)
            sys.path.remove(examples)
            sys.path.remove(folder)
            for name, module in list(sys.modules.items()):
                if str(getattr(module, "__file__", None)).startswith(folder):
                    del sys.modules[name]  # another page may have a file of that name


def execute(block: Block, path: str, namespace: dict[str, Any]) -> str:
    """Runs a block in the current folder; what it printed."""
    if block.kind == "file":
        Path(block.name).write_text(block.source, encoding="utf-8")
        return ""
    if block.kind == "console":
        return command(block.source)
    code = compile("\n" * (block.line + 1) + block.source, path, "exec", dont_inherit=True)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, namespace)
    return printed.getvalue()


def command(line: str) -> str:
    """What ``pytest ...``, ``ftcheck ...`` or ``torchrun ...`` prints in 80 columns, without what is the machine's."""
    words = shlex.split(line)
    known = {
        "pytest": ["pytest", "-p", "no:cacheprovider", "-p", "no:randomly"],
        "ftcheck": ["pytest_ftcheck"],
        "torchrun": ["torch.distributed.run"],
    }
    if words[0] not in known:
        raise ValueError(f"$ {line}: expected one of {', '.join(known)}")
    done = subprocess.run(
        [sys.executable, "-m", *known[words[0]], *words[1:]],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "80", "PYTHONIOENCODING": "utf-8", "GITHUB_ACTIONS": "", "CI": ""},
    )
    machine = (
        r"^(platform|cachedir|rootdir|configfile|plugins|hypothesis profile|Using --randomly|asyncio:|timeout|pytest-torch:).*\n"
        r"|^collecting \.\.\. (?=collected)"
    )
    return re.sub(machine, "", done.stdout.replace(str(Path.cwd()) + os.sep, ""), flags=re.MULTILINE)


def run(page: Path) -> tuple[list[str], dict[str, bytes]]:
    """What each block of a page prints, and the pictures that the page saves."""
    text = page.read_text(encoding="utf-8")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed = []
    os.environ["SOURCE_DATE_EPOCH"] = "0"  # pictures that are the same have the same bytes
    with contextlib.suppress(ImportError):
        import matplotlib as mpl

        mpl.rcParams["svg.hashsalt"] = "pytest-ftcheck"
    with workshop() as folder:
        for block in blocks(text):
            if not IN_ORDER.search(text):
                namespace = {"__name__": "__main__"}
            printed.append(execute(block, str(page), namespace))
        pictures = {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.suffix in PICTURES}
    return printed, pictures


@functools.cache  # one build shows one run
def made(page: Path) -> tuple[list[str], dict[str, bytes]]:
    """`run` in a process of its own; kept in ``build/docs-cache`` until the page's code, ours, or a version changes.

    :raises RuntimeError: the code does not run.
    """
    digest = hashlib.sha256()
    for block in blocks(page.read_text(encoding="utf-8")):
        digest.update(f"{block.kind} {block.name}\n{block.source}".encode())
    root = DOCS.parent
    for source in [
        *sorted((root / "pytest_ftcheck").rglob("*.py")),
        *sorted((DOCS / "examples").glob("*.py")),
        Path(__file__),
    ]:
        digest.update(source.read_bytes())
    for package in ("torch", "transformers", "numpy", "matplotlib"):
        digest.update(importlib.metadata.version(package).encode())
    cache = root / "build" / "docs-cache"
    folder = cache / f"{page.stem}-{digest.hexdigest()[:16]}"
    if not (folder / "outputs.json").exists():
        command = [sys.executable, __file__, str(page), "--into", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the code of {page.name} does not run:\n{done.stderr}")
        for old in cache.glob(f"{page.stem}-*"):
            if old != folder:
                shutil.rmtree(old)
    pictures = {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix in PICTURES}
    return json.loads((folder / "outputs.json").read_text(encoding="utf-8")), pictures


def written(text: str, printed: list[str]) -> str:
    """The page with these outputs; shortened ones (``...``) stay as they are where they still fit."""
    for block, output in reversed(list(zip(blocks(text), printed, strict=True))):
        if block.output is None or (("\n...\n" in f"\n{block.output}") and alike(block.output, output)):
            continue
        body = "\n".join(line.rstrip() for line in output.strip("\n").splitlines())
        text = text[: block.span[0]] + body + "\n" + text[block.span[1] :]
    return text


def pictures_of(page: Path) -> Path:
    """The folder of a page's pictures."""
    return DOCS / "images" / page.stem


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--write", action="store_true", help="rewrite outputs and pictures")
    parser.add_argument("--into", type=Path, help="leave outputs.json and pictures in this folder instead")
    options = parser.parse_args()
    stale = 0
    for page in (p.resolve() for p in options.pages):
        built = BUILT in page.read_text(encoding="utf-8") and not options.into
        printed, pictures = made(page) if built else run(page)
        if options.into:
            options.into.mkdir(parents=True, exist_ok=True)
            for name, content in pictures.items():
                (options.into / name).write_bytes(content)
            (options.into / "outputs.json").write_text(json.dumps(printed), encoding="utf-8")  # last: it is all there
            continue
        text = page.read_text(encoding="utf-8")
        if options.write:
            page.write_text(written(text, printed), encoding="utf-8")
            shutil.rmtree(pictures_of(page), ignore_errors=True)
            for name, content in pictures.items():
                pictures_of(page).mkdir(parents=True, exist_ok=True)
                (pictures_of(page) / name).write_bytes(content)
            continue
        for block, output in zip(blocks(text), printed, strict=True):
            if block.output is not None and not alike(block.output, output):
                stale += 1
                print(f"{page.name}, line {block.line + 1}:\n{difference(block.output, output)}")
    sys.exit(1 if stale else 0)


if __name__ == "__main__":
    main()
