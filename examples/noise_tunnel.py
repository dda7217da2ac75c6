"""Captum's NoiseTunnel, infidelity and sensitivity over this package's LRP, for several presets.

python examples/noise_tunnel.py [FOLDER] [PICTURE]
"""

import sys
from pathlib import Path

import torch
from captum.attr import NoiseTunnel
from captum.metrics import infidelity, sensitivity_max
from torch import Tensor

from captum_lrp_stab import LRP, pictures, presets, visualize, zoo

NOISE = 8.0  # of pixels from 0 to 255


def perturb(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return what is taken away, and the input without it: noise on every pixel."""
    noise = NOISE * torch.randn_like(x)
    return noise, x - noise


def main(folder: Path, picture: str | None = None) -> None:
    classifier = zoo.load("squeezenet1_1_caffe")
    model, preprocessing = classifier.model, classifier.preprocessing
    image = pictures.default_picture() if picture is None else pictures.read(picture)
    seen = preprocessing.picture(image)  # resized and cut out
    x = preprocessing.input(seen)
    target = int(model(x).argmax())
    score = model(x)[0, target].item()
    box = preprocessing.low, preprocessing.high
    chosen = {
        "LRP-0": presets.zero(),
        "epsilon": presets.epsilon(0.1),
        "epsilon-gamma-box": presets.epsilon_gamma_box(*box),
        "epsilon-plus": presets.epsilon_plus(),
    }
    plain, smooth = {}, {}
    for name, rules in chosen.items():
        lrp = LRP(model, rules)
        plain[name] = lrp.attribute(x, target)
        torch.manual_seed(0)  # the same noise for all
        smooth[name] = NoiseTunnel(lrp).attribute(
            x,
            nt_type="smoothgrad",
            nt_samples=8,
            nt_samples_batch_size=4,
            stdevs=NOISE,
            target=target,
        )
        # Infidelity: how well relevance over the input predicts what a perturbation does to the
        # score; of no meaning for rules that are not proportional to the input, such as zB.
        coefficient = torch.where(x != 0, plain[name] / x, 0.0)
        wrong = infidelity(
            model, perturb, x, coefficient, target=target, n_perturb_samples=16, normalize=True
        )
        # Sensitivity: the largest relative change of the relevance under small noise
        moved = sensitivity_max(
            lrp.attribute, x, perturb_radius=1.0, n_perturb_samples=4, target=target
        )
        print(f"{name:18} infidelity {wrong.item():8.3f}  sensitivity {moved.item():.3f}")
    figure = visualize.grid(
        {"LRP": plain, "smoothed": smooth},
        seen,
        scores=score,
        shared=False,
        title=f"{classifier.label(target)}: without and with NoiseTunnel",
    )
    figure.savefig(folder / "noise_tunnel.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."), *sys.argv[2:3])
