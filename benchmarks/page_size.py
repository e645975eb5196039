"""How large is the page of many fine-tunes, and how soon can it be read? ``python benchmarks/page_size.py [runs] [steps]``.

Fine-tunes of a six-layer DistilBERT (tiny, 104 tensors) under different seeds, every fifth with a head that the optimizer does not hold:
traces of as many tensors and steps as those of the real one. The page is made as the plugin makes it, then opened in headless Chromium, if
there is one. The exit status is 1 if the page has 10 MB or more, or takes more than 3 seconds to be ready.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LARGEST = 10_000_000
SLOWEST_MS = 3_000.0
SEEDS = 5

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))


def traces(count: int, steps: int) -> list[Any]:
    """So many traces: `SEEDS` fine-tunes each of a healthy and an unhealthy kind, repeated with another number of seconds."""
    import dataclasses

    import torch

    from pytest_ftcheck import finetune, tiny_distilbert, toy_batches

    batches, made = toy_batches(8, 16), []
    for seed in range(SEEDS):
        made.append(finetune(lambda: tiny_distilbert(n_layers=6), batches, steps=steps, lr=1e-3, seed=seed))
    model = tiny_distilbert(seed=0, n_layers=6)
    held = [p for name, p in model.named_parameters() if "classifier" not in name]
    unhealthy = finetune(model, batches, optimizer=torch.optim.AdamW(held, lr=1e-3), steps=steps)
    chosen = [unhealthy if i % 5 == 4 else made[i % SEEDS] for i in range(count)]
    return [dataclasses.replace(t, seconds=t.seconds + 1e-3 * i) for i, t in enumerate(chosen)]


def in_browser(path: Path) -> dict[str, float]:
    """Milliseconds until the page is ready, until the first chart is drawn, and for all charts at once (as for printing)."""
    from browsing import running

    with running() as browser:
        opened = browser.open(path)
        page = opened.page
        ready = page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
        page.locator(".canvas").first.scroll_into_view_if_needed()
        while not page.locator(".canvas.drawn").count():
            page.wait_for_timeout(10)
        first = page.evaluate("performance.now()")
        everything = page.evaluate(
            """async () => {
                const start = performance.now();
                window.dispatchEvent(new Event('beforeprint'));
                const wait = () => document.querySelectorAll('.canvas:not(.drawn)').length;
                while (wait()) await new Promise((go) => setTimeout(go, 20));
                return performance.now() - start;
            }"""
        )
        charts = page.locator(".canvas.drawn").count()
        opened.quiet()
        browser.close()
    return {"ready": ready, "first chart": first, "all charts": everything, "charts": charts}


def main() -> int:
    """Measure, print, judge."""
    given = [int(argument) for argument in sys.argv[1:3]]
    count, steps = (given + [50, 200][len(given) :])[:2]
    from browsing import missing

    from pytest_ftcheck.reports.html.compressed_trace import pack
    from pytest_ftcheck.reports.html.page import page
    from pytest_ftcheck.reports.html.views import FineTune

    runs = traces(count, steps)
    whole = sum(len(trace.to_json()) for trace in runs)
    packed = [len(pack(trace).text) for trace in runs]
    began = time.process_time()
    text = page([FineTune(trace, name=f"test_models.py::test_{i}") for i, trace in enumerate(runs)])
    seconds = time.process_time() - began
    size = len(text.encode())
    load = f", load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors" if hasattr(os, "getloadavg") else ""
    print(f"python {platform.python_version()}, {platform.system()} {platform.machine()}{load}")
    print(f"{count} fine-tunes of {steps} steps and {len(runs[0].tensors)} tensors")
    print(f"traces as JSON {whole / 1e6:.1f} MB, packed {sum(packed) / 1e6:.1f} MB")
    print(f"page {size / 1e6:.2f} MB, made in {seconds:.1f} s of processor time")
    failed = size >= LARGEST
    if why := missing():
        print(f"not opened: {why}")
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "page.html")
            path.write_text(text, encoding="utf-8")
            found = in_browser(path)
        print(f"ready after {found['ready']:.0f} ms, first chart after {found['first chart']:.0f} ms")
        print(f"all {found['charts']:.0f} charts at once in {found['all charts'] / 1000:.1f} s")
        failed = failed or found["ready"] > SLOWEST_MS
    print("FAILED" if failed else "ok")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
