r"""Stabilizers: what stands in the denominator of an LRP rule instead of a bare pre-activation.

A stabilizer is any callable ``s`` from a tensor ``z`` of denominators, shape ``(N, *features)``,
to a tensor of the same shape, dtype and device. A float ``e`` given where a stabilizer is expected
means ``Signed(e)``. The classes here are immutable, printable and equal by value.

An epsilon that does not work in the dtype of ``z`` - it underflows to 0, or its reciprocal
overflows to infinity, as 1e-9 does in float16 - is raised to the smallest normal number of that
dtype, with a :class:`~captum_lrp_stab.errors.StabilizerWarning`.

Example:
    >>> import torch
    >>> z = torch.tensor([-0.1, 5.0, -5.0, -10.0])
    >>> Signed(0.1)(z)
    tensor([ -0.2000,   5.1000,  -5.1000, -10.1000])
    >>> Clip(1.0)
    Clip(epsilon=1.0)
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_lrp_stab.errors import StabilizerError, StabilizerWarning

StabilizerLike = Callable[[Tensor], Tensor] | float


class Stabilizer(ABC):
    """A map from denominators to stabilized denominators of the same shape, dtype and device."""

    #: Whether ``stabilize`` needs the layer's sum of absolute contributions.
    needs_magnitude = False
    #: Whether no denominator ever comes nearer to 0.
    moves_away_from_0 = False

    @property
    def is_elementwise(self) -> bool:
        """Whether each result is known to depend on its own denominator only."""
        return False

    @abstractmethod
    def stabilize(self, z: Tensor, magnitude: Tensor | None = None) -> Tensor:
        """Return the stabilized denominators.

        Args:
            z: Denominators, shape ``(N, *features)``, a floating dtype.
            magnitude: The sum of the absolute contributions to each denominator, shaped like
                ``z``; used only where ``needs_magnitude`` is true.

        Returns:
            A new tensor shaped like ``z``.
        """

    def __call__(self, z: Tensor) -> Tensor:
        """Return ``stabilize(z)``.

        Args:
            z: Denominators, shape ``(N, *features)``.

        Raises:
            StabilizerError: The dtype of ``z`` is no floating one.
        """
        if not torch.is_floating_point(z):
            raise StabilizerError(
                f"{self!r} got a tensor of dtype {z.dtype}; denominators are floating point: "
                "convert with z.float() first"
            )
        return self.stabilize(z)


@dataclass(frozen=True)
class _EpsilonStabilizer(Stabilizer):
    """A stabilizer with a non-negative epsilon."""

    epsilon: float

    def __post_init__(self) -> None:
        _check_non_negative("epsilon", self.epsilon)


@dataclass(frozen=True)
class Signed(_EpsilonStabilizer):
    r"""Move each denominator away from zero: :math:`z + ε\,\mathrm{sign}(z)`, sign(0) = +1.

    Args:
        epsilon: :math:`ε \ge 0`.
        relative: Scale epsilon by the root mean square of each sample (zennit's ``norm_scale``).

    Raises:
        StabilizerError: ``epsilon`` is negative or not finite.

    Source: Bach et al. 2015, eq. 58; the sign convention at 0 is zennit's and Captum's.
    """

    relative: bool = False
    moves_away_from_0 = True

    @property
    def is_elementwise(self) -> bool:
        """Whether each result depends on its own denominator only."""
        return not self.relative

    def stabilize(self, z: Tensor, magnitude: Tensor | None = None) -> Tensor:
        """Return ``z + epsilon * sign(z)``."""
        epsilon = effective_epsilon(self, self.epsilon, z.dtype)
        if self.relative and epsilon:
            return z + signs(z) * at_least_tiny(epsilon * rms(z), z.dtype).to(z.dtype)
        return torch.where(z < 0, z - epsilon, z + epsilon)


@dataclass(frozen=True)
class RootMeanSquare(_EpsilonStabilizer):
    r"""Add a share of the root mean square: :math:`z + ε\,\mathrm{rms}(z) + \mathrm{floor}`.

    Unsigned: a negative denominator moves *towards* zero, which is where this heuristic's bright
    patches come from. With ``per_sample=False`` the mean runs over the whole batch, so that one
    image's relevance depends on the others; it is kept for comparison.

    Args:
        epsilon: :math:`ε \ge 0`, a fraction of the root mean square.
        floor: Added to every denominator.
        per_sample: Take the mean over each sample (dimension 0), or over the whole tensor.

    Raises:
        StabilizerError: ``epsilon`` or ``floor`` is negative or not finite.

    Source: the tutorial of Montavon et al. 2019, where the mean runs over the batch.
    """

    floor: float = 1e-9
    per_sample: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_non_negative("floor", self.floor)

    def stabilize(self, z: Tensor, magnitude: Tensor | None = None) -> Tensor:
        """Return ``z + epsilon * rms(z) + floor``."""
        floor = effective_epsilon(self, self.floor, z.dtype)
        return z + (self.epsilon * rms(z, self.per_sample) + floor).to(z.dtype)


@dataclass(frozen=True)
class Additive(_EpsilonStabilizer):
    r"""Add a constant: :math:`z + ε`, the "vanilla" form, with a pole at :math:`z = -ε`.

    Args:
        epsilon: :math:`ε \ge 0`.

    Raises:
        StabilizerError: ``epsilon`` is negative or not finite.
    """

    @property
    def is_elementwise(self) -> bool:
        """Whether each result depends on its own denominator only."""
        return True

    def stabilize(self, z: Tensor, magnitude: Tensor | None = None) -> Tensor:
        """Return ``z + epsilon``."""
        return z + effective_epsilon(self, self.epsilon, z.dtype)


@dataclass(frozen=True)
class Clip(_EpsilonStabilizer):
    r"""Move only denominators nearer to zero than epsilon: :math:`\mathrm{sign}(z)\max(|z|, ε)`.

    Args:
        epsilon: :math:`ε \ge 0`.

    Raises:
        StabilizerError: ``epsilon`` is negative or not finite.

    Source: zennit's ``Stabilizer(clip=True)``.
    """

    moves_away_from_0 = True

    @property
    def is_elementwise(self) -> bool:
        """Whether each result depends on its own denominator only."""
        return True

    def stabilize(self, z: Tensor, magnitude: Tensor | None = None) -> Tensor:
        """Return ``sign(z) * max(|z|, epsilon)``, sign(0) = +1."""
        epsilon = effective_epsilon(self, self.epsilon, z.dtype)
        return torch.where(z < 0, z.clamp(max=-epsilon), z.clamp(min=epsilon))


@dataclass(frozen=True)
class Identity(Stabilizer):
    """No stabilizer: the bare denominator.

    In gradient form 0/0 is 0 all the same; in the other forms and under stock Captum it is NaN.
    """

    moves_away_from_0 = True

    @property
    def is_elementwise(self) -> bool:
        """Whether each result depends on its own denominator only."""
        return True

    def stabilize(self, z: Tensor, magnitude: Tensor | None = None) -> Tensor:
        """Return ``z``."""
        return z


@dataclass(frozen=True)
class RoundingAware(Stabilizer):
    r"""Move only denominators that are rounding noise: :math:`|z_k| \ge e_k` is left alone.

    :math:`e_k = \mathrm{factor} \cdot u \sum_j |x_j w_{jk}|` bounds the rounding error of
    :math:`z_k` to first order (u is the unit roundoff of the dtype, the number of terms is part of
    the factor); a denominator smaller than it carries no information, and is replaced by
    :math:`\mathrm{sign}(z)\,e_k`.

    Works inside a rule only, because the sum needs the layer.

    Args:
        factor: Multiple of the unit roundoff, > 0.

    Raises:
        StabilizerError: ``factor`` is not a finite number > 0; (when called) on a tensor alone.

    Source: the error bound of a sum, Higham 2002, ch. 4.2.
    """

    factor: float = 8.0
    needs_magnitude = True
    moves_away_from_0 = True

    def __post_init__(self) -> None:
        _check_non_negative("factor", self.factor)
        if self.factor == 0:
            raise StabilizerError("factor is 0; give a finite number > 0")

    @property
    def is_elementwise(self) -> bool:
        """Whether each result depends on its own denominator only."""
        return True

    def stabilize(self, z: Tensor, magnitude: Tensor | None = None) -> Tensor:
        """Return ``sign(z) * max(|z|, factor * u * magnitude)``."""
        if magnitude is None:
            raise StabilizerError(
                f"{self!r} needs the layer's sum of |x w| and cannot be called on a tensor alone; "
                "give it to a rule, as in EpsilonRule(0, stabilizer=RoundingAware())"
            )
        unit_roundoff = torch.finfo(z.dtype).eps / 2
        noise = at_least_tiny(self.factor * unit_roundoff * magnitude, z.dtype)
        return signs(z) * torch.maximum(z.abs(), noise)


def ensure(stabilizer: StabilizerLike) -> Callable[[Tensor], Tensor]:
    """Return ``stabilizer`` as a callable: a float ``e`` means ``Signed(e)``.

    Raises:
        StabilizerError: It is neither a non-negative number nor a callable.
    """
    if isinstance(stabilizer, (int, float)) and not isinstance(stabilizer, bool):
        return Signed(float(stabilizer))
    if isinstance(stabilizer, type) or not callable(stabilizer):
        raise StabilizerError(
            f"stabilizer is {stabilizer!r}; give a number epsilon >= 0, an instance from "
            "captum_lrp_stab.stabilizers such as Signed(1e-6), or any callable Tensor -> Tensor"
        )
    return stabilizer


def apply(
    stabilizer: Callable[[Tensor], Tensor],
    z: Tensor,
    magnitude: Callable[[], Tensor] | None = None,
) -> Tensor:
    """Stabilize ``z`` and check what came back.

    Args:
        stabilizer: Any callable Tensor -> Tensor.
        z: Denominators, shape ``(N, *features)``.
        magnitude: Computes the sum of absolute contributions, called only where it is needed.

    Raises:
        StabilizerError: The result is not a tensor of the shape, dtype and device of ``z``.
    """
    if isinstance(stabilizer, Stabilizer):
        needed = stabilizer.needs_magnitude and magnitude is not None
        s = stabilizer.stabilize(z, magnitude() if needed and magnitude else None)
    else:
        s = stabilizer(z)
    if not isinstance(s, Tensor) or (s.shape, s.dtype, s.device) != (
        z.shape,
        z.dtype,
        z.device,
    ):
        got = f"{tuple(s.shape)} {s.dtype} {s.device}" if isinstance(s, Tensor) else repr(type(s))
        raise StabilizerError(
            f"stabilizer {stabilizer!r} returned {got} for denominators of "
            f"{tuple(z.shape)} {z.dtype} {z.device}; it must keep shape, dtype and device"
        )
    return s


def effective_epsilon(stabilizer: Stabilizer, epsilon: float, dtype: torch.dtype) -> float:
    """Return the epsilon that works in ``dtype``: 0, or at least its smallest normal number.

    Raises:
        StabilizerError: ``epsilon`` is beyond the largest number of ``dtype``.
    """
    tiny = torch.finfo(dtype).tiny
    if epsilon > torch.finfo(dtype).max:
        raise StabilizerError(
            f"{stabilizer!r}: {epsilon:g} is infinite in {dtype}; give a smaller number, or "
            "convert model and input to a wider dtype"
        )
    if epsilon == 0 or epsilon >= tiny:
        return epsilon
    warnings.warn(
        f"{stabilizer!r}: {epsilon:g} is too small for {dtype}, where 1/{epsilon:g} is infinite or "
        f"{epsilon:g} is 0; {tiny:.3g}, its smallest normal number, is used instead",
        StabilizerWarning,
        stacklevel=3,
    )
    return tiny


def signed_epsilon(stabilizer: Callable[[Tensor], Tensor], dtype: torch.dtype) -> float | None:
    """Return e where stabilizing is to add ``e * sign(z)``, None elsewhere."""
    if type(stabilizer) is Identity:
        return 0.0
    if type(stabilizer) is Signed and not (stabilizer.relative and stabilizer.epsilon):
        return effective_epsilon(stabilizer, stabilizer.epsilon, dtype)
    if type(stabilizer) is Additive and not stabilizer.epsilon:
        return 0.0
    return None


def at_least_tiny(epsilon: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``epsilon`` raised to the smallest normal number of ``dtype`` where it is below."""
    return epsilon.clamp(min=torch.finfo(dtype).tiny)


def signs(z: Tensor) -> Tensor:
    """Return the sign of each element, with sign(0) = +1."""
    return torch.where(z < 0, -torch.ones_like(z), torch.ones_like(z))


def rms(z: Tensor, per_sample: bool = True) -> Tensor:
    """Return the root mean square, shape ``(N, 1, ...)`` or a scalar, in float32 or wider.

    Half precision is widened because the square of 300 already overflows float16.
    """
    wide = z.to(torch.promote_types(z.dtype, torch.float32))
    dims = tuple(range(1, z.dim())) if per_sample and z.dim() > 1 else None
    if per_sample and z.dim() == 1:
        return wide.abs()
    return wide.square().mean(dim=dims, keepdim=dims is not None).sqrt()


def _check_non_negative(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise StabilizerError(f"{name} is {value!r}; give a non-negative number")
    if not (math.isfinite(value) and value >= 0):
        raise StabilizerError(
            f"{name} is {value!r}; give a finite number >= 0 "
            "(a negative one would move denominators towards 0)"
        )
