"""Every torchvision classifier against its oracles, in float64 with random batch-norm statistics.

python -m tests.helpers.torchvision_models [MODEL ...] > docs/coverage.md
"""

import sys
import time
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn

from captum_lrp_stab import LRP, plan, presets
from tests.helpers.networks import gradient_x_input, randomize

NAMES = torchvision.models.list_models(module=torchvision.models)
REPRESENTATIVE = (
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnet18",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "swin_v2_t",
    "vgg11_bn",
    "vit_b_32",
)
"""Networks of each family that are not large."""
OF_RELU_ONLY = tuple(
    """
    alexnet vgg squeezenet resnet resnext wide_resnet densenet googlenet inception_v3 mnasnet
    regnet_x shufflenet
    """.split()
)
"""Beginnings of the names of networks on which LRP-0 equals gradient x input."""
TARGET = 7


@dataclass(frozen=True)
class Result:
    """What was found; errors are relative."""

    name: str
    operations: int
    fallbacks: tuple[str, ...]
    finite: bool  # the relevance under epsilon-plus, AttnLRP
    from_gradient: float | None  # LRP-0 against gradient x input, where they are the same
    conservation: float  # |score - sum of relevance| without biases, LRP-0, CP-LRP
    gradient_conservation: float  # the same of gradient x input: the control
    alone: float  # LRP-0 of a sample by itself against the same in a batch of two
    seconds: float


def make(name: str) -> tuple[nn.Module, Tensor]:
    """A network with random weights, and an input of a size it takes."""
    side, options = 64, {}
    if name in ("googlenet", "inception_v3"):
        side, options = 75, {"init_weights": False}
    elif name.startswith("vit"):
        side = 56 if name == "vit_h_14" else 64
        options = {"image_size": side}
    elif name.startswith("maxvit"):
        side = 224
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None, **options)
        if name.startswith("vit"):
            nn.init.normal_(model.heads.head.weight, std=0.02)  # zeros by default
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 3, side, side, dtype=torch.float64, generator=generator)
    return randomize(model).double(), x


@torch.no_grad()
def clear_constants(model: nn.Module) -> None:
    """Set to zero what adds to a score without an input: biases, means, tokens, embeddings."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name.endswith(("bias", "running_mean", "class_token", "pos_embedding")):
            tensor.zero_()


def check(name: str) -> Result:
    """Run a network against its oracles."""
    begun = time.perf_counter()
    model, x = make(name)
    from_gradient = None
    if name.startswith(OF_RELU_ONLY):
        expected = gradient_x_input(model, x, TARGET)
        actual = LRP(model, presets.zero()).attribute(x, target=TARGET)
        from_gradient = float((actual - expected).norm() / expected.norm())
    planned = plan(model, x)
    finite = LRP(model, presets.epsilon_plus(), strict=True).attribute(x, target=TARGET).isfinite()
    clear_constants(model)
    with torch.no_grad():
        score = float(model(x)[0, TARGET])
    relevance = LRP(model, presets.zero(), attention="cp").attribute(x, target=TARGET)
    pair = torch.cat([x, x.flip(-1)])
    in_batch = LRP(model, presets.zero(), attention="cp").attribute(pair, target=TARGET)
    control = gradient_x_input(model, x, TARGET)
    return Result(
        name,
        len(planned.rows),
        tuple(row.name for row in planned.fallbacks),
        bool(finite.all()),
        from_gradient,
        abs(1 - float(relevance.sum()) / score),
        abs(1 - float(control.sum()) / score),
        float((in_batch[:1] - relevance).norm() / relevance.norm()),
        time.perf_counter() - begun,
    )


HEADER = f"""# Coverage of torchvision's classifiers

Made by `python -m tests.helpers.torchvision_models > docs/coverage.md` with torch
{torch.__version__} and torchvision {torchvision.__version__}: random weights and batch-norm
statistics, float64.

- *operations*, *fallbacks*: rows of the plan, and those with their plain gradient.
- *LRP-0 = gradient x input*: relative error, for networks of ReLU alone.
- *sum = score*: relative error of the sum of relevance with biases, running means, tokens and
  position embeddings set to zero, under LRP-0 and CP-LRP; beside it that of gradient x input.

| model | operations | fallbacks | LRP-0 = gradient x input | sum = score | of gradient x input |
|---|---|---|---|---|---|"""


def main() -> None:
    """Print the table."""
    print(HEADER)
    for name in sys.argv[1:] or NAMES:
        r = check(name)
        exact = "" if r.from_gradient is None else f"{r.from_gradient:.1e}"
        sums = f"{r.conservation:.1e} | {r.gradient_conservation:.1e}"
        print(f"| {r.name} | {r.operations} | {len(r.fallbacks)} | {exact} | {sums} |", flush=True)
        print(f"{r.name}: {r.seconds:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
