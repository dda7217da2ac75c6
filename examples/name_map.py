"""The castle study's four-part map on VGG16, under stock Captum and under our LRP.

Random weights, so that it runs offline; give a torchvision state_dict file to use trained ones.

    python examples/name_map.py [FOLDER] [WEIGHTS]
"""

import sys
from pathlib import Path

import torch
from captum.attr import LRP as CaptumLRP
from captum.attr import visualization as viz
from PIL import Image
from torchvision.models import vgg16
from torchvision.transforms import v2

from captum_lrp_stab import (
    LRP,
    EpsilonRule,
    GammaRule,
    LayerFilter,
    ZBoxRule,
    ZeroRule,
    attach_rules,
)

PICTURE = Path(__file__).parent.parent / "data" / "textured.png"
MEAN = torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1)


def main(folder: Path, weights: Path | None = None) -> None:
    torch.manual_seed(0)
    model = vgg16(weights=None).eval()
    if weights is not None:
        model.load_state_dict(torch.load(weights, weights_only=True))
    pixels = v2.functional.to_dtype(
        v2.functional.pil_to_tensor(Image.open(PICTURE))[None], torch.float32, scale=True
    )
    x = (pixels - MEAN) / STD
    low, high = (0 - MEAN) / STD, (1 - MEAN) / STD

    layers = LayerFilter(model)
    name_map = [
        (layers(lambda n: n == 0), ZBoxRule, {"low": low, "high": high}),
        (layers(lambda n: 1 <= n <= 16), GammaRule, {"gamma": 0}),
        (layers(lambda n: 17 <= n <= 30), EpsilonRule, {"epsilon": 0.25}),
        (layers(lambda n: 31 <= n), ZeroRule, {"stabilizer": 1e-6}),
    ]
    target = int(model(x).argmax())
    ours = LRP(model, name_map).attribute(x, target=target)
    with attach_rules(model, name_map):
        stock = CaptumLRP(model).attribute(x.clone(), target=target).detach()
    print(f"relative difference of the two: {(ours - stock).norm() / stock.norm():.1e}")

    figure, _ = viz.visualize_image_attr(
        (ours / ours.abs().max())[0].permute(1, 2, 0).numpy(),
        pixels[0].permute(1, 2, 0).numpy(),
        method="blended_heat_map",
        sign="all",
        show_colorbar=True,
        use_pyplot=False,
    )
    figure.savefig(folder / "name_map.png")


if __name__ == "__main__":
    main(
        Path(sys.argv[1] if len(sys.argv) > 1 else "."),
        Path(sys.argv[2]) if len(sys.argv) > 2 else None,
    )
