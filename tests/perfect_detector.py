"""What a perfect detector would find in the microworld's pictures."""

from icthp.microworld import renderer
from icthp.microworld.detector import detection
from icthp.microworld.scenes import COLOURS, SHAPES


def true_objects(scenes) -> list[list]:
    """The objects of each scene, as detections."""
    centres, _, present, is_b = renderer.layout(scenes)
    return [[_object(scenes, centres, is_b, i, k) for k in range(3) if present[i, k]] for i in range(len(scenes))]


def _object(scenes, centres, is_b, i: int, k: int):
    suffix = "_b" if is_b[i, k] else "_a"
    label, colour = (scenes.latents[name + suffix][i] for name in ("shape", "colour"))
    return detection(SHAPES[label], COLOURS[colour], *centres[i, k].tolist(), 1.0)


class PerfectDetector:
    """A detector that is given scenes for pictures."""

    detect = staticmethod(true_objects)
