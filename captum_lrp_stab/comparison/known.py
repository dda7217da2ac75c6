"""The known differences of meaning between implementations of LRP, by name.

How each is taken away, to show that it is one, stands in ``removals``.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class KnownDifference:
    """A difference of meaning: neither side has a bug, or the bug is known."""

    name: str
    meaning: str
    where: str = ""  # the operation at which it was shown, if it is a matter of one


GAMMA_BIAS = KnownDifference(
    "gamma's bias",
    "the gamma rule can scale a positive bias with the weights (zennit, this package's default) or "
    "leave it as it is (Captum; GammaRule(bias='captum'))",
)
SIGNED_EPSILON = KnownDifference(
    "signed against unsigned epsilon",
    "one side adds epsilon with the sign of z, the other as it is, z + epsilon, which has a pole "
    "at z = -epsilon",
)
NORMALISED_OUTPUT = KnownDifference(
    "normalised output",
    "one side starts from 1, the other from the score: they differ by the score as a factor",
)
QUADRATIC_MEAN = KnownDifference(
    "batch-wide quadratic mean",
    "the quadratic mean in a stabilizer is taken of each sample, or of the whole batch, which "
    "makes the result of one picture depend on the others",
)
BIAS_SHARE = KnownDifference(
    "bias share",
    "one side counts the bias in the denominator, so that it absorbs a share of relevance; the "
    "other leaves it out and hands that share down",
)
DOUBLED_ADDITION = KnownDifference(
    "doubled at a functional addition",
    "the reference sees modules only, and hands all relevance of a sum to each of its summands; "
    "what lies below is not comparable",
)
MERGED_EPSILON = KnownDifference(
    "eps of merged batch norms",
    "zennit before 1.0 merges a batch norm into the layer before it and leaves eps in the batch "
    "norm, which then divides by sqrt(1 + eps) once more: each changes the network's values by "
    "half of eps",
)
UNMERGED_BATCH_NORM = KnownDifference(
    "batch norm as a layer of its own",
    "one side treats a layer and its batch norm as one layer, the other each for itself",
)
ADDITION_STABILIZER = KnownDifference(
    "stabilizer at additions",
    "the reference divides by z + 1e-6 sign z at additions too, where LRP-0 needs no stabilizer",
)
CAPTUM_SIGNS = KnownDifference(
    "Captum's rules change the weights alone",
    "Captum's gamma and alpha1-beta0 rules change the weights, whatever the signs of the layer's "
    "bias, inputs and outputs, which is the rule only where all of them are positive",
)
CAPTUM_DEFAULTS = KnownDifference(
    "Captum's epsilon where there is no rule",
    "Captum divides by z + 1e-9 sign z at layers without a rule too: at max pools, through which "
    "relevance only has to be routed, at average pools and batch norms",
)
MODIFIED_FORWARD = KnownDifference(
    "modified forward pass",
    "the form that rewrites the forward pass computes s(z) in the place of z, so that a stabilizer "
    "changes the values of every layer above",
)
SIGNED_STABILIZER = KnownDifference(
    "signed against unsigned stabilizer",
    "the same as with epsilon, in the stabilizer of another rule: Signed on one side, Additive on "
    "the other",
)
FIRST_LAYER = KnownDifference(
    "first layer",
    "zennit's composites take the first module of the model's definition for the first layer, this "
    "package's presets every layer that reads an input of the model",
)
KNOWN = tuple(value for value in list(vars().values()) if isinstance(value, KnownDifference))
"""All of them."""
