"""What inputs and labels of an unusual kind do to small models: the numbers that the pages of `output_depends_on_input` and
`logits_unbounded` name.

``python benchmarks/input_scale.py [--seeds 2]``, half a minute of one core.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from pytest_ftcheck import Trace, finetune, tiny_distilbert, toy_batches
from pytest_ftcheck.checks.inputs.record import Inputs

STEPS = 64
#: Factor and offset of pixels of 0 to 255.
PIXELS = {"0 to 255": (1.0, 0.0), "divided by 255 twice": (1 / 255**2, 0.0)}


class Conv(nn.Module):
    """Two convolutions and a linear layer, for one channel of 12 x 12 pixels."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1)]
        self.body, self.classifier = nn.Sequential(*layers, nn.ReLU(), nn.Flatten()), nn.Linear(16 * 36, 3)

    def forward(self, pixel_values: torch.Tensor) -> Any:
        return self.classifier(self.body(pixel_values))


def vit() -> nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return ViTForImageClassification(ViTConfig(image_size=12, patch_size=4, num_channels=1, num_labels=3, **sizes))


def images(seed: int, factor: float, offset: float) -> list[dict[str, torch.Tensor]]:
    """One of three stripes is lighter."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (64,), generator=g)
    x = torch.randint(60, 200, (64, 1, 12, 12), generator=g).float()
    for i, label in enumerate(y.tolist()):
        x[i, 0, 4 * label : 4 * label + 4] += 40
    x = x * factor + offset
    return [{"pixel_values": x[i : i + 16], "labels": y[i : i + 16]} for i in range(0, 64, 16)]


def without_first(batches: list[Any]) -> list[Any]:
    """Toy rows without their special token at the beginning."""
    return [((ids[:, 1:], length - 1, mask[:, 1:]), y) for (ids, length, mask), y in batches]


def regression(seed: int, scale: float, offset: float, optimizer: str, lr: float) -> Trace:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(256, 8, generator=g)
    y = (x @ torch.randn(8, generator=g) / 8**0.5) * scale + offset

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1), nn.Flatten(0))

    batches = [(x[i : i + 16], y[i : i + 16]) for i in range(0, 256, 16)]
    return finetune(model, batches, head="4", steps=STEPS, lr=lr, optimizer=optimizer, seed=seed, probes=["loss"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2)
    torch.set_num_threads(1)
    for seed in range(parser.parse_args().seeds):
        print(f"seed {seed}")
        for name, make in (("convolutions", Conv), ("vision transformer", vit)):
            for pixels, (factor, offset) in PIXELS.items():
                trace = finetune(
                    make, images(seed, factor, offset), steps=2, head="classifier", seed=seed, probes=["inputs"]
                )
                found = trace.measured(Inputs)
                scale = found.number_scale if found is not None else None
                assert scale is not None
                assert None not in (scale.size, scale.spread, scale.size_standardised, scale.spread_standardised)
                size = scale.size / scale.size_standardised  # type: ignore[operator]
                spread = scale.spread_standardised / scale.spread  # type: ignore[operator]
                print(
                    f"  {name}, pixels {pixels}: outputs {size:.3g} times as large, {spread:.3g} times less different"
                )
        for change in (lambda b: b, without_first):
            rows = change(toy_batches(32, 16, seed=seed, classes=4))
            trace = finetune(
                lambda: tiny_distilbert(4),
                rows[:16],
                eval_batches=rows[16:],
                steps=STEPS,
                lr=1e-3,
                seed=seed,
                probes=["metrics"],
            )
            special = "without" if change is without_first else "with"
            print(f"  first token {special} a special token: {trace.metrics[0].name} {trace.metrics[0].last:.3f}")
        for labels, arguments in (
            ("prices of about 2e5", (5e4, 2e5, "adamw", 1e-3)),
            ("prices of about 2e5, SGD", (5e4, 2e5, "sgd", 1e-2)),
            ("labels of about 100", (30.0, 100.0, "adamw", 1e-3)),
        ):
            probe = regression(seed, *arguments).probe_loss
            assert probe is not None
            left = (probe.points[-1].loss / probe.points[0].loss) ** 0.5
            print(f"  {labels}: {1 - left:.2g} of the way in {STEPS} steps")


if __name__ == "__main__":
    main()
