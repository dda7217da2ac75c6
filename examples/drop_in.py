"""A Captum script, and what changes: the import.

Explains a small classifier of handwritten digits, drawn here, with stock Captum's LRP and with
ours, on a network that stock Captum gets wrong: a functional addition doubles its relevance.

    python examples/drop_in.py [FOLDER]
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from captum.attr import LRP as CaptumLRP
from captum.attr import visualization as viz
from torch import Tensor, nn

from captum_lrp_stab import LRP  # the change: was `from captum.attr import LRP`


class Residual(nn.Module):
    """Two convolutions with a shortcut, written as people write them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.head = nn.Linear(8, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = F.relu(self.second(x) + x)
        return self.head(x.mean(dim=(2, 3)))


def bars(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy pictures of a horizontal (class 0) or vertical (class 1) bar."""
    generator = torch.Generator().manual_seed(seed)
    pictures = 0.3 * torch.rand(n, 1, 16, 16, generator=generator)
    labels = torch.randint(2, (n,), generator=generator)
    for picture, label, at in zip(
        pictures, labels, torch.randint(2, 14, (n,), generator=generator), strict=True
    ):
        picture[0, at : at + 2] += 0.7
        if label:
            picture[0] = picture[0].T.clone()
    return pictures, labels


def main(folder: Path) -> None:
    torch.manual_seed(0)
    model = Residual()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    pictures, labels = bars(256, seed=1)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(pictures), labels).backward()
        optimizer.step()
    model.eval()

    x, y = bars(1, seed=2)
    score = model(x)[0, y].item()
    stock = CaptumLRP(model).attribute(x.clone(), target=y)
    ours = LRP(model).attribute(x, target=y)
    print(f"score {score:.3f}")
    print(f"sum of relevance, stock Captum  {stock.sum():.3f}")
    print(f"sum of relevance, this package  {ours.sum():.3f}")

    figure, _ = viz.visualize_image_attr(
        ours[0].permute(1, 2, 0).numpy(),
        x[0].permute(1, 2, 0).numpy(),
        method="heat_map",
        sign="all",
        title="relevance",
        use_pyplot=False,
    )
    figure.savefig(folder / "drop_in.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
