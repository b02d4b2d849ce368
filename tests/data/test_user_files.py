"""Label files and folders as annotation tools and public data sets write them."""

import json
import unicodedata

import numpy as np
import pytest
from PIL import Image

from mclc_gpu.data.datasets import select
from mclc_gpu.data.names import find_files, find_images_and_masks, unread_files
from mclc_gpu.data.points import read_points
from mclc_gpu.errors import InputError

HEIGHT, WIDTH = 64, 96


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("f", "g"):
        Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(folder / f"{name}.png")
    return find_files(folder)


def written(tmp_path, name, content):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "content", "supervision"),
    [
        ("a.csv", "image,x,y\nf,0.3125,0.32\ng,1,0.5\n", "point"),
        ("a.csv", "image,xmin,ymin,xmax,ymax\nf,0.276,0.258,0.359,0.383\n", "box"),
        ("labels/f.txt", "0.317708 0.320312\n", "point"),
        ("a.json", {"f": [[0.3, 0.2], [0.5, 0.25]]}, "point"),
        (
            "a.json",
            {
                "images": [{"id": 1, "file_name": "f.png"}],
                "annotations": [{"image_id": 1, "bbox": [0.2, 0.2, 0.1, 0.1]}],
            },
            "box",
        ),
    ],
)
def test_shares_of_the_size_are_no_pixels(tmp_path, images, name, content, supervision):
    path = written(tmp_path, name, content)
    with pytest.raises(InputError, match=r"all coordinates lie in 0\.\.1"):
        read_points(path.parent if path.parent != tmp_path else path, images, supervision)


@pytest.mark.parametrize("rows", ["f,0,1\ng,1,1\n", "f,0.5,0.25\ng,1.5,0.5\n"])
def test_pixels_near_the_corner_are_pixels(tmp_path, images, rows):
    points, skipped = read_points(written(tmp_path, "a.csv", "image,x,y\n" + rows), images)
    assert (len(points), skipped) == (2, [])


def test_yolo_lines(tmp_path, images):
    box = f"{30.5 / WIDTH} {20.5 / HEIGHT} {9 / WIDTH} {9 / HEIGHT}"
    corners = " ".join(f"{x / WIDTH} {y / HEIGHT}" for x, y in ((26, 16), (35, 16), (35, 25)))
    written(tmp_path, "yolo/classes.txt", "target\n")
    written(tmp_path, "yolo/f.txt", f"0 {box}\n0 {corners}\n")
    written(tmp_path, "yolo/g.txt", f"0 {box} {30.5 / WIDTH} {20.5 / HEIGHT} 2\n")
    points, skipped = read_points(tmp_path / "yolo", images, "box")
    assert [point.box for point in points["g"]] == [(26, 16, 34, 24)]
    assert [point.box for point in points["f"]] == [(26, 16, 34, 24)]
    assert [item.why for item in skipped] == [
        "line 2: the target at (30, 20) in 'f' was given before; kept once"
    ]
    points, skipped = read_points(tmp_path / "yolo", images)
    assert [(point.x, point.y) for point in points["g"]] == [(30, 20)]
    assert "line 1 is a box; --supervision box reads it" in [item.why for item in skipped]


def test_rectangle_of_four_corners(tmp_path, images):
    def shape(*points):
        return {"shape_type": "rectangle", "label": "target", "points": points}

    straight = shape([26, 16], [35, 16], [35, 25], [26, 25])
    turned = shape([26, 16], [35, 18], [33, 27], [24, 25])
    path = written(
        tmp_path, "f.json", {"shapes": [straight, turned], "imageHeight": HEIGHT, "imageWidth": WIDTH}
    )
    points, skipped = read_points(path, images, "box")
    assert [point.box for point in points["f"]] == [(26, 16, 34, 24)]
    assert [item.why for item in skipped] == ["shape 2 is a rectangle of 4 points; draw it again"]


@pytest.mark.parametrize(
    "said", ["<name>Target</name><pixels><id>0</id></pixels>", "<name>background</name>"]
)
def test_backgrounds_in_xml(tmp_path, images, said):
    written(tmp_path, "xml/f.xml", f"<annotation><object>{said}</object></annotation>")
    bounds = "<bndbox><xmin>27</xmin><ymin>17</ymin><xmax>35</xmax><ymax>25</ymax></bndbox>"
    written(tmp_path, "xml/g.xml", f"<annotation><object>{bounds}</object></annotation>")
    points, skipped = read_points(tmp_path / "xml", images, "box")
    assert points["f"] == []
    assert [point.box for point in points["g"]] == [(26, 16, 34, 24)]
    assert skipped == []


