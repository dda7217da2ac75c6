"""Draw the rooms of the package (its sub-packages and the modules in its root) from their imports.

    python docs/draw_rooms.py

writes docs/pictures/rooms.png, and what it shows, docs/pictures/rooms.json.
"""

import json
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path

import grimp
from matplotlib.figure import Figure

FOLDER = Path(__file__).parent / "pictures"
PICTURE = "rooms"
EVERYWHERE = {"_version", "errors", "names", "types"}  # almost every room imports them
WALK = {"lrp", "explainer", "propagation", "fast", "dispatch", "rules", "operations", "tensors"}
COLUMNS = {  # where each room stands from left to right; its height is that of its imports
    **dict.fromkeys((*WALK, "ledger", "task", "testing"), 0.0),
    **dict.fromkeys(("layer_lrp", "layer_filter"), -1.2),
    **dict.fromkeys(("diagnosis", "comparison", "assignment", "stabilizers"), 1.1),
    **dict.fromkeys(("cli", "study", "zoo"), 2.1),
    **dict.fromkeys(("by_name", "presets"), 1.6),
    **dict.fromkeys(("visualize", "images"), 3.3),
    "reporting": 4.0,
    "planning": 5.0,
}
_WALK, _REST, _LINE = "#cfe3f5", "#f4f4f4", "0.55"

Graph = Mapping[str, Collection[str]]


def rooms() -> dict[str, set[str]]:
    """Return the rooms that each room imports, without those that almost all import."""
    modules = grimp.build_graph("captum_lrp_stab", exclude_type_checking_imports=True)
    found: dict[str, set[str]] = {}
    for module in sorted(modules.modules - {"captum_lrp_stab"}):
        room = module.split(".")[1]
        if room not in EVERYWHERE:
            imported = modules.find_modules_directly_imported_by(module)
            others = {name.split(".")[1] for name in imported if "." in name}
            found.setdefault(room, set()).update(others - EVERYWHERE - {room})
    return found


def shortened(graph: Graph) -> dict[str, list[str]]:
    """Return the graph without the imports of rooms that are reached by a longer way too."""

    @cache
    def reached(room: str) -> set[str]:
        return set(graph[room]).union(*map(reached, graph[room]))

    return {
        room: sorted(set(imported) - {o for between in imported for o in reached(between)})
        for room, imported in graph.items()
    }


def levels(graph: Graph) -> dict[str, int]:
    """Return the height of each room: above all that it imports, and close to what imports it."""

    @cache
    def level(room: str) -> int:
        return max((level(other) + 1 for other in graph[room]), default=0)

    found = {room: level(room) for room in graph}
    for room in (r for r, imported in graph.items() if not imported):
        found[room] = min(found[r] for r, imported in graph.items() if room in imported) - 1
    return found


def draw(graph: Graph) -> Figure:
    """Return a figure of rooms as boxes, with arrows to what they import."""
    arrows = shortened(graph)
    at = {room: (COLUMNS.get(room, 6.0), level) for room, level in levels(arrows).items()}
    figure = Figure(figsize=(10, 8), dpi=100, layout="constrained")
    ax = figure.subplots()
    arrow = {"arrowstyle": "-|>", "color": _LINE, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
    for room, imported in arrows.items():
        for other in imported:
            (x, y), (to_x, to_y) = at[room], at[other]
            ax.annotate("", (to_x, to_y + 0.3), (x, y - 0.3), arrowprops=arrow, zorder=1)
    for room, (x, y) in at.items():
        colour = _WALK if room in WALK else _REST
        box = {"boxstyle": "round,pad=0.35", "facecolor": colour, "edgecolor": "0.3"}
        ax.text(x, y, room, ha="center", va="center", fontsize=13, bbox=box, zorder=2)
    columns, rows = zip(*at.values(), strict=True)
    ax.set(xlim=(min(columns) - 0.6, max(columns) + 0.6), ylim=(-0.5, max(rows) + 0.5))
    ax.set_axis_off()
    return figure


def main() -> None:
    """Write the picture and what it shows."""
    graph = rooms()
    draw(graph).savefig(FOLDER / f"{PICTURE}.png")
    (FOLDER / f"{PICTURE}.json").write_text(json.dumps(shortened(graph), indent=1) + "\n")


if __name__ == "__main__":
    main()
