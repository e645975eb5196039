"""``make demo``: the toy default and the founding question, the answer in numbers, and a TensorBoard folder.

python docs/examples/demo.py [FOLDER]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from pytest_ftcheck import (
    Trace,
    check_grads_nonzero,
    check_loss_decreases,
    check_metric_improves,
    check_weights_move,
    explain_weight_motion,
    finetune,
    tiny_distilbert,
    toy_batches,
)


def show(title: str, trace: Trace, folder: Path) -> None:
    """One trace: its table, four checks, the answer to the question, and event files."""
    print(f"\n{title}\n{'=' * len(title)}\n\n{trace}\n")
    for check in (check_weights_move, check_grads_nonzero, check_loss_decreases, check_metric_improves):
        print(check(trace))
    print(f"\nShould the weights move more?\n{explain_weight_motion(trace)}")
    trace.to_tensorboard(folder)


def main(folder: Path) -> None:
    """Run both."""
    toy = finetune(tiny_distilbert, toy_batches(), eval_batches=toy_batches(8, seed=1), lr=1e-3, steps=60)
    show("The default: a tiny DistilBERT on a toy task", toy, folder / "toy")
    from founding import make_model, news  # real weights and real text: takes a moment to load

    print(
        "\nThe founding question, on pretrained weights and news articles: a minute or two on two idle cores ...",
        flush=True,
    )
    began = time.perf_counter()
    training, held_out = news()
    trace = finetune(make_model, training, eval_batches=held_out, head="classifier", lr=5e-5, steps=120)
    show(
        "The founding question: real pretrained weights, real news, peak learning rate 5e-5",
        trace,
        folder / "founding-question",
    )
    print(f"\n{time.perf_counter() - began:.0f} s. Event files: tensorboard --logdir {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs"))