@pytest.mark.parametrize(
    "address",
    [
        "https://host.example/data/f.png?token=abc",
        "https://bucket.example/a/f.png?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Expires=60",
        "/data/local-files/?d=frames/f.png",
        "/data/upload/1/0a1b2c3d-f.png",
    ],
)
@pytest.mark.parametrize("rotation", [0, 90])
def test_addresses_and_rotation_of_label_studio(tmp_path, images, address, rotation):
    value = {"x": 100 * 30.5 / WIDTH, "y": 100 * 20.5 / HEIGHT, "keypointlabels": ["t"]}
    result = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": rotation, "value": value}
    task = {"data": {"img": address}, "annotations": [{"result": [result]}]}
    points, skipped = read_points(written(tmp_path, "a.json", [task]), images)
    if rotation:
        assert "on an image rotated by 90 degrees" in skipped[0].why
    else:
        assert [(point.x, point.y) for point in points["f"]] == [pytest.approx((30, 20))]
        assert skipped == []


def test_table_with_blanks_after_the_commas(tmp_path, images):
    points, skipped = read_points(
        written(tmp_path, "a.csv", '"image", "x", "y"\n"f.png", "30", "20"\n'), images
    )
    assert [(point.x, point.y) for point in points["f"]] == [(30, 20)]
    assert skipped == []


