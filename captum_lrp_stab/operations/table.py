"""What is known of each torch function, whatever its arguments: one table, by canonical name.

``x.add(y)``, ``torch.add(x, y)``, ``x + y`` and ``x += y`` are one operation, ``add``. Everything
in this package that asks what an operation does asks here. An operation that is not in the table,
or that stands there without any of the ways to propagate relevance (``moves`` to ``normalises``
below), is non-linear as far as this package knows: relevance passes it under its plain gradient,
and it is listed as a fallback.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any, TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Kind:
    """What is known of a torch function.

    The first fields say how relevance is propagated; at most one of them is True.
    """

    name: str  # canonical
    moves: bool = False  # it moves, repeats or drops values
    selects: bool = False  # it picks values by their size
    mixes: bool = False  # it is linear in all its inputs together
    homogeneous: bool = False  # f(a x) = a^n f(x) for a > 0, of all its inputs together
    product: bool = False  # it is linear in each of its factors
    quotient: bool = False  # a numerator over a divisor
    linear_in_one: bool = False  # it is linear in one argument while the others are constant
    reduces: bool = False  # it reduces groups of values, in a way that an argument names
    activation: bool = False  # element-wise, g(0) = 0, whatever its arguments
    clamps: bool = False  # it cuts values off at bounds
    chooses: bool = False  # threshold: it chooses between a value and a constant
    power: bool = False
    rectifies: bool = False  # an activation that is linear on each side of 0
    gate: bool = False  # its values are factors wherever they are multiplied by something
    softmax: bool = False
    normalises: bool = False  # by statistics of its input

    fact: bool = False  # it returns a property of a tensor that is none of its values
    random: bool = False  # its result is drawn
    keeps_all: bool = False  # all values, or all relevance, and none can overflow
    conjugates: bool = False  # it conjugates complex numbers
    adds: bool = False
    scales: bool = False  # it multiplies, divides or negates each value for itself
    shifts_and_scales: bool = False  # likewise, both at once: batch norm, lerp, addcmul, addcdiv
    averages: bool = False
    resamples: bool = False  # by the same weights, whatever the values
    interpolates: bool = False  # likewise, and no layer is one
    sums: bool = False
    joins: bool = False  # it puts tensors side by side
    fills: bool = False  # it puts other values in the place of some
    parts: bool = False  # it makes complex numbers of real ones, or the other way round
    indexed: bool = False  # its other arguments are indices and masks
    shaped_by_another: bool = False  # its other argument gives the shape alone
    by_element: bool = False  # a product of elements, which can be a signal times a gate
    summand: bool = False  # a product whose first argument is added to it
    contracts: bool = False  # a product that sums over elements, as a linear layer does
    nonnegative: bool = False  # it gives no negative value
    keeps_nonnegative: bool = False  # it gives none where it reads none
    keeps_sign: bool = False  # each value is 0 or has its argument's sign
    saturates: bool = False  # at the same bound above and below 0
    is_head: bool = False  # it makes probabilities of logits
    of_layers: bool = False  # layers with parameters call it
    leaves_alone: bool = False  # relevance carried beside a tensor does not follow it through this

    @property
    def gives_inputs(self) -> bool:
        """Whether its results are values that it reads, or 0."""
        return (self.moves or self.selects) and not (self.fills or self.parts)


_TABLE = """
moves: T alias as_strided_scatter atleast_1d atleast_2d atleast_3d bfloat16 block_diag
  broadcast_tensors broadcast_to cartesian_prod cdouble cfloat chalf channel_shuffle chunk
  combinations cpu cuda diag diag_embed diagflat diagonal diagonal_scatter double dsplit expand
  fft_fftshift fft_ifftshift flip fliplr flipud float half hsplit index_copy ipu mT masked_scatter
  meshgrid mtia narrow native_channel_shuffle pin_memory pixel_shuffle pixel_unshuffle positive
  repeat resolve_conj resolve_neg roll rot90 select select_scatter slice slice_scatter split
  split_with_sizes swapdims t tensor_split tile tril triu type unbind unfold unsafe_chunk
  unsafe_split unsafe_split_with_sizes unsafe_view vsplit xpu zero
