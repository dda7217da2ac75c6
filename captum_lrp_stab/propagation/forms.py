"""The three ways to propagate relevance, by name.

They compute the same rules. The gradient form is this package's own and the only one that keeps
0/0 at 0; the other two divide by denominators without protection, on purpose: this is where the
NaN, the Inf and the bright patches of common implementations come from, and where they can be
studied. A form is given to :func:`captum_lrp_stab.propagation.attribution.propagate`.

Example:
    >>> form_of("modified-forward").__name__
    'ModifiedForward'
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from captum_lrp_stab import names
from captum_lrp_stab.errors import InputError
from captum_lrp_stab.propagation.gradient_form import GradientForm
from captum_lrp_stab.propagation.modified_forward import ModifiedForward
from captum_lrp_stab.propagation.relevance_form import RelevanceForm
from captum_lrp_stab.stabilizers import StabilizerLike

Form = Callable[..., GradientForm]
NAMES = names.FORMS
_FORMS = (GradientForm, RelevanceForm, ModifiedForward)


def form_of(name: str, stabilizer: StabilizerLike | None = None) -> Form:
    """Return a form by name, one of ``NAMES``.

    Args:
        name: ``gradient``, ``relevance`` or ``modified-forward``.
        stabilizer: Of the operations without a rule, which only the relevance form divides at.

    Raises:
        InputError: No form has this name.
    """
    if name not in NAMES:
        raise InputError(f"no form has the name {name!r}; give {', '.join(NAMES)}")
    if name == "relevance":
        return partial(RelevanceForm, stabilizer=stabilizer)
    return GradientForm if name == "gradient" else ModifiedForward


def name_of(form: Form) -> str:
    """Return the name of a form.

    Example:
        >>> name_of(form_of("relevance", 1e-6))
        'relevance'
    """
    cls = form.func if isinstance(form, partial) else form
    by_class: dict[Any, str] = dict(zip(_FORMS, NAMES, strict=True))
    return by_class.get(cls, getattr(cls, "__name__", repr(cls)))
