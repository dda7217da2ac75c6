"""Errors and warnings, each naming the place, the value and the remedy.

Every error derives from the built-in exception a caller would expect (``ValueError``,
``TypeError``, ...) and from :class:`LRPError`, so that scripts can catch either. What Captum raises
an exception of its own choice for is one of that type here too: a script written for Captum catches
it as before.
"""


class LRPError(Exception):
    """Base class of every error this package raises on purpose."""


class StabilizerError(LRPError, ValueError):
    """A stabilizer cannot be built, or returned something that is not a denominator."""


class RuleError(LRPError, ValueError):
    """A rule has an invalid parameter, or cannot serve the layer it is set on."""


class RuleTypeError(RuleError, TypeError):
    """What is set as ``module.rule`` is no propagation rule."""


class RuleMapError(LRPError, ValueError):
    """A ``name_map`` names layers that do not exist, twice, or with a rule that does not fit."""


class LayerFilterError(LRPError, ValueError):
    """A layer filter is invalid or selects nothing."""


class ModelError(LRPError, ValueError):
    """The model cannot be explained as it is: train mode, scripted, quantized, NaN parameters."""


class ModelTypeError(ModelError, TypeError):
    """The model, or a module of it, is of a kind whose operations cannot be followed."""


class UnreachedError(ModelError, RuntimeError, AssertionError):
    """The score does not depend on the inputs, or not on the layer that is asked for."""


class InputError(LRPError, ValueError):
    """The inputs or the target cannot be explained: NaN, integer dtype, target out of range."""


class InputTypeError(InputError, TypeError, AssertionError, RuntimeError):
    """An input is no tensor, or one of whole numbers."""


class TargetError(InputError, TypeError, AssertionError):
    """The target is of no form that selects one score for each sample."""


class TargetIndexError(TargetError, IndexError, RuntimeError):
    """The target has an index that the model's output has not."""


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
    """A name_map says only in part what a preset does in a pass, or a rule in it has no effect."""


class NonFiniteRelevanceWarning(LRPWarning):
    """The relevance contains NaN or Inf (``nonfinite="warn"``)."""
