"""How single operations hand influence down, against perturbing their input."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_stab import plan
from captum_lrp_stab.diagnosis.receptive_field import Box
from tests.helpers.receptive_fields import field, is_inside, net, perturbed, picture

pytestmark = pytest.mark.usefixtures("one_thread")


def hand_written(s, x: Tensor) -> Tensor:
    y = F.conv2d(F.pad(x, (1, 0, 0, 2), mode="replicate"), s.c.weight, stride=2)
    y[y < 0] = 0
    y = torch.where(y > 0.5, y, 0.1 * y)
    y[:, 1] -= y[:, 0].flip(-1)
    return F.max_pool2d(y.masked_fill(y > 1, 1.0), kernel_size=2, stride=1) + 1


def constants(s, x: Tensor) -> Tensor:
    out = torch.zeros(1, 2, 7, 9, dtype=x.dtype)
    out[:, :, 1:-1, 1:-1] = x[:, :, :5, :7]
    out.mul_(torch.arange(9)).add_(1)
    return torch.cat([out, s.c.weight[:1, :2].mean() * out], 1)


def set_by_mask(s, x: Tensor) -> Tensor:
    y = torch.zeros_like(x) + x
    y[x > 0.5] = x[0, 0, 0, 0]
    return y + 1


def complex_parts(s, x: Tensor) -> Tensor:
    z = torch.complex(x, x.flip(3))
    z.imag.add_(x.flip(2))
    return torch.view_as_complex(torch.stack([z.real, z.imag], dim=-1)).abs()


GRID = torch.tensor([[-0.5, 0.2], [0.4, -0.3]], dtype=torch.float64).reshape(1, 1, 2, 2)
FUNCTIONS = {
    "diff": lambda s, x: x.diff(dim=3).abs().diff(dim=3),
    "differences": lambda s, x: x.diff(dim=3, prepend=x.new_zeros(len(x), 2, 8, 1)).exp().sum(3),
    "minus itself": lambda s, x: x - x.roll(1, 3) - x.roll(-1, 3) + 2 * x.detach() * x,
    "cumulative": lambda s, x: x.cumsum(3).flip(2).logcumsumexp(2),
    "matmul": lambda s, x: (x @ x.mT[:, :1]) * 2,
    "einsum": lambda s, x: torch.einsum("nchw,cd->ndhw", x, s.c.weight[:2, :, 0, 0]),
    "means": lambda s, x: x[..., :3].mean((2, 3)) - x[:, :1].sum(dim=(1, 2))[:, :2],
    "sort": lambda s, x: x.sort(dim=3, descending=True).values[..., :3],
    "top of rows": lambda s, x: torch.topk(x, 2, 2)[0],
    "max over a dimension": lambda s, x: torch.max(x, dim=2)[0] + x.amax((2,)),
    "max of two": lambda s, x: torch.max(x[:, :, 1:], x[:, :, :-1]).maximum(x[:, :, 2:3]),
    "median": lambda s, x: x.median(3, keepdim=True).values * x.min(),
    "quantiles": lambda s, x: x.quantile(0.3, dim=3, keepdim=True) + x.nanmedian(2, True).values,
    "sorted": lambda s, x: x[0].mT.msort()[None, :4].movedim(1, -1),
    "largest": lambda s, x: torch.linalg.vector_norm(x[..., 2:], torch.inf) + x.norm(1, 3),
    "where": lambda s, x: torch.where(x > 0.5, x, 0.0).sum(3),
    "filled": lambda s, x: x.masked_fill(x < 0, 0.0).sum(2),
    "norm": lambda s, x: F.normalize(x, dim=1) + torch.linalg.vector_norm(x[..., :2]),
    "std": lambda s, x: x.std(2) / x.exp().sum(2),
    "fourier": lambda s, x: torch.fft.irfft(torch.fft.rfft(x, dim=3).abs() ** 2, n=9, dim=3),
    "complex parts": complex_parts,
    "through views": lambda s, x: (F.relu_(x[:, :, 2:4]), x[:, :1].neg_(), x.flip(3))[2],
    "in place of two": lambda s, x: (x * 1).add_(x.roll(2, 2)).mul_(x[:, :1]).sigmoid_(),
    "unfold": lambda s, x: F.unfold(x, 3).prod(1),
    "sampled": lambda s, x: F.grid_sample(x, GRID, align_corners=False),
    "lerp": lambda s, x: torch.lerp(x, x.flip(3), 0.3) / (1 + x[:, :, ::2][:, :, :1].abs()),
    "softmax": lambda s, x: F.softmax(x, dim=2)[:, :, :2].log(),
    "dynamic weights": lambda s, x: F.conv2d(x, x[:, :, 5:].roll(1, 2), x[0, :1, 0, 0]),
    "constants": constants,
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name) -> None:
    model, x = net(lambda s, x: FUNCTIONS[name](s, x * 1), c=nn.Conv2d(2, 2, 3)), picture(2, 8, 9)
    x = 0.5 + x.abs() if name in ("diff", "softmax") else x
    last = plan(model, x).rows[-1]
    for index in ((0,) * len(last.shape), (0, *(n // 2 for n in last.shape[1:]))):
        expected = perturbed(model, x, None, index, batched=False)
        assert field(model, x, last.name, index) == expected


def test_writing_where_the_data_says() -> None:
    model, x = net(set_by_mask), picture(2, 7, 8)
    assert field(model, x, "add_1", (0, 1, 4, 3)) == (Box((0, 0, 0), (2, 5, 4)),)


def test_functional_code() -> None:
    model, x = net(hand_written, c=nn.Conv2d(2, 3, 3)), picture(2, 9, 8)
    rows = [row.name for row in plan(model, x).rows]
    assert {"conv2d_0", "max_pool2d_0", "add_0"} <= set(rows)
    for index in ((0, 0, 1, 1), (0, 1, 0, 0), (0, 2, 1, 1)):
        expected = perturbed(model, x, None, index)[0]
        assert is_inside(expected, field(model, x, "add_0", index)[0])
    assert field(model, x, "conv2d_0", (0, 1, 1, 1)) == (Box((0, 2, 1), (2, 5, 4)),)
    assert field(model, x, "add_0", (0, 2, 1, 1)) == (Box((0, 2, 1), (2, 7, 6)),)
    # channel 1 has read channel 0 from the other side of the row
    assert field(model, x, "add_0", (0, 1, 1, 0)) == (Box((0, 2, 0), (2, 7, 8)),)


def test_what_may_point_anywhere_gives_the_whole() -> None:
    def forward(s, x: Tensor) -> Tensor:
        return F.grid_sample(x, s.c(x)[:, :2].movedim(1, -1), align_corners=False)

    model, x = net(forward, c=nn.Conv2d(2, 2, 3)), picture(2, 5, 5)
    for index in ((0, 0, 0, 0), (0, 0, 2, 2)):
        assert field(model, x, "grid_sample_0", index)[0].is_whole((2, 5, 5))
    model = net(lambda s, x: torch.linalg.vector_norm(x * 1, 0), c=nn.Conv2d(2, 2, 3))
    assert field(model, x, "vector_norm_0", ())[0].is_whole((2, 5, 5))  # derivative 0
    model = net(lambda s, x: torch.special.zeta(x * 1, 2.0))
    assert field(model, x, "zeta_0", (0, 0, 0, 0))[0].is_whole((2, 5, 5))  # it has none
    model = net(lambda s, x: F.prelu(x[..., :2] - 9, x[0, :, :, 3:].mean((1, 2))))
    assert field(model, x, "prelu_0", (0, 0, 0, 0))[0].is_whole((2, 5, 5))


def test_parts_that_are_written_to_later() -> None:
    def forward(s, x: Tensor) -> Tensor:
        y, z = s.c(x).chunk(2, dim=1)
        with torch.no_grad():
            y.zero_()
        return y + z

    model, x = net(forward, c=nn.Conv2d(2, 2, 3)), picture(2, 5, 5)
    assert field(model, x, "chunk_0", (0, 0, 1, 1)) == (Box((0, 1, 1), (2, 4, 4)),)


def test_what_leaves_torch() -> None:
    def forward(s, x: Tensor) -> Tensor:
        y = x * 1
        assert y.detach().numpy().shape == (1, 2, 5, 5) and y.detach().sum().item() < 1e9
        assert float(y.detach().max()) < 1e9 and y.requires_grad
        return s.c(y)

    model, x = net(forward, c=nn.Conv2d(2, 2, 3)), picture(2, 5, 5).requires_grad_()
    assert field(model, x, "c", (0, 0, 1, 1)) == (Box((0, 1, 1), (2, 4, 4)),)
