"""A Captum script, and what changes: the import.

On a network that stock Captum's LRP serves, SqueezeNet, both give the same. On one it does not
serve, EfficientNet-Lite0, stock Captum stops at the first layer it has no rule for; the same lines
run with this package's LRP.

    python examples/drop_in.py [FOLDER] [PICTURE]
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
from captum.attr import LRP as StockLRP
from captum.attr import visualization as viz

from captum_lrp_stab import LRP, zoo
from captum_lrp_stab.images import reading


def main(folder: Path, picture: str | None = None) -> None:
    image = reading.default_picture() if picture is None else reading.read(picture)
    figure, axes = plt.subplots(1, 3, figsize=(11, 4.2))
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.87, wspace=0.03)
    panels = iter(axes)
    for name in ("squeezenet1_1_caffe", "efficientnet_lite0"):
        classifier = zoo.load(name)
        seen = classifier.preprocessing.picture(image)  # resized and cut out
        x = classifier.preprocessing.input(seen).requires_grad_()
        target = int(classifier.model(x).argmax())
        print(f"{name}: {classifier.label(target)}, {classifier.model(x)[0, target]:.3f}")
        for implementation, kind in ("stock Captum", StockLRP), ("this package", LRP):
            lrp = kind(classifier.model)
            try:
                relevance, delta = lrp.attribute(x, target, return_convergence_delta=True)
            except TypeError as error:
                print(f"  {implementation}: TypeError: {str(error).partition(' and')[0]}")
                continue
            print(f"  {implementation}: sum {relevance.sum():.3f}, delta {delta.item():.3f}")
            viz.visualize_image_attr(
                relevance[0].detach().permute(1, 2, 0).numpy(),
                method="heat_map",
                sign="all",
                cmap="RdBu_r",  # tells the signs apart without telling red from green
                title=f"{name}\n{implementation}",
                plt_fig_axis=(figure, next(panels)),
                use_pyplot=False,
            )
    figure.savefig(folder / "drop_in.png")
    plt.close(figure)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."), *sys.argv[2:3])
