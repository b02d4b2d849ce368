"""What counts as a detection and as a false alarm: this package's definition, and a historical one."""

from dataclasses import dataclass

from mclc_gpu.errors import InputError


@dataclass(frozen=True, slots=True)
class Convention:
    """How predicted components are given to targets, and what is left over.

    In either convention components are 8-connected and numbered in the order in which rows, read from the
    top, first meet them. Targets choose in that order, each among the components that no earlier target has
    taken and whose centroid lies less than 3 px (strictly) from the target's. Pd is the share of targets that
    found one.

    Attributes:
        name: As it is written on the command line and in JSON.
        nearest: A target takes the nearest of those components, of equally near ones the first; else it
            takes the first, however far.
        alarms_by_area: A component that no target took is a false alarm unless its area in pixels equals that
            of a component that one took in the same image; else it always is one.
    """

    name: str
    nearest: bool
    alarms_by_area: bool


CANONICAL = Convention("canonical", nearest=True, alarms_by_area=False)

# Many papers on infrared small targets report the Pd and Fa of the metric published with DNANet (Li et al.,
# IEEE TIP 2023, doi:10.1109/TIP.2022.3199107), or of a copy of it. It compares areas where it means
# components: its false alarms are all predicted areas but for the values that occur among the areas of the
# matched components. So a match of 4 px hides every false alarm of 4 px in that image. Three habits of that
# code around the metric are left out: it resizes images to 256x256 and divides by that size, where here the
# image's own pixels count (the same at that size); it thresholds logits at 0, which is probability > 0.5; and
# only 255 is true in its masks (see `mclc_gpu.data.images.read_mask` for ours).
DNANET = Convention("dnanet", nearest=False, alarms_by_area=True)

CONVENTIONS = {convention.name: convention for convention in (CANONICAL, DNANET)}


def convention_of(name: str) -> Convention:
    """The convention of a name. Raises InputError for an unknown one."""
    if name not in CONVENTIONS:
        raise InputError(f"unknown convention {name!r}: choose one of {', '.join(CONVENTIONS)}")
    return CONVENTIONS[name]
