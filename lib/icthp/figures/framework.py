"""The method as a diagram: from prompts and votes to a tuned generator."""

from matplotlib import pyplot as plt

from .drawing import conclude
from .palette import colour

BOXES = {
    "prompt": (0.0, 1.2, "prompt t"),
    "votes": (0.0, 0.0, "I1 < I2\npeople's\nvotes"),
    "refined": (1.4, 1.2, "refined\nprompt"),
    "i3": (2.8, 1.2, "I3, by a\nstrong\ngenerator"),
    "triplets": (2.8, 0.0, "triplets\nI1 < I2 < I3"),
    "labels": (4.6, 1.2, "labels by\nCLIP and $\\theta$\nE1 ≤ E2 ≤ E3 = 1"),
    "ict": (6.5, 1.2, "ICT: is t in\nthe picture?"),
    "hp": (6.5, 0.0, "HP: is the\npicture good?"),
    "product": (7.9, 0.6, "ICT x HP"),
    "draft": (9.3, 0.6, "DRaFT-K\ntunes a\ngenerator"),
}
ARROWS = {
    ("prompt", "refined"): "", ("refined", "i3"): "", ("i3", "triplets"): "", ("votes", "triplets"): "", ("triplets", "labels"): "",
    ("labels", "ict"): "", ("triplets", "hp"): "the order alone", ("ict", "product"): "", ("hp", "product"): "", ("product", "draft"): "",
}  # fmt: skip
EDGES = {"ict": "ict", "hp": "hp", "product": "icthp", "labels": "clip"}  # boxes in the colour of a scorer


def draw_framework():
    """Boxes and arrows; HP learns from the order of the triplets, ICT from labels that CLIP and theta make of them."""
    figure = plt.figure(figsize=(9.4, 2.5))
    axis = figure.add_axes((0, 0, 1, 1))
    texts = {}
    for name, (x, y, text) in BOXES.items():
        edge = colour(EDGES[name]) if name in EDGES else "0.35"
        box = {"boxstyle": "round,pad=0.4", "fc": "white", "ec": edge, "lw": 2}
        texts[name] = axis.text(x, y, text, ha="center", va="center", fontsize=11, bbox=box)
    for (start, end), text in ARROWS.items():
        patches = {"patchA": texts[start].get_bbox_patch(), "patchB": texts[end].get_bbox_patch()}
        arrow = {"arrowstyle": "-|>", "color": "0.35", "lw": 1.5, "shrinkA": 2, "shrinkB": 2} | patches
        axis.annotate("", BOXES[end][:2], BOXES[start][:2], arrowprops=arrow)
        x, y = ((a + b) / 2 for a, b in zip(BOXES[start][:2], BOXES[end][:2]))
        axis.text(x, y + 0.06, text, ha="center", va="bottom", fontsize=10, style="italic")
    axis.set(xlim=(-0.6, 9.9), ylim=(-0.5, 1.7))
    axis.axis("off")
    conclude(figure, "ICT learns from labels that CLIP and θ make; HP learns from the order of the pictures alone")
    figure.canvas.draw()  # the boxes get their sizes, at which arrows end
    return figure
