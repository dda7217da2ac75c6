r"""LRP in relevance form: the backward pass carries relevance, as in Captum and zennit.

Operations that mix values hand down :math:`R_{in} = x \odot J^T (R / s(z))`, by their rule or,
without one, as LRP-0 (+, mean, batch norm on its own, ...); operations that move or select values
hand down what they moved; activations pass relevance unchanged. The division is not protected: a
denominator of 0 gives NaN, which is what this form is for. An operation of no known kind is an
error, because its gradient, taken for relevance, would be wrong without a word.

Source: Bach et al. 2015.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_stab import activations, describe, operations, stabilizers
from captum_lrp_stab.captum_bridge import Rule, Step
from captum_lrp_stab.errors import ModelError
from captum_lrp_stab.gradient_form import GradientForm
from captum_lrp_stab.interception import Call
from captum_lrp_stab.sites import Operation, Site
from captum_lrp_stab.stabilizers import Identity, StabilizerLike


class RelevanceForm(GradientForm):
    """Carry relevance itself in the backward pass; see the module's docstring.

    Args:
        model: See :class:`~captum_lrp_stab.interception.Interception`.
        rules: Rule by layer name.
        default: Rule of linear layers and convolutions without one.
        merge_batch_norm: Treat a batch norm that follows a linear layer as one layer with it.
        stabilizer: Of every other operation that mixes values (+, mean, batch norm on its own,
            ...); None for none.
    """

    def __init__(
        self,
        model: nn.Module,
        rules: Mapping[str, Rule],
        default: Rule,
        merge_batch_norm: bool = True,
        stabilizer: StabilizerLike | None = None,
    ) -> None:
        super().__init__(model, rules, default, merge_batch_norm)
        self.stabilizer = Identity() if stabilizer is None else stabilizers.ensure(stabilizer)

    def seed(self, score: Tensor) -> Tensor:
        """Return the score: its relevance."""
        return score.detach()

    def relevance_of(self, value: Tensor, carried: Tensor) -> Tensor:
        """Return what is carried."""
        return carried

    def relevances(self, score: Tensor) -> tuple[Tensor, ...]:
        """Run the backward pass and return the relevance of each input.

        Raises:
            ModelError: A custom autograd function takes part, or no input does.
        """
        for function in operations.custom_functions(score):
            raise ModelError(
                f"the custom autograd function {function.__name__} has no rule in relevance form: "
                "its gradient, passed on as relevance, would be wrong; use the gradient form"
            )
        return super().relevances(score)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Handle one torch function call; inside, the mode is off."""
        kwargs = kwargs or {}
        if func not in _SHARED and "dropout" not in func.__name__:
            return self.other(func, args, kwargs)
        if func in describe.BUILDERS:
            weights = {key: value for key, value in kwargs.items() if key != "input"}
            if any(_depends(t) for t in _tensors(args[1:], weights)):
                self._refuse(func, "its weights depend on the input")
        return super().__torch_function__(func, types, args, kwargs)

    def affine(self, site: Site, call: Call) -> Tensor:
        """Return the layer's output with its rule as backward pass."""
        x = site.x.detach().clone()  # the model may write over its own
        with torch.no_grad():
            z = call()
        site.keep(z)

        def backward(R: Tensor) -> tuple[Tensor]:
            result = site.rule.relevance(site.op, x, z, R)
            if self.trace is not None:
                self.trace.backward(site.operation, R, result)
            return (result,)

        if self.trace is not None:
            self.trace.forward(site.operation, x, z)
        return Step.apply(backward, z, site.x)  # type: ignore[no-any-return]

    def activation(self, z: Tensor, slope: float, g: Callable[[Tensor], Tensor]) -> Tensor:
        """Return ``g(z)``; relevance passes unchanged."""
        with torch.no_grad():
            y = g(z)
        return Step.apply(_unchanged, y, z)  # type: ignore[no-any-return]

    def other(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run any other operation, by its kind.

        Raises:
            ModelError: Nothing is known about the operation.
        """
        if not torch.is_grad_enabled() or not any(_depends(t) for t in _tensors(args, kwargs)):
            return func(*args, **kwargs)
        if func in activations.LINEAR_SIDES:
            return self._rectify(func, *args, **kwargs)
        name = operations.canonical_name(func)
        reason = operations.fallback_reason(func, args, kwargs)
        if name in _LINEAR or (name in _FACTORS and not reason):
            return self.mixing(Operation(*self._place(func)), func, args, kwargs)
        out = func(*args, **kwargs)
        if name not in _SELECTING and any(t.requires_grad for t in _tensors((out,), {})):
            self._refuse(func, reason or "its kind is unknown")
        return out

    def mixing(self, operation: Operation, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Return the output of an operation without a rule: ``x * VJP(R / s(z))`` for each x."""
        if kwargs.get("out") is not None:
            self._refuse(func, "it writes to 'out'")
        inputs = {id(t): t for t in _tensors(args, kwargs) if _depends(t)}
        points = {key: t.detach().clone().requires_grad_() for key, t in inputs.items()}
        plain = _out_of_place(func)

        def run(points: Mapping[int, Tensor]) -> Tensor:
            with torch.enable_grad():
                arguments = _replaced(points, args), _replaced(points, kwargs)
                result: Tensor = plain(*arguments[0], **arguments[1])
            return result

        def magnitude() -> Tensor:
            nothing = {key: torch.zeros_like(p) for key, p in points.items()}
            each = [run(nothing | {key: p.detach().abs()}).abs() for key, p in points.items()]
            return torch.stack(each).sum(0)

        z = run(points)

        def backward(R: Tensor) -> tuple[Tensor | None, ...]:
            message = R / stabilizers.apply(self.stabilizer, z.detach(), magnitude)
            xs = tuple(points.values())
            gradients = torch.autograd.grad(z, xs, message, allow_unused=True)
            results = tuple(
                None if g is None else x.detach() * g for x, g in zip(xs, gradients, strict=True)
            )
            if self.trace is not None:
                handed_down = torch.cat([r.flatten() for r in results if r is not None])
                self.trace.backward(operation, R, handed_down)
            return results

        out = Step.apply(backward, z.detach(), *inputs.values())
        return out if plain is func else args[0].copy_(out)

    def _rectify(self, func: Callable[..., Any], input: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return a ReLU, or one of its kin, of ``input``; relevance passes unchanged."""
        writes = func.__name__.endswith("_") or activations.is_inplace(func, (input, *args), kwargs)
        out = self.activation(input, 0.0, lambda z: func(z.clone(), *args, **kwargs))
        return input.copy_(out) if writes else out

    def _refuse(self, func: Callable[..., Any], reason: str) -> None:
        name, kind = self._place(func)
        raise ModelError(
            f"operation '{name}' ({kind}) has no rule in relevance form: {reason}, and passing "
            "its gradient on as relevance would be wrong; use the gradient form"
        )


def _unchanged(R: Tensor) -> tuple[Tensor]:
    return (R,)


def _depends(t: Tensor) -> bool:
    """Return whether a tensor may depend on the model's input: not so a parameter, or a buffer."""
    return t.requires_grad and not t.is_leaf


_tensors = operations.tensors_in


def _replaced(points: Mapping[int, Tensor], value: Any) -> Any:
    """Return arguments with tensors replaced by id, in lists and dicts too."""
    if isinstance(value, Tensor):
        return points.get(id(value), value)
    if isinstance(value, tuple):
        return tuple(_replaced(points, item) for item in value)
    if isinstance(value, list):
        return [_replaced(points, item) for item in value]
    if isinstance(value, dict):
        return {key: _replaced(points, item) for key, item in value.items()}
    return value


def _out_of_place(func: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that computes what an in-place ``func`` writes, or ``func`` itself."""
    given, name = func.__name__, operations.canonical_name(func)
    in_place = given.endswith("_") and not given.endswith("__")
    if not in_place and given != f"__i{name}__":
        return func
    plain: Callable[..., Any] = getattr(Tensor, name, None) or getattr(Tensor, f"__{name}__")
    return plain


_LINEAR = (operations.MIXING - {"unfold"}) | {"fold", "abs", "absolute", "norm", "vector_norm"}
_FACTORS = operations.PRODUCTS | operations.QUOTIENTS
_SELECTING = (operations.MOVING | operations.PIECEWISE | {"unfold"}) - _LINEAR - {"index_put"}
_SHARED = {*describe.BUILDERS, *activations.SLOPES, F.pad}
"""Functions that :class:`GradientForm` recognises, and serves by methods overridden here."""
