"""Point labels: the same clicks in every format; bad items are reported, bad files are refused."""

import json

import numpy as np
import pytest
from PIL import Image

from mclc_gpu.data.annotations import Point
from mclc_gpu.data.formats import Entry, PointFormat
from mclc_gpu.data.images import read_mask
from mclc_gpu.data.names import find_files
from mclc_gpu.data.points import FORMATS, read_points, write_points
from mclc_gpu.errors import InputError

WIDTH, HEIGHT = 40, 30
CLICKS = {"a": [Point(3.0, 7.0), Point(39.0, 0.0)], "b.1": [Point(10.0, 20.0)], "c": []}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for stem in ("a", "b.1", "c"):
        Image.new("L", (WIDTH, HEIGHT)).save(folder / f"{stem}.png")
    return find_files(folder)


def saved(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def reasons(skipped):
    return [item.why for item in skipped]


TABLES = {
    "comma": "image,x,y\na.png,3,7\na.png,39,0\nb.1.png,10,20\nc.png,,\n",
    "crlf-bom": "\ufeffimage,x,y\r\na,3,7\r\n\r\na,39.0,0\r\nb.1,10,20\r\nc,,",
    "semicolon": "image;x;y\na;3,0;7\na;39;0\nb.1;10;20\nc;;\n",
    "tab": "image\tx\ty\na\t3\t7\na\t39\t0\nb.1\t10\t20\nc\t\t\n",
    "aliases": "id,Row,Col,Filename\n1,7,3,x/a.png\n2,0,39,x\\a.png\n3,20,10,b.1.tif\n4,,,c\n",
    "category": "image,x,y,category\na,3,7,\na,39,0,\nb.1,10,20,\nc,,,\n",
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("suffix", [".csv", ".txt", ".dat"])
def test_tables(tmp_path, images, name, suffix):
    assert read_points(saved(tmp_path / f"p{suffix}", TABLES[name]), images) == (CLICKS, [])


def test_table_of_a_spreadsheet_in_utf16(tmp_path, images):
    assert read_points(saved(tmp_path / "p.csv", TABLES["tab"].encode("utf-16")), images) == (CLICKS, [])


def coco():
    names = ["a.png", "b.1.png", "c.png"]
    sized = [{"id": i, "file_name": n, "width": WIDTH, "height": HEIGHT} for i, n in enumerate(names)]
    annotations = [
        {"image_id": 0, "category_id": 1, "keypoints": [3, 7, 2, 39, 0, 1, 0, 0, 0]},
        {"image_id": 1, "category_id": 1, "keypoints": [10, 20, 2]},
    ]
    return {"images": sized, "annotations": annotations, "categories": [{"id": 1, "name": "target"}]}


def label_studio_value(x, y):
    """Return percent of the size, from the image's edge: the center of pixel 0 lies half a pixel inside."""
    return {
        "x": (x + 0.5) * 100 / WIDTH,
        "y": (y + 0.5) * 100 / HEIGHT,
        "width": 0.5,
        "keypointlabels": ["Target"],
    }


def label_studio(minimal):
    addresses = ["/data/upload/1/0a1b2c3d-a.png", "/data/local-files/?d=set/b.1.png", "s3://bucket/c.png"]
    tasks = []
    for number, (address, clicks) in enumerate(zip(addresses, CLICKS.values(), strict=True)):
        values = [label_studio_value(click.x, click.y) for click in clicks]
        size = {"original_width": WIDTH, "original_height": HEIGHT}
        if minimal:
            tasks.append({"id": number, "image": address, "kp": [value | size for value in values]})
        else:
            result = [size | {"type": "keypointlabels", "value": value} for value in values]
            tasks.append({"id": number, "data": {"image": address}, "annotations": [{"result": result}]})
    return tasks


RECORDS = [
    {"image": "a.png", "x": 3, "y": 7.0},
    {"file_name": "a", "x": "39", "y": 0, "category": None},
    {"image": "b.1", "x": 10, "y": 20},
    {"image": "c", "x": None, "y": None},
]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(RECORDS, id="records"),
        pytest.param({"a": [[3, 7], [39, 0]], "b.1.png": [{"x": 10, "y": 20}], "c": []}, id="by-image"),
        pytest.param(coco(), id="coco"),
        pytest.param(label_studio(minimal=False), id="label-studio"),
    ],
)
@pytest.mark.parametrize("name", ["p.json", "points"])
def test_json(tmp_path, images, content, name):
    points, skipped = read_points(saved(tmp_path / name, json.dumps(content)), images)
    assert skipped == []
    assert points.keys() == CLICKS.keys()
    for stem, clicks in CLICKS.items():
        got = [(p.x, p.y, p.category) for p in points[stem]]
        assert got == [(pytest.approx(p.x), pytest.approx(p.y), None) for p in clicks]


