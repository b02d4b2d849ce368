"""Seconds that annotators spent on each target, from the times of what they did."""

from collections import Counter
from collections.abc import Iterable, Mapping

from mclc_gpu.annotate.state import ImageState

PAUSE_LIMIT = 30.0  # seconds: longer times between two actions count as that much
SECONDS = "seconds.csv"
COLUMNS = ("image", "target", "seconds", "edits")


class Seconds:
    """Adds up the time between an annotator's actions.

    The time before an action counts for the targets that it changes; the time until the annotator opens
    another image for the target changed last.
    """

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, list[tuple[str, int]]]] = {}  # by annotator: when, and targets
        self.seconds: Counter[tuple[str, int]] = Counter()
        self.edits: Counter[tuple[str, int]] = Counter()

    def add(self, client: str, time: float, image: str, numbers: Iterable[int]) -> None:
        """Count one action on some targets of an image; without targets the image was opened."""
        changed = [(image, number) for number in numbers]
        before, last = self._last.get(client, (time, []))
        targets = changed or last
        passed = min(max(time - before, 0.0), PAUSE_LIMIT)
        for target in targets:
            self.seconds[target] += passed / len(targets)  # type: ignore[assignment]
        self.edits.update(changed)
        self._last[client] = time, changed

    def rows(self, images: Mapping[str, ImageState]) -> Iterable[tuple[object, ...]]:
        """Yield image, place of the target in it (none: of those deleted since), seconds and actions."""
        of_image: dict[str, list[tuple[str, int]]] = {}
        for key in sorted(self.edits):
            of_image.setdefault(key[0], []).append(key)
        for image, state in images.items():
            gone, known = [0.0, 0], of_image.get(image, [])
            places = {number: place for place, number in enumerate(state.targets)}
            for key in known:
                if key[1] in places:
                    yield image, places[key[1]], round(self.seconds[key], 3), self.edits[key]
                else:
                    gone = [gone[0] + self.seconds[key], gone[1] + self.edits[key]]
            if gone[1]:
                yield image, None, round(gone[0], 3), gone[1]
