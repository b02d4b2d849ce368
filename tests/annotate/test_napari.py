"""The plugin of napari gives the masks of `mclc-gpu label` with the same clicks."""

import os
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import tifffile
from PIL import Image

from mclc_gpu.annotate.napari_plugin import Drawing, LayerLabels, settings
from mclc_gpu.cli.main import main
from mclc_gpu.data.images import read_image, read_mask
from mclc_gpu.data.names import find_files
from mclc_gpu.data.simulate import simulate_points
from mclc_gpu.data.synthetic import write_dataset

ROOT = Path(__file__).resolve().parents[2]
PAPER = {"preset": "paper", "outline": "edge"}
CHOICES = [{"preset": "default", "outline": "edge"}, {"preset": "default", "outline": "body"}, PAPER]


class Clicked(NamedTuple):
    """Image files of 8 bits, 16 bits and floats, clicks (row, column) on each, and where they are written."""

    images: Path
    points: Path
    places: dict[str, list[tuple[float, float]]]


@pytest.fixture(scope="module")
def clicked(tmp_path_factory: pytest.TempPathFactory) -> Clicked:
    folder = tmp_path_factory.mktemp("clicked")
    write_dataset(folder / "made", count=3, seed=5, size=(64, 64))
    made, masks = find_files(folder / "made/images"), find_files(folder / "made/masks")
    clicks, _ = simulate_points(masks, made, jitter=0.7)
    images = folder / "images"
    images.mkdir()
    rows, places = ["image,x,y"], {}
    for (name, path), kind in zip(made.items(), ("byte", "deep", "real"), strict=True):
        values = read_image(path).astype(np.float64)
        if kind == "byte":
            Image.fromarray(values.astype(np.uint8)).save(images / "byte.png")
        elif kind == "deep":
            tifffile.imwrite(images / "deep.tif", (9000 + 3.3 * values).astype(np.uint16))
        else:
            np.save(images / "real.npy", values * 1.7e-3 - 0.1)  # 64 bits; files are read as 32
        places[kind] = [(point.y, point.x) for point in clicks[name]]
        places[kind].append((places[kind][0][0] + 2, places[kind][0][1] + 3))  # windows overlap
        rows += [f"{kind},{x!r},{y!r}" for y, x in places[kind]]
    (folder / "clicks.csv").write_text("\n".join(rows) + "\n")
    return Clicked(images, folder / "clicks.csv", places)