moves keeps_all: clone contiguous flatten moveaxis movedim pad permute ravel reshape squeeze
  swapaxes transpose unflatten unsqueeze view
moves leaves_alone: alpha_dropout as_strided detach feature_alpha_dropout feature_dropout
moves leaves_alone keeps_all: dropout dropout1d dropout2d dropout3d
moves leaves_alone fact: requires_grad
moves conjugates: H adjoint mH
moves shaped_by_another: expand_as reshape_as to type_as view_as
moves parts: complex imag real view_as_complex view_as_real
moves fills: constant_pad_nd fill fill_diagonal index_fill masked_fill nan_to_num
  pad_packed_sequence pad_sequence put scatter setitem where
moves fills leaves_alone: copy
moves indexed: gather getitem index index_select masked_select max_unpool1d max_unpool2d
  max_unpool3d pack_padded_sequence repeat_interleave take take_along_dim
moves joins: cat column_stack concat concatenate dstack hstack row_stack stack vstack

selects: amax amin aminmax cummax cummin fmax fmin fractional_max_pool2d fractional_max_pool3d
  kthvalue max max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices maximum
  median min minimum mode msort nanmedian sort topk
selects keeps_all: adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d max_pool1d
  max_pool2d max_pool3d

mixes: affine_grid_generator conj conj_physical deg2rad diff fft_fft fft_fft2 fft_fftn fft_hfft
  fft_hfft2 fft_hfftn fft_ifft fft_ifft2 fft_ifftn fft_ihfft fft_ihfft2 fft_ihfftn fft_irfft
  fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftn istft nanquantile quantile rad2deg stft trace
mixes of_layers: conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear
mixes of_layers shifts_and_scales: batch_norm
mixes adds: rsub sub subtract
mixes adds keeps_nonnegative: add
mixes scales: neg negative
mixes averages: nanmean
mixes averages keeps_nonnegative: mean
mixes averages resamples interpolates: interpolate upsample upsample_bilinear upsample_nearest
mixes averages keeps_nonnegative resamples: adaptive_avg_pool1d adaptive_avg_pool2d
  adaptive_avg_pool3d avg_pool1d avg_pool2d avg_pool3d
mixes sums: fold index_add index_put nansum scatter_add sum_to_size
mixes sums keeps_nonnegative: cumsum sum
linear_in_one: cholesky_solve cumulative_trapezoid deform_conv2d ldexp polar ps_roi_align
  ps_roi_pool roi_align roi_pool solve solve_triangular trapezoid trapz triangular_solve
linear_in_one averages resamples interpolates: grid_sample grid_sampler grid_sampler_2d
  grid_sampler_3d
reduces sums: index_reduce scatter_reduce segment_reduce

homogeneous: cdist copysign cov cumprod det dist frobenius_norm hypot l1_loss matrix_norm
  matrix_power mse_loss nuclear_norm pairwise_distance prod std svdvals var
homogeneous nonnegative: abs absolute norm vector_norm

product: conv_tbc cross embedding_bag ger kron outer sparse_mm
product contracts: bilinear bmm chain_matmul dot einsum grouped_mm inner matmul mm multi_dot mv
  rmatmul tensordot vdot vecdot
product summand: addr
product summand contracts: addbmm addmm addmv baddbmm
product summand by_element shifts_and_scales: addcmul
product scales by_element keeps_nonnegative: mul multiply rmul
quotient: rdiv rtruediv
quotient scales keeps_nonnegative: div divide true_divide truediv
shifts_and_scales: addcdiv lerp

activation: sin tan
activation nonnegative: sqrt square
activation keeps_sign: arcsin arcsinh arctanh asin asinh atanh erfinv expm1 log1p sinh
activation keeps_sign keeps_all: celu elu gelu hardshrink hardswish mish relu6 selu silu
  softshrink tanhshrink