def test_label_studio_minimal(tmp_path, images):
    # A task without keypoints may be one that nobody looked at: it says nothing about its image.
    points, skipped = read_points(saved(tmp_path / "p.json", json.dumps(label_studio(minimal=True))), images)
    assert skipped == []
    assert list(points) == ["a", "b.1"]
    assert points["b.1"] == [Point(pytest.approx(10), pytest.approx(20))]


def test_label_studio_takes_the_first_valid_annotation(tmp_path, images):
    task = label_studio(minimal=False)[1]
    other = json.loads(json.dumps(task["annotations"][0]).replace('"x": ', '"x": 1'))
    task["annotations"] = [other | {"was_cancelled": True}, *task["annotations"], other]
    points, skipped = read_points(saved(tmp_path / "p.json", json.dumps([task])), images)
    assert points == {"b.1": [Point(pytest.approx(10), pytest.approx(20))]}
    assert reasons(skipped) == ["task 1 has 2 annotations; only the first is used"]


def labelme(clicks, stem):
    shapes = [{"label": "t", "points": [[p.x + 0.5, p.y + 0.5]], "shape_type": "point"} for p in clicks]
    return json.dumps(
        {"shapes": shapes, "imagePath": f"..\\{stem}.png", "imageHeight": HEIGHT, "imageWidth": WIDTH}
    )


def voc(clicks, stem):
    objects = "".join(
        f"<object><name>Target</name><centroid><yc>{p.y + 1}</yc><xc>{p.x + 1}</xc></centroid></object>"
        for p in clicks
    )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
    return f"<annotation><filename>{stem}</filename>{size}{objects}</annotation>"


def lines(clicks, _):
    return "imagesource:GoogleEarth\ngsd:0.1\n" + "".join(f"{p.x} {p.y}\r\n" for p in clicks)


@pytest.mark.parametrize(("suffix", "write"), [(".json", labelme), (".xml", voc), (".txt", lines)])
def test_folder_of_one_file_per_image(tmp_path, images, suffix, write):
    for stem, clicks in CLICKS.items():
        saved(tmp_path / f"{stem}{suffix}", write(clicks, stem))
        (tmp_path / f"{stem}.png").write_bytes(images[stem].read_bytes())  # tools write beside the images
    assert read_points(tmp_path, images) == (CLICKS, [])
    assert read_points(tmp_path / f"a{suffix}", images) == ({"a": CLICKS["a"]}, [])


@pytest.mark.parametrize("write", [labelme, voc])
def test_renamed_files_go_by_the_name_inside(tmp_path, images, write):
    suffix = ".json" if write is labelme else ".xml"
    saved(tmp_path / f"0001{suffix}", write(CLICKS["a"], "a"))
    assert read_points(tmp_path, images) == ({"a": CLICKS["a"]}, [])


def test_folder_of_single_pixel_masks(tmp_path, images):
    for number, (stem, clicks) in enumerate(CLICKS.items()):
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        for click in clicks:
            mask[int(click.y), int(click.x)] = [1, 255, 255][number]
        Image.fromarray(mask).save(tmp_path / f"{stem}_pixels0.png")
    points, skipped = read_points(tmp_path, images)
    assert skipped == []
    assert {stem: set(clicks) for stem, clicks in points.items()} == {s: set(c) for s, c in CLICKS.items()}


def test_masks_of_whole_targets_are_not_points(tmp_path, images):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[4:6, 7:9] = 255
    Image.fromarray(mask).save(tmp_path / "a.png")
    points, skipped = read_points(tmp_path, images)
    assert points == {}
    assert "areas, not points" in skipped[0].why
    with pytest.raises(InputError, match="areas, not points"):
        read_points(tmp_path / "a.png", images)


