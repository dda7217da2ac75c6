"""Captum's NoiseTunnel, infidelity and sensitivity over this package's LRP, for several presets.

python examples/noise_tunnel.py [FOLDER] [PICTURE]
"""

import sys
from pathlib import Path

import torch
from captum.attr import NoiseTunnel
from captum.metrics import infidelity, infidelity_perturb_func_decorator, sensitivity_max
from torch import Tensor

from captum_lrp_stab import LRP, presets, visualize, zoo
from captum_lrp_stab.images import reading

NOISE = 8.0  # of pixels from 0 to 255


@infidelity_perturb_func_decorator(True)  # relevance is to be divided by the input
def perturb(x: Tensor) -> Tensor:
    """Return the input with a little noise."""
    return x + 0.1 * torch.randn_like(x)


def main(folder: Path, picture: str | None = None) -> None:
    classifier = zoo.load("squeezenet1_1_caffe")
    model, preprocessing = classifier.model, classifier.preprocessing
    image = reading.default_picture() if picture is None else reading.read(picture)
    seen = preprocessing.picture(image)  # resized and cut out
    x = preprocessing.input(seen)
    target = int(model(x).argmax())
    score = model(x)[0, target].item()
    # Noise takes pixels out of their range, and zB needs bounds that hold: seldom more than 6 sigma
    box = preprocessing.low - 6 * NOISE, preprocessing.high + 6 * NOISE
    chosen = {
        "LRP-0": presets.zero(),
        "epsilon 1": presets.epsilon(1.0),
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
        # How badly R / x predicts what noise does to the score (with the best factor): best is 0
        wrong = infidelity(
            model, perturb, x, plain[name], target=target, n_perturb_samples=16, normalize=True
        )
        # The largest relative change of the relevance under noise of up to 1 of 255
        moved = sensitivity_max(
            lrp.attribute, x, perturb_radius=1.0, n_perturb_samples=4, target=target
        )
        print(f"{name:18} infidelity {wrong.item():.1e}, sensitivity {moved.item():.3f}")
    title = f"{classifier.label(target)}: without and with NoiseTunnel"
    both = {"LRP": plain, "smoothed": smooth}
    figure = visualize.grid(both, seen, scores=score, shared=False, title=title)
    figure.savefig(folder / "noise_tunnel.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."), *sys.argv[2:3])
