"""A network and a picture made ready to be explained."""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from captum_lrp_stab import by_name
from captum_lrp_stab.errors import InputError, ModelError
from captum_lrp_stab.propagation import checks
from captum_lrp_stab.zoo import Classifier


@dataclass(frozen=True, eq=False)
class Prepared:
    """A picture as the model's input, and the model's output on it."""

    classifier: Classifier
    model: nn.Module  # in the dtype asked for
    dtype: str
    picture: Image.Image  # as the model sees it, before normalisation
    x: Tensor  # (1, C, H, W)
    target: int
    label: str
    score: float
    probability: float
    gradient: Tensor  # of the score, (C, H, W)


def prepare(
    classifier: Classifier, image: Image.Image, dtype: str = "float32", target: int | None = None
) -> Prepared:
    """Convert the model to a dtype, run it on the picture and find the target.

    Args:
        classifier: The model; it is converted.
        image: An RGB picture of any size.
        dtype: One of ``names.DTYPES``.
        target: The class to explain; None for the one the model finds.

    Raises:
        InputError: ``target`` is out of range, the dtype is unknown, or the output is not finite.
        ModelError: The weights are not finite, or overflow in this dtype.
    """
    floating = by_name.dtype_of(dtype)
    checks.check_parameters(classifier.model)
    model = classifier.model.to(floating)
    picture = classifier.preprocessing.picture(image)
    x = classifier.preprocessing.input(picture, floating)
    try:
        checks.check_parameters(model)
    except ModelError as error:
        raise ModelError(f"in {dtype} the weights overflow: {error}; take a wider dtype") from error
    found, score, probability, gradient = _look(model, x, target)
    label = classifier.label(found)
    return Prepared(
        classifier, model, dtype, picture, x, found, label, score, probability, gradient
    )


def _look(model: nn.Module, x: Tensor, target: int | None) -> tuple[int, float, float, Tensor]:
    """Return the target, its score and probability, and the score's gradient ``(C, H, W)``.

    Raises:
        InputError: The target is out of range, or the model's output is not finite.
    """
    with torch.inference_mode(False), torch.enable_grad():
        point = x.clone().requires_grad_()
        output = model(point)[0]
        if not bool(torch.isfinite(output).all()):
            raise InputError(
                f"the model's output is not finite in {x.dtype}, before any rule: take a wider "
                "dtype"
            )
        if target is None:
            target = int(output.argmax())
        if not 0 <= target < len(output):
            raise InputError(
                f"target {target} is out of range: the model has the classes 0 to {len(output) - 1}"
            )
        (gradient,) = torch.autograd.grad(output[target], point)
    outputs = output.detach().to(torch.float64)
    return target, float(outputs[target]), float(outputs.softmax(0)[target]), gradient[0]
