"""What kind of operation a torch function is, by its canonical name, in every spelling."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

MOVING = frozenset(
    """
    H T adjoint alias alpha_dropout as_strided as_strided_scatter atleast_1d atleast_2d atleast_3d
    bfloat16 block_diag broadcast_tensors broadcast_to cartesian_prod cat cdouble cfloat chalf
    channel_shuffle chunk clone column_stack combinations complex concat concatenate
    constant_pad_nd contiguous copy cpu cuda detach diag diag_embed diagflat diagonal
    diagonal_scatter double dropout dropout1d dropout2d dropout3d dsplit dstack expand expand_as
    feature_alpha_dropout feature_dropout fft_fftshift fft_ifftshift fill fill_diagonal flatten flip
    fliplr flipud float gather getitem half hsplit hstack imag index index_copy index_fill
    index_select ipu mH mT masked_fill masked_scatter masked_select max_unpool1d max_unpool2d
    max_unpool3d meshgrid moveaxis movedim mtia nan_to_num narrow native_channel_shuffle
    pack_padded_sequence pad pad_packed_sequence pad_sequence permute pin_memory pixel_shuffle
    pixel_unshuffle positive put ravel real repeat repeat_interleave requires_grad reshape
    reshape_as resolve_conj resolve_neg roll rot90 row_stack scatter select select_scatter setitem
    slice slice_scatter split split_with_sizes squeeze stack swapaxes swapdims t take
    take_along_dim tensor_split tile to transpose tril triu type type_as unbind unflatten unfold
    unsafe_chunk unsafe_split unsafe_split_with_sizes unsafe_view unsqueeze view view_as
    view_as_complex view_as_real vsplit vstack where xpu zero
    """.split()
)
"""Operations that move, repeat or drop values: relevance moves with them."""

SELECTING = frozenset(
    """
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d amax amin aminmax cummax cummin fmax
    fmin fractional_max_pool2d fractional_max_pool3d kthvalue max max_pool1d max_pool2d max_pool3d
    max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices maximum median min
    minimum mode msort nanmedian sort topk
    """.split()
)
"""Operations that pick values by their size: relevance moves with what was picked."""

MIXING = frozenset(
    """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d add affine_grid_generator avg_pool1d
    avg_pool2d avg_pool3d batch_norm conj conj_physical conv1d conv2d conv3d conv_transpose1d
    conv_transpose2d conv_transpose3d cumsum deg2rad diff fold index_add index_put interpolate
    linear mean nanmean nanquantile nansum neg negative quantile rad2deg rsub scatter_add sub
    subtract sum sum_to_size trace upsample upsample_bilinear upsample_nearest
    fft_fft fft_fft2 fft_fftn fft_ifft fft_ifft2 fft_ifftn fft_rfft fft_rfft2 fft_rfftn fft_irfft
    fft_irfft2 fft_irfftn fft_hfft fft_hfft2 fft_hfftn fft_ihfft fft_ihfft2 fft_ihfftn
    istft stft
    """.split()
)
"""Operations that are linear in all their inputs together: LRP-0."""

CONJUGATING = frozenset("H adjoint mH".split())
"""Transpositions of real tensors, which conjugate complex ones too: LRP-0 for these."""

NORMS = {"cdist": 2, "dist": 2, "norm": 1, "pairwise_distance": 2, "vector_norm": 1}
"""Norms, and where the order stands among their arguments: of order 0 they count."""

HOMOGENEOUS = (
    frozenset(
        """
    abs absolute copysign cov cumprod det frobenius_norm hypot l1_loss matrix_norm matrix_power
    mse_loss nuclear_norm prod std svdvals var
    """.split()
    )
    | NORMS.keys()
)
"""Operations with f(a x) = a^n f(x) for a > 0, of all their inputs together: by Euler, gradient x
input is n times the value."""

PRODUCTS = frozenset(
    """
    addbmm addcmul addmm addmv addr baddbmm bilinear bmm chain_matmul conv_tbc cross dot
    einsum embedding_bag ger grouped_mm inner kron matmul mm mul multi_dot multiply mv outer
    rmatmul rmul sparse_mm tensordot vdot vecdot
    """.split()
)
"""Operations that are linear in each of their factors."""

SUMMANDS = frozenset("addbmm addcmul addmm addmv addr baddbmm".split())
"""Products whose first argument is added to them."""

ELEMENTWISE = frozenset("addcmul mul multiply rmul".split())
"""Products that can be a signal times a gate."""

LINEAR_IN_ONE = {
    "cholesky_solve": (0, "input"),
    "cumulative_trapezoid": (0, "y"),
    "deform_conv2d": (0, "input"),
    "grid_sample": (0, "input"),
    "grid_sampler": (0, "input"),
    "grid_sampler_2d": (0, "input"),
    "grid_sampler_3d": (0, "input"),
    "ldexp": (0, "input"),
    "polar": (0, "abs"),
    "ps_roi_align": (0, "input"),
    "ps_roi_pool": (0, "input"),
    "roi_align": (0, "input"),
    "roi_pool": (0, "input"),
    "solve": (1, "B"),
    "solve_triangular": (1, "B"),
    "trapezoid": (0, "y"),
    "trapz": (0, "y"),
    "triangular_solve": (0, "b"),
}
"""Operations that are linear in one argument while the others are constant, and where it stands."""

REDUCING = {"index_reduce": 4, "scatter_reduce": 4, "segment_reduce": 1}
"""Operations on groups of values, and where the name of what they do stands."""

QUOTIENTS = frozenset("div divide truediv true_divide rdiv rtruediv".split())
"""A numerator over a divisor."""

RANDOM = frozenset(
    """
    bernoulli exponential multinomial normal poisson rand rand_like randint randint_like randn
    randn_like rrelu_with_noise uniform
    """.split()
)
"""Operations whose result is drawn."""

_OPERATORS = MIXING | PRODUCTS | QUOTIENTS | {"pow"}


FACTS = frozenset(
    """
    device dim dtype element_size get_device is_contiguous is_complex is_cpu is_cuda
    is_floating_point is_leaf itemsize layout nbytes ndim nelement numel requires_grad shape size
    storage_offset stride
    """.split()
)
"""What tells of a tensor, without its values."""


_LIBRARIES = ("aten", "torchvision")
"""Libraries of operators whose names mean what they say."""


def canonical_name(func: Callable[..., Any]) -> str:
    """Return the operation's name without the marks of in-place and operator spellings.

    Example:
        >>> import torch
        >>> canonical_name(torch.Tensor.add_), canonical_name(torch.Tensor.__rsub__)
        ('add', 'rsub')
    """
    # not of a function made in a call: the cache would keep it, and the tensors it refers to
    made_in_a_call = getattr(func, "__closure__", None) is not None
    return _canonical_name(func) if made_in_a_call else _cached_name(func)


def _canonical_name(func: Callable[..., Any]) -> str:
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
    if name[0:1] == "r" and name[1:] in ("add",):
        return name[1:]
    return name


_cached_name = lru_cache(4096)(_canonical_name)
