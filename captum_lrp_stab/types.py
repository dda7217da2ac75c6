"""Tuples of module types under the names the field uses, for filters and presets.

Each name is a plain tuple, usable in ``isinstance`` and in
:meth:`captum_lrp_stab.LayerFilter.set_target_types`. Subclasses count as their base class.

Example:
    >>> from torch import nn
    >>> isinstance(nn.Conv3d(1, 1, 1), Linear), isinstance(nn.Linear(1, 1), Convolution)
    (True, False)
"""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

ConvolutionForward = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Convolutions in 1 to 3 dimensions."""
ConvolutionTranspose = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
"""Transposed convolutions in 1 to 3 dimensions."""
Convolution = ConvolutionForward + ConvolutionTranspose
"""All convolutions."""
FullyConnected = (nn.Linear,)
"""Linear layers alone."""
Linear = FullyConnected + Convolution
"""Linear layers and all convolutions, as in the field."""

FixedAvgPool = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
"""Average pools with windows of a given size."""
AdaptiveAvgPool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
"""Average pools with an output of a given size."""
AvgPool = FixedAvgPool + AdaptiveAvgPool
"""All average pools."""
MaxPool = (
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
)
"""Pools by maximum: relevance goes to the largest input."""
BatchNorm: tuple[type[nn.Module], ...] = (_BatchNorm,)
"""Batch norm in 1 to 3 dimensions."""
Dropout: tuple[type[nn.Module], ...] = (nn.modules.dropout._DropoutNd,)
"""All kinds of dropout."""
Activation: tuple[type[nn.Module], ...] = (
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.Hardshrink,
    nn.Hardswish,
    nn.Hardtanh,
    nn.LeakyReLU,
    nn.Mish,
    nn.PReLU,
    nn.ReLU,
    nn.RReLU,
    nn.SELU,
    nn.SiLU,
    nn.Softshrink,
    nn.Softsign,
    nn.Tanh,
    nn.Tanhshrink,
)
"""Element-wise activations g with g(0) = 0: relevance passes them unchanged."""

Padding: tuple[type[nn.Module], ...] = (
    nn.modules.padding._ConstantPadNd,
    nn.modules.padding._ReflectionPadNd,
    nn.modules.padding._ReplicationPadNd,
    nn.modules.padding._CircularPadNd,
)
"""Modules that pad."""
Reshape: tuple[type[nn.Module], ...] = (
    nn.Flatten,
    nn.Unflatten,
    nn.Identity,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ChannelShuffle,
)
"""Modules that only move values: relevance moves with them."""

RuleBearing = Linear + AvgPool + BatchNorm
"""Layers that divide relevance by a pre-activation, and so take a rule and a stabilizer."""


_BY_NAME = {
    name.lower(): kind
    for name, kind in vars(nn).items()
    if isinstance(kind, type) and issubclass(kind, nn.Module)
} | {"batchnorm": _BatchNorm}


def of_function(kind: str) -> type[nn.Module] | None:
    """Return the type of layer that calls a torch function, None if there is none.

    Example:
        >>> of_function("conv_transpose2d").__name__, of_function("relu").__name__
        ('ConvTranspose2d', 'ReLU')
    """
    return _BY_NAME.get(kind.replace("_", ""))