def test_notes_beside_masks_or_one_table_are_no_labels(tmp_path, images):
    saved(tmp_path / "README.txt", "how these were made")
    mask = Image.new("L", (WIDTH, HEIGHT))
    mask.putpixel((3, 7), 255)
    mask.save(tmp_path / "a.png")
    assert read_points(tmp_path, images) == ({"a": [Point(3.0, 7.0)]}, [])
    saved(tmp_path / "annotations.json", json.dumps(coco()))
    assert read_points(tmp_path, images) == (CLICKS, [])


def test_kinds_in_a_folder(tmp_path, images):
    saved(tmp_path / "a.xml", voc(CLICKS["a"], "a"))
    saved(tmp_path / "README.txt", "how these were made")
    assert read_points(tmp_path, images) == ({"a": CLICKS["a"]}, [])
    saved(tmp_path / "a.txt", "1 1")
    with pytest.raises(InputError, match=r"several kinds \(\.txt, \.xml\)"):
        read_points(tmp_path, images)


def test_categories(tmp_path, images):
    table = "image,x,y,category\na,1,1,point\na,2,2, Spot\na,3,3,EXTENDED\na,4,4,\na,5,5,plane\n"
    points, skipped = read_points(saved(tmp_path / "p.csv", table), images)
    assert [p.category for p in points["a"]] == ["point", "spot", "extended", None]
    assert reasons(skipped) == ["line 6: category is 'plane', not one of point, spot, extended"]
    voc_text = voc(CLICKS["a"], "a").replace("Target", "spot", 1)
    points, _ = read_points(saved(tmp_path / "a.xml", voc_text), images)
    assert [p.category for p in points["a"]] == ["spot", None]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("ghost.png,1,1", "line 3: no image is named 'ghost.png'; its points are left out"),
        ("a,40,1", "line 3: (40, 1) lies outside the 40x30 image 'a'"),
        ("a,39.5,1", "line 3: (39.5, 1) lies outside the 40x30 image 'a'"),
        ("a,1,-0.51", "line 3: (1, -0.51) lies outside the 40x30 image 'a'"),
        ("a,3,7.0", "line 3: (3, 7) in 'a' was given before; kept once"),
        ("a,three,7", "line 3: x is 'three', not a finite number"),
        ("a,3,nan", "line 3: y is 'nan', not a finite number"),
        ("a,inf,3", "line 3: x is 'inf', not a finite number"),
        ("a,1_0,3", "line 3: x is '1_0', not a finite number"),
        ("a,3", "line 3: y is '', not a finite number"),
        ("a,3,7,1,5", "line 3: 5 cells under a header of 3"),
    ],
)
def test_bad_rows_are_reported_and_the_rest_goes_on(tmp_path, images, row, why):
    path = saved(tmp_path / "p.csv", f"image,x,y\na,3,7\n{row}\na,5,5\n")
    points, skipped = read_points(path, images)
    assert points == {"a": [Point(3.0, 7.0), Point(5.0, 5.0)]}
    assert [(item.file, item.why) for item in skipped] == [(str(path), why)]


def test_pixels_reach_half_a_pixel_beyond_their_centers(tmp_path, images):
    table = "image,x,y\na,-0.5,-0.5\na,39.49,29.49\n"
    assert read_points(saved(tmp_path / "p.csv", table), images)[1] == []


def test_a_bad_image_is_reported_once(tmp_path, images):
    broken = saved(tmp_path / "broken.png", "not an image")
    table = "image,x,y\nghost,1,1\nbroken,1,1\nghost,2,2\nbroken,2,2\n"
    points, skipped = read_points(saved(tmp_path / "p.csv", table), images | {"broken": broken})
    assert points == {}
    assert len(skipped) == 2
    assert skipped[1].file == str(broken)


def test_annotated_at_another_size(tmp_path, images):
    other = voc(CLICKS["a"], "a").replace(f"<width>{WIDTH}", "<width>592")
    points, skipped = read_points(saved(tmp_path / "a.xml", other), images)
    assert points == {}
    assert reasons(skipped) == ["'a' was annotated at 592x30 but its image is 40x30"]
    unknown = voc(CLICKS["a"], "a").replace(f"<width>{WIDTH}", "<width>0")
    assert read_points(saved(tmp_path / "a.xml", unknown), images) == ({"a": CLICKS["a"]}, [])


