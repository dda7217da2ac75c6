"""Which heatmap shows what the network looks at? Pixel flipping on two photographs.

Squares are blurred, those with the most relevance first, and once more those with the least first.
The better the heatmap, the larger is the area between the two curves of the class's probability.

    python examples/evaluation.py [FOLDER]
"""

import sys
from importlib import import_module, util
from pathlib import Path

import torch
from captum.attr import InputXGradient
from matplotlib.figure import Figure
from PIL import Image
from skimage import data
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from captum_lrp_stab import LRP, presets, stabilizers, zoo

quantus = import_module("quantus") if util.find_spec("quantus") else None
SIDE = 16  # of the squares, in pixels
SHARES = torch.tensor([0, 0.03, 0.08, 0.15, 0.25, 0.4, 0.6, 0.8, 1])  # of squares blurred
COLOURS = ["#000000", "#56b4e9", "#0072b2", "#d55e00", "#009e73", "#cc79a7"]


def flip(model: nn.Module, x: Tensor, blurred: Tensor, order: Tensor, target: int) -> Tensor:
    """The target's probability after each share, for one picture ``(1, 3, H, W)``."""
    rank = order.argsort().float().reshape(1, 1, x.shape[2] // SIDE, -1)  # place in the order
    last = (SHARES * order.numel()).round()[:, None, None, None]
    pictures = torch.where(nn.functional.interpolate(rank, scale_factor=SIDE) < last, blurred, x)
    probability = model(pictures).softmax(1)[:, target].detach()
    return probability / probability[0]


def main(folder: Path) -> None:
    torch.manual_seed(0)
    net = zoo.load("efficientnet_lite0")
    model, prepare = net.model.requires_grad_(False), net.preprocessing
    photographs = map(Image.fromarray, (data.chelsea(), data.coffee()))
    x = torch.cat([prepare.input(prepare.picture(one)) for one in photographs])
    blurred, y = gaussian_blur(x, [63, 63], [16.0, 16.0]), model(x).argmax(1)
    lrp, box = LRP(model), presets.epsilon_gamma_box(prepare.low, prepare.high)
    rules = [presets.epsilon(0.1), presets.epsilon_plus(), box]
    names = ["random order", "gradient x input", "Additive(0.1)", *(rule.name for rule in rules)]
    gradient = InputXGradient(model).attribute(x.clone().requires_grad_(), y).detach()
    ((additive,),) = lrp.attribute_many(x, [y], stabilizers=[stabilizers.Additive(0.1)])
    relevances = [torch.rand_like(x), gradient, additive]
    relevances += lrp.attribute_many(x, [y], rules=rules)[0]
    figure = Figure(figsize=(12, 4), layout="constrained")
    falling, lasting, bars = figure.subplots(1, 3)
    for name, relevance, colour in zip(names, relevances, COLOURS, strict=True):
        summed, area = relevance.sum(1, keepdim=True), []
        most = nn.functional.avg_pool2d(summed, SIDE).flatten(1).argsort(dim=1, descending=True)
        for axes, orders in ((falling, most), (lasting, most.flip(1))):
            each = zip(x.split(1), blurred.split(1), orders, y.tolist(), strict=True)
            curve = torch.stack([flip(model, *one) for one in each]).mean(0)
            area.append(torch.trapezoid(curve, SHARES).item())
            axes.plot(SHARES, curve, marker="o", markersize=3, color=colour, label=name)
            axes.set(xlabel="Share of the squares that are blurred", ylim=(0, 1.3))
        between = area[1] - area[0]
        bars.barh(name, between, color=colour)
        print(f"{name:17}  most {area[0]:.3f}, least {area[1]:.3f}, between {between:+.3f}")
        if quantus:  # how far the probability falls as ten squares turn black, on average
            metric = quantus.RegionPerturbation(SIDE, regions_evaluation=10, disable_warnings=True)
            falls = metric(model, x.numpy(), y.numpy(), a_batch=summed.numpy(), softmax=True)
            print(f"{'':17}  Quantus, region perturbation {sum(map(sum, falls)) / 20:.3f}")
    falling.set(title="Most relevant first", ylabel="Probability, relative to the whole picture's")
    lasting.set(title="Least relevant first")
    lasting.legend(fontsize="small")
    bars.set(title="Area between the two", ylim=(5.5, -0.5))
    figure.savefig(folder / "evaluation.png", dpi=120)


if __name__ == "__main__":
    print("Quantus is", "installed" if quantus else "not installed, and left out")
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
