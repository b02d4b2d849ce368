"""Work that a page starts: write the labels of a session, and tune the settings on corrected masks."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from PIL import Image

from mclc_gpu.annotate.labels import finals
from mclc_gpu.annotate.seconds import COLUMNS, SECONDS
from mclc_gpu.annotate.session import Session
from mclc_gpu.annotate.state import ImageState
from mclc_gpu.data.exports import ExportedImage, ExportedTarget, export
from mclc_gpu.data.files import atomic_path, write_csv
from mclc_gpu.data.masks import BoxedMask
from mclc_gpu.data.points import write_points
from mclc_gpu.errors import InputError, Skipped, attempt
from mclc_gpu.labels.config import LabelConfig, LabelOptions
from mclc_gpu.labels.corrections import Marks, marks_of
from mclc_gpu.labels.folder import REPORT, LabelRun
from mclc_gpu.labels.pipeline import TargetMask
from mclc_gpu.labels.run import Inputs, label_dataset
from mclc_gpu.report.page import report_labels
from mclc_gpu.report.sheets import write_overview
from mclc_gpu.tune.config import TuneOptions
from mclc_gpu.tune.run import tune_labels
from mclc_gpu.tune.search import with_values

CLICKS = "clicks.csv"  # what the labels were made from; points.csv has the categories that were estimated too
EXPORTED, TUNE = "exports", "tune"
_BUDGET = 60  # evaluations of a search
_PRESETS = {"components": "default", "mclc": "paper"}  # at which a search starts, by label maker
Progress = Callable[[int, int], None]
Job = Callable[[Sequence[str], Progress], str]


def jobs_of(session: Session, address: str = "") -> dict[str, Job]:
    """Return the jobs of a session by name; each takes formats and a function for its progress.

    `address`: of the page, to which reports link.
    """

    def write(formats: Sequence[str], progress: Progress) -> str:
        return write_labels(session, formats, progress, address)

    def tune(formats: Sequence[str], progress: Progress) -> str:
        del formats
        return tune_session(session, progress)

    return {"export": write, "tune": tune}


def write_labels(session: Session, formats: Sequence[str], progress: Progress, address: str = "") -> str:
    """Write what `mclc-gpu label` writes for the clicks of a session, with the corrected masks.

    Parameters
    ----------
    session : Session
    formats : sequence of str
        Formats of `EXPORTS` that are written too, into exports/.
    progress : callable
        Told about finished steps, and all of them.
    address : str
        Of the page, to which the targets in report.html link.

    Returns
    -------
    str
        Message for the page.

    Raises
    ------
    InputError
        Nothing is annotated, or the folder holds files of something else.
    """
    steps = 1 + len(formats)
    progress(0, steps)
    with session.lock:
        points = session.state.points(session.names)
        states = {name: session.state.image(name) for name in points}
        config = session.config
        seconds = list(session.seconds.rows(session.state.images))
    corrections = {name: own for name, state in states.items() if (own := _corrections(state))}
    write_csv(session.out / SECONDS, COLUMNS, seconds)
    if not points:
        raise InputError("nothing is annotated; click a target, or mark an image without targets as done")
    clicks = session.out / CLICKS
    write_points(clicks, points)
    options = LabelOptions(
        images=session.images,
        points=clicks,
        out=session.out,
        config=config,
        seed=session.seed,
        device="cpu",
        overwrite=True,
    )
    inputs = Inputs(session.frames.files, points, source="point, given", corrections=corrections)
    doubtful = 0

    def report(run: LabelRun) -> None:
        nonlocal doubtful
        write_overview(run, run.title)
        doubtful = report_labels(run, address).flagged

    run = label_dataset(options, inputs, report=report)
    progress(1, steps)
    for number, name in enumerate(formats, 2):
        export(name, session.out / EXPORTED, exported_images(session, states, config))
        progress(number, steps)
    summary, by_hand = run.summary, sum(map(len, corrections.values()))
    also = f", {', '.join(formats)} in {EXPORTED}/" if formats else ""
    return (
        f"{summary['images']} images, {summary['targets']} targets, {by_hand} corrected by hand, written to "
        f"{session.out}{also}; {doubtful} doubtful ones, see {REPORT}"
    )


def _corrections(state: ImageState) -> Mapping[Marks, BoxedMask]:
    return {marks_of(one.point): one.mask for one in state.targets.values() if one.mask is not None}


def exported_images(
    session: Session, states: Mapping[str, ImageState], config: LabelConfig
) -> Iterator[ExportedImage]:
    """Yield images with the labels of these states; those that cannot be read are left out."""
    for name, state in states.items():
        labeled = attempt(name, lambda n=name, s=state: session.label_earlier(n, s, config))  # type: ignore[misc]
        if isinstance(labeled, Skipped):
            continue
        frame, labels = labeled
        file = session.frames.files[name]
        targets = [_exported(target) for target in finals(labels)]
        folder, _, _ = name.rpartition("/")
        shown = f"{folder}/{file.name}" if folder else file.name
        yield ExportedImage(name, shown, frame.shape, targets)


def _exported(target: TargetMask) -> ExportedTarget:
    mask = BoxedMask.of(target.mask, target.window.top, target.window.left)
    return ExportedTarget(target.point, mask, float(target.confidence))


def tune_session(session: Session, progress: Progress) -> str:
    """Tune the label settings on the images with corrected masks; untouched targets get the better ones.

    The search starts at the session's settings, and only what it changed is changed in the session.

    Raises
    ------
    InputError
        No mask was corrected, or the label maker has nothing to tune.
    """
    preset = _PRESETS.get(session.config.maker)
    if preset is None:
        raise InputError(f"the label maker {session.config.maker!r} has no settings to tune")
    with session.lock:
        config = session.config
        names = [name for name in session.names if session.state.image(name).corrected]
    if not names:
        raise InputError("no mask was corrected by hand; mend a few, then tune")
    progress(0, len(names) + 1)
    folder = session.out / TUNE
    masks, listed = folder / "masks", folder / "images.txt"
    if masks.is_dir():
        shutil.rmtree(masks)
    for number, name in enumerate(names, 1):
        frame, _, labels = session.label(name)
        mask = np.zeros(frame.shape, np.uint8)
        for target in finals(labels):
            mask[target.window.area][target.mask] = 255
        with atomic_path(masks / f"{name}.png") as temporary:
            Image.fromarray(mask).save(temporary)
        progress(number, len(names) + 1)
    with atomic_path(listed) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    summary = tune_labels(
        TuneOptions(
            images=session.images,
            masks=masks,
            list=listed,
            out=folder / "search",
            preset=preset,
            budget=_BUDGET,
            overwrite=True,
            device="cpu",
        ),
        config,
    )
    if summary["tuned_kept"]:
        tuned = {name: value for name, (_, value) in summary["changes"].items()}
        with session.lock:  # of other settings, those that somebody chose meanwhile stay
            session.set_config(with_values(session.config, tuned))
    progress(len(names) + 1, len(names) + 1)
    before, after = summary["before"]["iou"], summary["after"]["iou"]
    found = f"{summary['images']} images: IoU {before:.3f} before, {after:.3f} after"
    if summary["tuned_kept"]:
        return f"{found}; untouched targets are labeled with the new settings"
    return f"{found}, which may be chance; the settings stay, correct masks in more images"