def test_bad_file_in_a_folder_is_reported(tmp_path, images):
    saved(tmp_path / "a.xml", "<annotation>")
    saved(tmp_path / "b.1.xml", voc(CLICKS["b.1"], "b.1"))
    points, skipped = read_points(tmp_path, images)
    assert points == {"b.1": CLICKS["b.1"]}
    assert skipped[0].file == str(tmp_path / "a.xml")
    assert skipped[0].why.startswith("not well-formed XML")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", "", "the file is empty"),
        ("p.csv", "image,x,y\n", "holds no points"),
        ("p.csv", "a,3,7\n", "the header 'a,3,7' lacks image, x or y"),
        ("p.csv", "image,x,z\na,3,7\n", "lacks image, x or y"),
        ("p.csv", "image,x,x,y\na,3,3,7\n", "names two columns for x"),
        ("p.csv", "image,col,column,y\na,3,3,7\n", "names two columns for x"),
        ("p.json", "[]", "holds no points"),
        ("p.json", "{", "not JSON"),
        ("p.json", "3", "not a known format of points"),
        ("p.json", "[" * 100000, "not JSON"),
        ("p.xml", "<svg></svg>", "the root is <svg>"),
        ("p.xml", "<annotation>", "not well-formed XML"),
        ("p.png", "", "the file is empty"),
        ("p.pdf", "%PDF-1.5", "not a known format of points"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, images, name, content, message):
    path = saved(tmp_path / name, content)
    with pytest.raises(InputError) as error:
        read_points(path, images)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_and_empty_sources(tmp_path, images):
    for name in ("p.csv", "p.json", "p.xml", "p.png", "p"):
        with pytest.raises(InputError, match=name):
            read_points(tmp_path / name, images)
    with pytest.raises(InputError, match="no labels of these images"):
        read_points(tmp_path, images)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_xml_entities_are_refused(tmp_path, images, encoding):
    bomb = '<!DOCTYPE a [<!ENTITY x "xx"><!ENTITY y "&x;&x;">]>' + voc(CLICKS["a"], "a").replace(
        "Target", "&y;"
    )
    with pytest.raises(InputError, match="document type declaration is not accepted"):
        read_points(saved(tmp_path / "a.xml", bomb.encode(encoding)), images)


def test_nuaa_centroids_count_from_one(nuaa, tmp_path):
    images = find_files(nuaa / "images")
    points, skipped = read_points(nuaa / "centroids", images)
    assert skipped == []
    assert list(points) == sorted(images)
    assert sum(map(len, points.values())) == 533
    path = tmp_path / "points.csv"
    write_points(path, points)
    assert read_points(path, images) == (points, [])
    masks = find_files(nuaa / "masks")
    single = [stem for stem, clicks in points.items() if len(clicks) == 1][::10]
    offsets = []
    for stem in single:
        rows, columns = np.nonzero(read_mask(masks[stem]))
        offsets.append((points[stem][0].x - columns.mean(), points[stem][0].y - rows.mean()))
    assert len(offsets) > 20
    np.testing.assert_allclose(np.median(offsets, axis=0), 0, atol=0.03)


def bars(file):
    """Parse lines `image|x|y`, as text or as a JSON list."""
    lines = file.json() or file.text().splitlines()
    for number, line in enumerate(lines, 1):
        image, x, y = line.split("|")
        yield Entry((image,), f"line {number}", clicks=((x, y),))


@pytest.mark.parametrize(
    ("name", "folder"), [("p.bars", False), ("p.bars", True), ("p.json", False), ("p", False)]
)
def test_formats_are_registered_at_run_time(monkeypatch, tmp_path, images, name, folder):
    with pytest.raises(InputError):
        read_points(saved(tmp_path / name, "a|1|2"), images)
    monkeypatch.setitem(
        FORMATS, "bars", PointFormat(bars, (".bars", ".json"), lambda file: "|" in file.text())
    )
    content = json.dumps(["a|3|7", "b.1|9|two"]) if name == "p.json" else "a|3|7\nb.1|9|two"
    path = saved(tmp_path / name, content)
    points, skipped = read_points(tmp_path if folder else path, images)
    assert points == {"a": [Point(3.0, 7.0)]}
    assert [(item.file, item.why) for item in skipped] == [
        (str(path), "line 2: y is 'two', not a finite number")
    ]
    assert read_points(saved(tmp_path / "q.json", json.dumps(coco())), images) == (CLICKS, [])
