"""Relevance of an inner layer, its most relevant channels, and what each of them sees.

LayerLRP gives the relevance of a layer's channels. Handing down that of one channel alone shows
which part of the picture counts for it; over all channels these heatmaps sum up to the whole one.
Source: Achtibat et al. 2023, doi:10.1038/s42256-023-00711-8 (concept relevance propagation).

    python examples/layer_relevance.py [FOLDER] [PICTURE]
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from captum_lrp_stab import LRP, LayerLRP, presets, visualize, zoo
from captum_lrp_stab.images import reading

LAYER = 10  # of SqueezeNet's features: the sixth fire module, 384 channels
MOST = 4


class Through(nn.Module):
    """The layers up to one, whose output is weighted and summed up for each channel.

    With the weight relevance over output, the sum of a channel is the channel's relevance.
    """

    def __init__(self, below: nn.Module, weight: Tensor) -> None:
        super().__init__()
        self.below, self.weight = below, weight

    def forward(self, x: Tensor) -> Tensor:
        return (self.below(x) * self.weight).sum(dim=(2, 3))


def main(folder: Path, picture: str | None = None) -> None:
    classifier = zoo.load("squeezenet1_1_caffe")
    model, preprocessing = classifier.model, classifier.preprocessing
    image = reading.default_picture() if picture is None else reading.read(picture)
    seen = preprocessing.picture(image)  # resized and cut out
    x = preprocessing.input(seen)
    target = int(model(x).argmax())
    score = model(x)[0, target].item()
    rules = presets.epsilon_gamma_box(preprocessing.low, preprocessing.high)

    inner = LayerLRP(model, model.features[LAYER], rules).attribute(x, target)
    of_channel = inner.sum(dim=(2, 3))[0]
    top = of_channel.topk(MOST).indices.tolist()
    share = of_channel[top].sum() / of_channel.sum()
    print(f"{classifier.label(target)}: score {score:.3f}, layer {tuple(inner.shape[1:])}")
    print(f"sum over the layer {inner.sum():.3f}; channels {top} have {share:.0%} of it")

    below = model.features[: LAYER + 1]
    output = below(x).detach()
    weight = torch.where(output != 0, inner / output, 0.0)
    through = LRP(Through(below, weight), rules)  # the same rules, for the layers below
    heatmaps = {"all channels": LRP(model, rules).attribute(x, target)}
    for channel, one in zip(top, through.attribute_many(x, top), strict=True):
        heatmaps[f"channel {channel}"] = one
        print(f"channel {channel}: {of_channel[channel]:.3f}, in the picture {one.sum():.3f}")
    scores = {"all channels": score, **{f"channel {c}": of_channel[c] for c in top}}

    title = f"{classifier.label(target)}: what counts for the channels of features.{LAYER}"
    figure = visualize.heatmaps(heatmaps, seen, scores=scores, shared=False, columns=5, title=title)
    figure.savefig(folder / "layer_relevance.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."), *sys.argv[2:3])