@pytest.fixture(scope="module", params=CHOICES, ids=lambda choice: "-".join(choice.values()))
def labeled(
    request: pytest.FixtureRequest, clicked: Clicked, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Preset and outline, and the masks that the command writes with them."""
    choice = request.param
    out = tmp_path_factory.mktemp("labels")
    options = ["--preset", choice["preset"], "--device", "cpu"]
    options += [] if choice is PAPER else ["--outline", choice["outline"]]
    inputs = ["--images", str(clicked.images), "--points", str(clicked.points), "--out", str(out / "out")]
    assert main(["label", *inputs, *options]) == 0
    masks = {name: read_mask(path) for name, path in find_files(out / "out/masks").items()}
    assert all(mask.any() for mask in masks.values())
    return choice, masks


def pixels_of(clicked: Clicked, name: str) -> np.ndarray:
    """Return the values of a file as other readers give them, without conversion."""
    path = find_files(clicked.images)[name]
    return np.load(path) if path.suffix == ".npy" else np.asarray(read_image(path))


def test_the_manifest_leads_to_the_widget() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    package, _, file = project["project"]["entry-points"]["napari.manifest"]["mclc-gpu"].partition(":")
    lines = (files(package) / file).read_text().splitlines()
    assert f"name: {project['project']['name']}" in lines
    (command,) = [line.partition(": ")[2] for line in lines if line.strip().startswith("python_name:")]
    module, _, function = command.partition(":")
    assert callable(getattr(import_module(module), function))
    assert file in project["tool"]["setuptools"]["package-data"][package]


def test_masks_are_those_of_the_command(
    clicked: Clicked, labeled: tuple[dict[str, str], dict[str, np.ndarray]]
) -> None:
    choice, masks = labeled
    for name, places in clicked.places.items():
        pixels = pixels_of(clicked, name)
        layer, drawing = LayerLabels(pixels, name, settings(**choice)), Drawing()
        numbers = np.zeros(pixels.shape, np.int32)
        for count in range(1, len(places) + 1):  # click by click
            labels, problems = layer.label(places[:count])
            drawing.draw(numbers, labels)
        assert problems == []
        assert np.array_equal(numbers > 0, masks[name])


def test_images_of_a_stack_are_labeled_one_by_one(clicked: Clicked) -> None:
    pixels, places = pixels_of(clicked, "deep"), clicked.places["deep"]
    stack = np.stack([np.full_like(pixels, 9000), pixels, pixels[::-1]])
    clicks = [(1.0, y, x) for y, x in places] + [(2.0, 63 - y, x) for y, x in places]
    numbers = np.zeros(stack.shape, np.int32)
    layer = LayerLabels(stack, "stack", settings("default", "edge"))
    labels, problems = layer.label(clicks)
    Drawing().draw(numbers, labels)
    assert problems == []
    assert not numbers[0].any()
    for index, image in ((1, pixels), (2, pixels[::-1])):
        own = [click[1:] for click in clicks if click[0] == index]
        alone = np.zeros(pixels.shape, np.int32)
        Drawing().draw(alone, LayerLabels(image, "one", settings("default", "edge")).label(own)[0])
        assert alone.any()
        assert np.array_equal(numbers[index] > 0, alone > 0)


def test_color_is_labeled_without_its_alpha(clicked: Clicked) -> None:
    gray, places = pixels_of(clicked, "byte"), clicked.places["byte"]
    color = np.stack([gray, gray, gray, np.full_like(gray, 255)], axis=2)
    config = settings("default", "edge")
    expected, _ = LayerLabels(gray, "byte", config).label(places)
    found, problems = LayerLabels(color, "byte", config, color=True).label(places)
    assert problems == []
    for place, label in expected.items():
        assert np.array_equal(found[place].mask, label.mask)


def test_what_cannot_be_labeled_is_told_and_the_rest_is_labeled(clicked: Clicked) -> None:
    pixels, good = pixels_of(clicked, "byte"), clicked.places["byte"][0]
    config = settings("default", "edge")
    labels, problems = LayerLabels(pixels, "byte", config).label([(-3.0, 5.0), good, good])
    assert list(labels) == [good]
    assert "outside" in problems[0]
    assert "marked already" in problems[1]
    labels, problems = LayerLabels(pixels[None], "byte", config).label([(4.0, *good), (0.0, *good)])
    assert list(labels) == [(0.0, *good)]
    assert "no image 4" in problems[0]
    broken = pixels.astype(np.float32)
    broken[0, 0] = np.nan
    labels, (problem,) = LayerLabels(broken, "byte", config).label([good])
    assert labels == {}
    assert "1 pixels are NaN" in problem


def test_erased_masks_uncover_their_neighbors_and_changes_by_hand_stay(clicked: Clicked) -> None:
    config = settings("paper", "edge")
    pixels, places = pixels_of(clicked, "byte"), clicked.places["byte"]
    layer, drawing, numbers = LayerLabels(pixels, "byte", config), Drawing(), np.zeros((64, 64), np.int32)
    labels, _ = layer.label(places)
    first, last = places[0], places[-1]
    overlap = np.zeros((2, 64, 64), bool)
    for own, place in zip(overlap, (first, last), strict=True):
        own[labels[place].window.area] = labels[place].mask
    drawing.draw(numbers, labels)
    numbers[0, 0] = 77  # by hand
    kept, _ = layer.label(places[1:])
    drawing.draw(numbers, kept)
    expected = np.zeros((64, 64), bool)
    for label in kept.values():
        expected[label.window.area] |= label.mask
    assert numbers[0, 0] == 77
    numbers[0, 0] = 0
    assert np.array_equal(numbers > 0, expected)
    assert 1 not in numbers  # numbers of the others stay
    assert (numbers[overlap[1]] == len(places)).any()


@pytest.fixture
def viewer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A viewer of napari that knows the plugin; its window is not shown."""
    napari = pytest.importorskip("napari", reason="napari is missing: pip install 'napari[pyqt6]'")
    if sys.platform == "linux" and "DISPLAY" not in os.environ:
        pytest.skip("napari draws with OpenGL, which needs a display: run pytest under xvfb-run")
    monkeypatch.setenv("NAPARI_CONFIG", str(tmp_path / "napari.yaml"))
    npe2 = pytest.importorskip("npe2")
    plugins = npe2.PluginManager.instance()
    plugins.discover()
    if "mclc-gpu" not in plugins:  # installed without the entry point, or not at all
        manifest = npe2.PluginManifest.from_file(ROOT / "mclc_gpu/annotate/napari.yaml")
        manifest.validate_imports()
        plugins.register(manifest)
    opened = napari.Viewer(show=False)
    yield opened
    opened.close()


def click(layer: Any, *place: float) -> None:
    """Click on a layer: press and release of the mouse, as napari's canvas sends them."""
    from napari.utils.interactions import mouse_press_callbacks, mouse_release_callbacks

    event = SimpleNamespace(
        type="mouse_press",
        position=place,
        pos=np.zeros(2),
        modifiers=(),
        button=1,
        view_direction=None,
        dims_displayed=[0, 1],
        dims_point=place,
        is_dragging=False,
        handled=False,
    )
    mouse_press_callbacks(layer, event)
    event.type = "mouse_release"
    mouse_release_callbacks(layer, event)


def test_clicks_in_napari_give_the_masks_of_the_command(
    viewer: Any, clicked: Clicked, labeled: tuple[dict[str, str], dict[str, np.ndarray]]
) -> None:
    choice, masks = labeled
    _, widget = viewer.window.add_plugin_dock_widget("mclc-gpu")
    for name, places in clicked.places.items():
        (image,) = viewer.open(find_files(clicked.images)[name], plugin="napari")
        if name == "deep":  # layers need not lie on the pixel grid
            image.scale, image.translate = (0.5, 0.25), (8, -4)
        widget.image.value = image
        widget.preset.value, widget.outline.value = choice["preset"], choice["outline"]
        widget.begin.changed.emit(True)
        points = widget.clicks.value
        assert viewer.layers.selection.active is points
        for place in places:
            click(points, *image.data_to_world(place))
        assert len(points.data) == len(places)
        found = viewer.layers[f"{name} masks"]
        assert type(found).__name__ == "Labels"
        assert np.array_equal(found.data > 0, masks[name])
        assert widget.status.value == f"{len(places)} targets have a mask."
        points.selected_data = {0}
        points.remove_selected()
        assert 1 not in found.data
        assert widget.status.value == f"{len(places) - 1} targets have a mask."


def test_mouse_outside_and_layers_removed(viewer: Any, clicked: Clicked) -> None:
    _, widget = viewer.window.add_plugin_dock_widget("mclc-gpu")
    widget.begin.changed.emit(True)
    assert "no image" in widget.status.value
    (image,) = viewer.open(find_files(clicked.images)["deep"], plugin="napari")
    assert image.data.dtype == np.uint16
    widget.begin.changed.emit(True)
    points = widget.clicks.value
    click(points, -9, 5)
    assert "outside" in widget.status.value
    assert "deep masks" not in viewer.layers
    click(points, *clicked.places["deep"][0])
    viewer.layers.remove("deep masks")
    click(points, *clicked.places["deep"][1])
    assert len(np.unique(viewer.layers["deep masks"].data)) == 3  # both are drawn into the new layer
    viewer.layers.remove(points)
    viewer.layers.remove(image)
    assert widget.image.value is None
