"""Errors and warnings, each naming the place, the value and the remedy.

Every error derives from the built-in exception a caller would expect (``ValueError``,
``TypeError``, ...) and from :class:`LRPError`, so that scripts can catch either.
"""


class LRPError(Exception):
    """Base class of every error this package raises on purpose."""


class StabilizerError(LRPError, ValueError):
    """A stabilizer cannot be built, or returned something that is not a denominator."""


class RuleError(LRPError, ValueError):
    """A rule has an invalid parameter, or cannot serve the layer it is set on."""


class RuleMapError(LRPError, ValueError):
    """A ``name_map`` names layers that do not exist, twice, or with a rule that does not fit."""


class LayerFilterError(LRPError, ValueError):
    """A layer filter is invalid or selects nothing."""


class ModelError(LRPError, ValueError):
    """The model cannot be explained as it is: train mode, scripted, quantized, NaN parameters."""


class InputError(LRPError, ValueError):
    """The inputs or the target cannot be explained: NaN, integer dtype, target out of range."""


class FallbackError(LRPError, RuntimeError):
    """With ``strict=True``: an operation has no LRP rule and would get its plain gradient."""


class NotDifferentiableError(LRPError, RuntimeError):
    """Relevance was differentiated, as by a loss on it: it has no graph."""


class NonFiniteRelevanceError(LRPError, ArithmeticError):
    """The relevance contains NaN or Inf (``nonfinite="raise"``)."""


class PictureError(LRPError, ValueError):
    """A file cannot be read as a picture."""


class WeightsError(LRPError, ValueError):
    """A weights file cannot be had, cannot be read, or does not fit the model."""


class MissingExtraError(LRPError, ImportError):
    """An optional package is not installed."""


class ReferenceFailedError(LRPError, RuntimeError):
    """The implementation a result is compared with raised an error of its own."""


class ReportError(LRPError, OSError):
    """A report cannot be written."""


class LRPWarning(UserWarning):
    """Base class of every warning this package gives."""


class StabilizerWarning(LRPWarning):
    """An epsilon was raised because it does not work in the tensor's dtype."""


class InputWarning(LRPWarning):
    """The input lies outside the bounds a rule was given."""


class FallbackWarning(LRPWarning):
    """Relevance passes operations under their plain gradient (``fallbacks="warn"``)."""


class OutputWarning(FallbackWarning):
    """The output is made by an activation such as a softmax, through which relevance vanishes."""


class RuleMapWarning(LRPWarning):
    """A name_map can say of a model only in part what a preset does in a pass."""


class NonFiniteRelevanceWarning(LRPWarning):
    """The relevance contains NaN or Inf (``nonfinite="warn"``)."""
