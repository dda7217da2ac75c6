"""Writing a result over what an in-place operation writes to."""

from torch import Tensor

from captum_lrp_stab.dispatch.layer_use import layer_of
from captum_lrp_stab.tensors import marks


def written_over(target: Tensor, out: Tensor) -> Tensor:
    """Write what an operation would give out of place to its target, and return that.

    The target's former value keeps its relevance through ``out``, if at all.
    """
    use = layer_of(target)
    if use is not None:
        use.keep_copy(target)
    if not target._is_view():
        target.detach_()
    marks.carry(out, target.copy_(out))
    return target