def test_names_in_other_forms_and_encodings(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in (unicodedata.normalize("NFD", "é1"), "帧2"):
        Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(folder / f"{name}.png")
    images = find_files(folder)
    composed = unicodedata.normalize("NFC", "é1")
    points, _ = read_points(written(tmp_path, "a.csv", f"image,x,y\n{composed}.png,3,4\n"), images)
    assert list(points) == [unicodedata.normalize("NFD", "é1")]
    table = written(tmp_path, "b.csv", "image,x,y\n帧2.png,3,4\n".encode("gbk"))
    assert "save the file as UTF-8" in read_points(table, images)[1][0].why


def test_text_files_named_like_masks(tmp_path, images):
    written(tmp_path, "labels/f_pixels0.txt", "30 20\n")
    points, _ = read_points(tmp_path / "labels", images)
    assert [(point.x, point.y) for point in points["f"]] == [(30, 20)]


def test_lossy_and_drawn_marks_are_no_clicks(tmp_path, images):
    marks = np.zeros((HEIGHT, WIDTH), np.uint8)
    marks[20, 30] = 255
    for name in ("jpeg", "plus"):
        (tmp_path / name).mkdir()
    Image.fromarray(marks).save(tmp_path / "jpeg" / "f.jpg")
    marks[20, 28:33] = marks[18:23, 30] = 255
    Image.fromarray(marks).save(tmp_path / "plus" / "f.png")
    assert "save the marks as PNG" in read_points(tmp_path / "jpeg", images)[1][0].why
    assert "9 connected pixels are a line" in read_points(tmp_path / "plus", images)[1][0].why


def touched(folder, *names):
    folder.mkdir(exist_ok=True, parents=True)
    for name in names:
        (folder / f"{name}.png").touch()
    return folder


def names(files):
    return {stem: path.stem for stem, path in files.items()}


@pytest.mark.parametrize("ending", ["", "_mask", "_gt", "_pixels0"])
def test_endings_of_masks(tmp_path, ending):
    images = touched(tmp_path / "images", "a", "b")
    masks = touched(tmp_path / "masks", f"a{ending}", "c")
    found, of_masks = find_images_and_masks(images, masks)
    assert names(found) == {"a": "a", "b": "b"}
    assert names(of_masks) == {"a": f"a{ending}", "c": "c"}


def test_images_and_masks_in_one_folder(tmp_path):
    mixed = touched(tmp_path / "mixed", "a", "a_mask", "b", "b_gt", "c")
    found, masks = find_images_and_masks(mixed, mixed)
    assert names(found) == {"a": "a", "b": "b", "c": "c"}
    assert names(masks) == {"a": "a_mask", "b": "b_gt"}
    numbered = touched(tmp_path / "numbered", "0_1", "0_2", "1_1", "1_2")
    found, masks = find_images_and_masks(numbered, numbered)
    assert names(found) == {"0": "0_1", "1": "1_1"}
    assert names(masks) == {"0": "0_2", "1": "1_2"}


def test_a_folder_is_not_its_own_masks(tmp_path):
    folder = touched(tmp_path / "frames", "a_1", "a_2", "b")
    with pytest.raises(InputError, match="each file would be its own mask"):
        find_images_and_masks(folder, tmp_path / "frames" / ".." / "frames")


def sequences(folder):
    for sequence in ("data6", "data7"):
        touched(folder / sequence, "0", "1")
    return folder


def test_frames_in_sub_folders(tmp_path):
    files = find_files(sequences(tmp_path / "images"))
    assert list(files) == ["data6/0", "data6/1", "data7/0", "data7/1"]
    chosen, skipped = select(files, ["data7/1", "x/data6/0.bmp", "0", "data8/1"])
    assert list(chosen) == ["data7/1", "data6/0"]
    assert [item.file for item in skipped] == ["0", "data8/1"]


def test_labels_of_other_sequences_are_reported(tmp_path):
    folder = tmp_path / "images"
    for sequence in ("data6", "data7"):
        (folder / sequence).mkdir(parents=True)
        for frame in "01":
            Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(folder / sequence / f"{frame}.png")
    rows = "".join(
        f"{name}/{frame}.bmp,{x},7\n" for x, name in ((3, "data6"), (9, "data7")) for frame in "01"
    )
    table = written(tmp_path, "a.csv", "image,x,y\n" + rows)
    one, skipped = read_points(table, find_files(folder / "data6"))
    assert {name: [point.x for point in own] for name, own in one.items()} == {"0": [3], "1": [3]}
    assert [item.why for item in skipped] == [
        f"line {line}: no image is named 'data7/{frame}.bmp'; its points are left out"
        for line, frame in ((4, 0), (5, 1))
    ]
    every, skipped = read_points(table, find_files(folder))
    assert {name: [point.x for point in own] for name, own in every.items()} == {
        "data6/0": [3], "data6/1": [3], "data7/0": [9], "data7/1": [9],
    }  # fmt: skip
    assert skipped == []


def test_names_in_several_other_folders_are_ambiguous(tmp_path, images):
    points, skipped = read_points(
        written(tmp_path, "a.csv", "image,x,y\np/f,3,4\nq/f,5,6\nr/g,7,8\n"), images
    )
    assert list(points) == ["g"]
    assert [item.why[:33] for item in skipped] == [
        "line 2: no image is named 'p/f'; ",
        "line 3: no image is named 'q/f'; ",
    ]


def test_masks_of_frames_in_sub_folders(tmp_path):
    images = sequences(tmp_path / "images")
    touched(tmp_path / "images" / "targets", "x")
    masks = sequences(tmp_path / "masks")
    touched(tmp_path / "masks" / "targets", "x_mask")
    found, of_masks = find_images_and_masks(images, masks)
    assert found.keys() == of_masks.keys() == {"data6/0", "data6/1", "data7/0", "data7/1", "targets/x"}


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
  <image id="0" name="f.png" width="96" height="64">
    <points label="spot" points="30.5,20.5;40.5,10.5" z_order="0"></points>
    <box label="target" xtl="26.0" ytl="16.0" xbr="35.0" ybr="25.0"></box>
    <polygon label="target" points="50.0,30.0;55.0,30.0;52.0,36.0"></polygon>
  </image>
  <image id="1" name="g.png" width="96" height="64"></image>
</annotations>"""
VIA_REGIONS = [
    {"shape_attributes": {"name": "point", "cx": 30.5, "cy": 20.5}, "region_attributes": {}},
    {
        "shape_attributes": {"name": "rect", "x": 26, "y": 16, "width": 9, "height": 9},
        "region_attributes": {},
    },
    {"shape_attributes": {"name": "circle", "cx": 52.5, "cy": 33, "r": 2.5}, "region_attributes": {}},
]
VIA = {
    "f.png1234": {"filename": "f.png", "size": 1234, "regions": VIA_REGIONS},
    "g.png1": {"filename": "g.png", "size": 1, "regions": []},
}


def via_table():
    lines = [
        "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"
    ]
    for number, region in enumerate(VIA_REGIONS):
        shape = json.dumps(region["shape_attributes"]).replace('"', '""')
        lines.append(f'f.png,1234,"{{}}",3,{number},"{shape}","{{}}"')
    return "\n".join([*lines, 'g.png,1,"{}",0,0,"{}","{}"'])


TOOLS = {
    "cvat.xml": CVAT,
    "via.json": VIA,
    "project.json": {"_via_settings": {}, "_via_img_metadata": VIA},
    "via.csv": via_table(),
}


@pytest.mark.parametrize("name", TOOLS)
def test_tools_with_points_and_boxes(tmp_path, images, name):
    path = written(tmp_path, name, TOOLS[name])
    points, _ = read_points(path, images)
    assert (points["f"][0].x, points["f"][0].y) == (30, 20)
    assert points["g"] == []
    points, _ = read_points(path, images, "box")
    assert points["f"][0].box == (26, 16, 34, 24)
    assert points["f"][1].box == ((50, 30, 54, 35) if name == "cvat.xml" else (50, 31, 54, 35))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("points.csv", "target,30.5,20.5,f.png,96,64\nspot,40.5,10.5,g.png,96,64\n"),
        (
            "points.csv",
            "label_name,point_x,point_y,image_name,image_width,image_height\ntarget,30.5,20.5,f.png,96,64\n"
            "spot,40.5,10.5,g.png,96,64\n",
        ),
        ("results.csv", " ,Label,Area,Mean,X,Y\n1,f.png,0,12,30.5,20.5\n2,g.png:0001-0002,0,9,40.5,10.5\n"),
    ],
)
def test_tables_of_points(tmp_path, images, name, content):
    points, skipped = read_points(written(tmp_path, name, content), images)
    assert {stem: [(point.x, point.y) for point in own] for stem, own in points.items()} == {
        "f": [(30, 20)], "g": [(40, 10)],
    }  # fmt: skip
    assert skipped == []


@pytest.mark.parametrize(
    "content", ["index,axis-0,axis-1\n0.0,20.0,30.0\n", " ,Area,Mean,X,Y\n1,0,12,30.5,20.5\n"]
)
def test_tables_named_like_their_image(tmp_path, images, content):
    written(tmp_path, "labels/f.csv", content)
    points, skipped = read_points(tmp_path / "labels", images)
    assert [(point.x, point.y) for point in points["f"]] == [(30, 20)]
    assert skipped == []


def test_boxes_of_make_sense(tmp_path, images):
    path = written(tmp_path, "boxes.csv", "target,26,16,9,9,f.png,96,64\n")
    points, skipped = read_points(path, images, "box")
    assert ([point.box for point in points["f"]], skipped) == ([(26, 16, 34, 24)], [])


def test_lines_of_boxes_for_all_images(tmp_path, images):
    path = written(
        tmp_path, "coco_val.txt", "/home/user/f.png 26,16,35,25,0 50,30,55,36,0\n/home/user/g.png\n"
    )
    points, skipped = read_points(path, images, "box")
    assert [point.box for point in points["f"]] == [(26, 16, 34, 24), (50, 30, 54, 35)]
    assert (points["g"], skipped) == ([], [])


def test_polygons_and_circles_of_labelme(tmp_path, images):
    shapes = [
        {"shape_type": "polygon", "points": [[26, 16], [35, 18], [30, 25]]},
        {"shape_type": "circle", "points": [[52.5, 33.5], [52.5, 36]]},
    ]
    points, skipped = read_points(written(tmp_path, "f.json", {"shapes": shapes}), images, "box")
    assert [point.box for point in points["f"]] == [(26, 16, 34, 24), (50, 31, 54, 35)]
    assert skipped == []


def test_other_tables_say_what_they_lack(tmp_path, images):
    with pytest.raises(InputError, match="lacks image, x or y"):
        read_points(written(tmp_path, "a.csv", "frame,u,v\nf,3,4\n"), images)


def test_files_of_other_formats_are_reported(tmp_path):
    folder = touched(tmp_path / "frames", "a")
    (folder / "b.fits").touch()
    (folder / "notes.txt").touch()
    (item,) = unread_files(folder)
    assert (item.file, item.why) == (
        str(folder / "b.fits"),
        ".fits files are not read; export the frames as PNG or TIFF",
    )
