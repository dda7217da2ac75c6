"""``python -m benchmarks``: measure, print the table, and write what is asked for."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch

from benchmarks import drawing, report
from benchmarks.reading import read
from benchmarks.running import run
from benchmarks.settings import DEVICES, DTYPES, Settings
from captum_lrp_stab.errors import LRPError
from captum_lrp_stab.reporting.document import Picture

_DEFAULT = Settings()


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Time, peak memory and correctness beside zennit, stock Captum and autoLRP, "
        "as multiples of gradient x input.",
    )
    add = made.add_argument
    add(
        "--models", nargs="+", default=_DEFAULT.models, help="torchvision names, efficientnet_lite0"
    )
    add("--batches", nargs="+", type=_positive, default=_DEFAULT.batches)
    add("--methods", nargs="+", default=(), help="library:rules or library; default: all")
    add("--presets", nargs="+", default=(), help="rules, any preset of this package among them")
    add("--rounds", type=_positive, default=_DEFAULT.rounds, help="after one that is thrown away")
    add("--threads", type=_positive, help="of torch")
    add("--device", choices=DEVICES, default=_DEFAULT.device)
    add("--dtype", choices=list(DTYPES), default=_DEFAULT.dtype)
    add("--size", type=_positive, default=_DEFAULT.size, help="pixels of height and width")
    add("--seed", type=int, default=_DEFAULT.seed, help="of weights and inputs")
    add("--no-memory", dest="memory", action="store_false", help="leave peak memory out")
    add("--no-many", dest="many", action="store_false", help="leave several targets at once out")
    add("--quick", action="store_true", help="one tiny network, to see that everything runs")
    add(
        "--read",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="report on runs that --json has kept, as one, and measure nothing",
    )
    add("--json", type=Path, metavar="FILE")
    add("--markdown", type=Path, metavar="FILE")
    add("--plot", type=_png, metavar="FILE.png")
    return made


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def _png(text: str) -> Path:
    path = Path(text)
    if path.suffix != ".png":
        raise argparse.ArgumentTypeError(f"{text} does not end in .png")
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit status is 2 after a mistake of the user's."""
    given = parser().parse_args(arguments)
    settings = Settings.of({field.name: getattr(given, field.name) for field in fields(Settings)})
    if given.quick:
        settings = settings.quick()
    if settings.device == "cuda" and not torch.cuda.is_available():
        print("error: torch finds no GPU; give --device cpu", file=sys.stderr)
        return 2
    try:
        if given.read:
            results = read(given.read)
        else:
            results = run(settings, lambda text: print(text, file=sys.stderr, flush=True))
    except (LRPError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report.as_text(results))
    picture = None
    if given.plot is not None:
        description = "time of each method as a multiple of gradient x input, by model"
        picture = Picture(drawing.draw(results), given.plot.stem, description)
        given.plot.write_bytes(picture.png)
    if given.markdown is not None:
        # The Markdown links to the plot by its name alone, so that must lie beside it.
        is_beside = picture is not None and given.plot.parent == given.markdown.parent
        text = report.as_markdown(results, picture if is_beside else None)
        given.markdown.write_text(text, encoding="utf-8")
    if given.json is not None:
        given.json.write_text(report.as_json(results) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