activation keeps_sign saturates: arctan atan erf
activation keeps_sign saturates keeps_all: softsign tanh
clamps keeps_sign: clamp clamp_max clamp_min clip
clamps keeps_sign keeps_all: hardtanh
chooses keeps_all: threshold
power: float_power pow
rectifies keeps_all: leaky_relu rrelu
rectifies of_layers keeps_all: prelu
rectifies nonnegative keeps_all: relu
gate: erfc ndtr reciprocal rsqrt sgn sign
gate nonnegative is_head: expit hardsigmoid sigmoid
softmax nonnegative is_head: softmax softmin
is_head: log_sigmoid log_softmax logsigmoid
nonnegative: exp
normalises: instance_norm
normalises of_layers: group_norm layer_norm rms_norm

random: bernoulli exponential multinomial normal poisson rand rand_like randint randint_like randn
  randn_like rrelu_with_noise uniform
fact: device dim dtype element_size get_device is_complex is_contiguous is_cpu is_cuda
  is_floating_point is_leaf itemsize layout nbytes ndim nelement numel shape size storage_offset
  stride
"""


def _read(table: str) -> dict[str, Kind]:
    rows = table.replace("\n  ", " ").split("\n")
    kinds: dict[str, Kind] = {}
    for traits, _, names in (row.partition(": ") for row in rows if row):
        for name in names.split():
            assert name not in kinds, name
            kinds[name] = Kind(name, **dict.fromkeys(traits.split(), True))
    return kinds


KINDS = _read(_TABLE)
"""What is known of each operation, by canonical name."""


def names_of(*traits: str) -> frozenset[str]:
    """Return the canonical names of the operations that have one of the traits.

    Args:
        traits: Names of fields of :class:`Kind`.
    """
    assert all(trait in _TRAITS for trait in traits), traits
    return frozenset(n for n, kind in KINDS.items() if any(getattr(kind, t) for t in traits))


_TRAITS = {field.name for field in fields(Kind)}
_LIBRARIES = ("aten", "torchvision")
"""Libraries of operators whose names mean what they say."""
_OPERATORS = names_of("mixes", "product", "quotient", "power")
"""Operations that Python's operators call, some of them in place."""


_MOST = 4096
"""The number of functions whose answers are cached: more than torch has."""


def cached(ask: Callable[[Callable[..., Any]], T]) -> Callable[[Callable[..., Any]], T]:
    """Decorate a question about a torch function, so that it is answered once for each."""
    known: dict[Callable[..., Any], T] = {}

    @wraps(ask)
    def answer(func: Callable[..., Any]) -> T:
        found = known.get(func)
        if found is None:
            found = ask(func)
            # not of a closure, which may hold tensors
            if getattr(func, "__closure__", None) is None and len(known) < _MOST:
                known[func] = found
        return found

    return answer


@cached
def kind_of(func: Callable[..., Any]) -> Kind:
    """Return what is known of a torch function.

    Example:
        >>> import torch
        >>> kind_of(torch.Tensor.add_) is kind_of(torch.Tensor.__radd__)
        True
    """
    name = _name_of(func)
    return KINDS.get(name) or Kind(name)


def canonical_name(func: Callable[..., Any]) -> str:
    """Return the operation's name without the marks of in-place and operator spellings.

    Example:
        >>> import torch
        >>> canonical_name(torch.Tensor.add_), canonical_name(torch.Tensor.__rsub__)
        ('add', 'rsub')
    """
    return kind_of(func).name


def _name_of(func: Callable[..., Any]) -> str:
    if func.__name__ == "__get__":  # an attribute, such as x.T
        return func.__self__.__name__  # type: ignore[attr-defined, no-any-return]
    name = getattr(func, "__name__", str(func)).strip("_")
    if isinstance(func, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        library, _, name = str(func).partition(".")  # as in aten.add.Tensor
        if library not in _LIBRARIES:  # whose add may be another
            return f"{library}.{name.partition('.')[0]}"
        name = name.partition(".")[0].strip("_")
    name = name.removeprefix("special_").removeprefix("linalg_")
    if name.endswith("_copy") and name != "index_copy":  # view_copy
        return name.removesuffix("_copy")
    if name in ("dsmm", "spmm"):  # equal to torch.mm, so that the cache knows no difference
        return "mm"
    if name[0:1] == "i" and name[1:] in _OPERATORS:  # __iadd__
        return name[1:]
    if name == "radd":
        return "add"
    return name
