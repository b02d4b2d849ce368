"""Annotations of a folder: edits, undo, the journal that keeps them, and several browsers."""

import errno
import os
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from annotating import client_of, edit, mask_of
from starlette.testclient import TestClient

from mclc_gpu.annotate.checking import check_targets, parts_of
from mclc_gpu.annotate.journal import JOURNAL
from mclc_gpu.annotate.labels import finals
from mclc_gpu.annotate.seconds import Seconds
from mclc_gpu.annotate.state import Annotation, ImageState
from mclc_gpu.annotate.suggest import detector_of, suggestions_of
from mclc_gpu.annotate.work import Work
from mclc_gpu.data.annotations import Point
from mclc_gpu.data.images import read_image
from mclc_gpu.data.points import write_points
from mclc_gpu.errors import InputError

SHAPE = 64, 64


def targets(client: TestClient, index: int = 0) -> list[dict]:
    return client.get(f"/api/images/{index}").json()["targets"]


def refused(client: TestClient, status: int, match: str, *edits: dict, index: int = 0) -> None:
    """Check that some edits are refused with one line, and change nothing."""
    before = targets(client, index)
    answer = client.post(f"/api/images/{index}/edits", json={"client": "a", "edits": list(edits)})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert match in error
    assert "\n" not in error
    assert targets(client, index) == before


def brightest(frames: Path, name: str) -> tuple[int, int]:
    """Return x and y of the brightest pixel of a frame."""
    row, column = np.unravel_index(read_image(frames / "images" / f"{name}.png").argmax(), SHAPE)
    return int(column), int(row)


@pytest.fixture
def clicked(open_session, frames: Path) -> TestClient:
    """Client of a session with one click on the brightest pixel of the first image."""
    session = open_session()
    client = client_of(session)
    x, y = brightest(frames, session.names[0])
    edit(client, 0, {"op": "add", "x": x, "y": y})
    return client


def test_steps_go_along_nested_candidates(clicked: TestClient) -> None:
    (target,) = targets(clicked)
    least, greatest = target["steps"]
    assert least < 0 < greatest
    details = clicked.get("/api/images/0/targets/0").json()
    assert details["chosen"] == -least
    masks = []
    for step in range(least, greatest + 1):
        (changed,) = edit(clicked, 0, {"op": "step", "id": 0, "step": step})["targets"]
        masks.append(mask_of(changed, SHAPE))
        assert (changed["step"], changed["corrected"]) == (step, None if step == 0 else "step")
        assert changed["area"] == details["areas"][details["chosen"] + step]
    assert all((small <= large).all() and small.sum() < large.sum() for small, large in pairwise(masks))
    assert np.array_equal(masks[-least], mask_of(target, SHAPE))
    assert sum(details["weights"]) == pytest.approx(1, abs=1e-4)
    refused(clicked, 422, "go from", {"op": "step", "id": 0, "step": greatest + 1})


def test_edits_of_a_target(clicked: TestClient) -> None:
    (before,) = targets(clicked)
    (changed,) = edit(clicked, 0, {"op": "category", "id": 0, "category": "spot"})["targets"]
    assert (changed["category"], changed["estimated"]) == ("spot", "spot")
    corners = [[9.6, 19.6], [13.4, 19.6], [13.4, 22.4], [9.6, 22.4]]
    (changed,) = edit(clicked, 0, {"op": "polygon", "id": 0, "corners": corners})["targets"]
    assert changed["mask"] == {"top": 20, "left": 10, "height": 3, "width": 4, "runs": [0, 12]}
    assert (changed["corrected"], changed["confidence"]) == ("polygon", 1.0)
    (changed,) = edit(
        clicked, 0, {"op": "automatic", "id": 0}, {"op": "category", "id": 0, "category": None}
    )["targets"]
    assert changed == before | {"flags": None}
    (changed,) = edit(clicked, 0, {"op": "move", "id": 0, "x": 1, "y": 2})["targets"]
    assert (changed["x"], changed["y"]) == (1, 2)
    assert edit(clicked, 0, {"op": "delete", "id": 0})["removed"] == [0]
    assert edit(clicked, 0, {"op": "add", "x": 1, "y": 2})["added"] == [1]


def test_marks_of_other_kinds(clicked: TestClient) -> None:
    answer = edit(
        clicked,
        1,
        {"op": "add", "box": [10, 12, 15, 16]},
        {"op": "add", "stroke": [[30, 30], [33, 30], [33, 32]]},
        {"op": "add", "x": 50, "y": 50, "seeds": [[51, 50], [50, 50]]},
    )
    kinds = [(target["kind"], target["box"], len(target["seeds"])) for target in answer["targets"]]
    assert kinds == [("box", [10, 12, 15, 16], 0), ("scribble", None, 5), ("clicks", None, 1)]
    (changed,) = edit(clicked, 1, {"op": "marks", "id": 2, "box": [48, 48, 52, 52]})["targets"]
    assert changed["kind"] == "box"


def test_a_neighbor_changes_the_masks_of_both(open_session, frames: Path) -> None:
    session = open_session()
    client = client_of(session)
    x, y = brightest(frames, session.names[0])
    edit(client, 0, {"op": "add", "x": x, "y": y}, {"op": "add", "x": min(x + 20, 63), "y": y})
    answer = edit(client, 0, {"op": "add", "x": x + 1, "y": y + 1})
    assert answer["added"] == [2]
    assert {target["id"] for target in answer["targets"]} >= {0, 2}


def test_undo_and_redo(clicked: TestClient) -> None:
    (first,) = targets(clicked)
    edit(clicked, 0, {"op": "add", "x": 3, "y": 60}, {"op": "done", "done": True})
    edit(clicked, 0, {"op": "delete", "id": 0})
    after = targets(clicked)

    def go(way: str) -> dict:
        return clicked.post(f"/api/{way}", json={"client": "a"}).json()

    assert go("undo")["added"] == [0]
    assert go("undo") | {"ms": 0} == {
        "revision": 5, "index": 0, "added": [], "removed": [1], "targets": [], "done": False,
        "suggestions": [], "ms": 0,
    }  # fmt: skip
    assert targets(clicked) == [first]
    assert (go("redo")["done"], go("redo")["removed"]) == (True, [0])
    assert targets(clicked) == after
    assert clicked.post("/api/redo", json={"client": "a"}).status_code == 404
    go("undo")
    edit(clicked, 0, {"op": "add", "x": 9, "y": 9})
    assert clicked.post("/api/redo", json={"client": "a"}).json() == {"error": "nothing to redo"}


def test_undo_does_not_take_back_what_another_browser_did(clicked: TestClient) -> None:
    edit(clicked, 0, {"op": "category", "id": 0, "category": "spot"}, who="b")
    answer = clicked.post("/api/undo", json={"client": "a"})
    assert (answer.status_code, "another browser" in answer.json()["error"]) == (409, True)
    assert targets(clicked)[0]["category"] == "spot"
    refused(clicked, 409, "load it again", {"op": "delete", "id": 7})


@pytest.mark.parametrize(
    ("match", "edits"),
    [
        ("outside the 64x64 image", {"op": "add", "x": 64, "y": 5}),
        ("outside the 64x64 image", {"op": "add", "x": 5, "y": -0.6}),
        ("give a number", {"op": "add", "x": "5", "y": 5}),
        ("give a number", {"op": "add", "x": True, "y": 5}),
        ("give a number", {"op": "add", "x": 1e300, "y": 5}),
        ("marks:", {"op": "add", "x": 5}),
        ("marks:", {"op": "add"}),
        ("marks:", {"op": "add", "x": 5, "y": 5, "box": [1, 1, 2, 2]}),
        ("box:", {"op": "add", "box": [5, 5, 4, 5]}),
        ("places:", {"op": "add", "stroke": []}),
        ("window larger", {"op": "add", "stroke": [[0, 0], [63, 63]], "category": "point"}),
        ("category:", {"op": "add", "x": 5, "y": 5, "category": "huge"}),
        ("use one of", {"op": "explode"}),
        ("takes", {"op": "delete"}),
        ("takes", {"op": "delete", "id": 0, "more": 1}),
        ("whole number", {"op": "step", "id": 0, "step": 0.5}),
        ("mask:", {"op": "mask", "id": 0, "mask": {"runs": [1]}}),
        ("no pixel's center", {"op": "polygon", "id": 0, "corners": [[5.1, 5.1], [5.2, 5.1], [5.2, 5.2]]}),
        ("places:", {"op": "polygon", "id": 0, "corners": [[5, 5], [6, 6]]}),
        ("true or false", {"op": "done", "done": 1}),
    ],
)
def test_edits_that_cannot_be_made_are_refused_whole(clicked: TestClient, match: str, edits: dict) -> None:
    refused(clicked, 422, match, {"op": "add", "x": 40, "y": 40}, edits)


def test_clicks_at_odd_places_give_masks(clicked: TestClient) -> None:
    (target,) = targets(clicked)
    refused(clicked, 422, "marked already", {"op": "add", "x": target["x"], "y": target["y"]})
    places = [(-0.5, -0.5), (63.4, 63.4), (0, 30), (target["x"] + 0.5, target["y"])]
    for x, y in places:
        answer = edit(clicked, 0, {"op": "add", "x": x, "y": y})
        assert all(one["area"] > 0 and not one["problem"] for one in answer["targets"])


def test_flat_and_tiny_images_take_clicks(open_session, frames: Path, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    np.save(folder / "flat.npy", np.full((40, 50), 7.5, np.float32))
    np.save(folder / "one.npy", np.ones((1, 1), np.uint16))
    (folder / "broken.png").write_bytes(b"no image")
    client = client_of(open_session(images=folder))
    assert client.get("/api/images").json()["names"] == ["broken", "flat", "one"]
    assert edit(client, 1, {"op": "add", "x": 20, "y": 20})["targets"][0]["area"] == 9
    assert edit(client, 2, {"op": "add", "x": 0, "y": 0})["targets"][0]["area"] == 1
    answer = client.get("/api/images/0")
    assert answer.status_code == 422
    assert "broken.png" in answer.json()["error"]
    assert client.get("/api/images").json()["problems"].keys() == {"0"}
    assert client.get("/api/images/2/thumbnail").content.startswith(b"\x89PNG")


def test_everything_is_there_after_a_restart(open_session, frames: Path, tmp_path: Path) -> None:
    session = open_session()
    client = client_of(session)
    x, y = brightest(frames, session.names[0])
    edit(client, 0, {"op": "add", "x": x, "y": y}, {"op": "step", "id": 0, "step": 1})
    edit(client, 1, {"op": "add", "box": [10, 12, 15, 16]}, {"op": "reject", "x": 3, "y": 4})
    client.post("/api/undo", json={"client": "a"})
    assert client.post("/api/settings", json={"client": "a", "polarity": "auto"}).status_code == 200
    state, shown = session.state, [client.get(f"/api/images/{i}").json() for i in (0, 1)]
    session = open_session()
    again = client_of(session)
    assert session.state.images == state.images
    assert session.config.components.polarity == "auto"
    for index, before in enumerate(shown):
        assert again.get(f"/api/images/{index}").json() == before
    assert again.post("/api/redo", json={"client": "a"}).json()["added"] == [0]
    assert again.post("/api/undo", json={"client": "a"}).json()["removed"] == [0]


def test_a_torn_last_line_is_dropped_and_damage_is_named(open_session, tmp_path: Path) -> None:
    session = open_session()
    edit(client_of(session), 0, {"op": "add", "x": 5, "y": 5})
    path = tmp_path / "out" / JOURNAL
    whole = path.read_bytes()
    path.write_bytes(whole + whole.splitlines(keepends=True)[-1][:30])
    again = open_session()
    assert again.state.images == session.state.images
    assert path.read_bytes() == whole
    lines = whole.splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:20] + b"\n" + lines[1])
    with pytest.raises(InputError, match="line 2 is damaged"):
        open_session()
    path.write_bytes(lines[1] + lines[0])
    with pytest.raises(InputError, match="another version"):
        open_session()


def test_a_full_disk_loses_and_changes_nothing(open_session, tmp_path: Path, monkeypatch) -> None:
    session = open_session()
    client = client_of(session)
    edit(client, 0, {"op": "add", "x": 5, "y": 5})
    before, state = (tmp_path / "out" / JOURNAL).read_bytes(), session.state.images

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mclc_gpu.annotate.journal.os.fsync", full)
    answer = client.post(
        "/api/images/0/edits", json={"client": "a", "edits": [{"op": "add", "x": 9, "y": 9}]}
    )
    assert answer.status_code == 507
    assert "No space left" in answer.json()["error"]
    assert ((tmp_path / "out" / JOURNAL).read_bytes(), session.state.images) == (before, state)
    monkeypatch.undo()
    assert edit(client, 0, {"op": "add", "x": 9, "y": 9})["added"] == [1]


def test_points_to_begin_with_are_taken_once(open_session, frames: Path, tmp_path: Path) -> None:
    names = open_session(out=tmp_path / "other").names
    table = tmp_path / "points.csv"
    write_points(table, {names[0]: [Point(5, 6, "spot"), Point(30, 31)], names[2]: [Point(7, 8)]})
    session = open_session(points=table)
    shown = client_of(session)
    assert [len(targets(shown, index)) for index in range(4)] == [2, 0, 1, 0]
    assert targets(shown)[0]["category"] == "spot"
    edit(shown, 0, {"op": "delete", "id": 1})
    assert open_session(points=table).state.images == session.state.images
    write_points(table, {names[1]: [Point(5, 6)]})
    with pytest.raises(InputError, match="holds annotations already"):
        open_session(points=table)
    write_points(table, {"elsewhere": [Point(5, 6)]})
    with pytest.raises(InputError, match="no image is named 'elsewhere'"):
        open_session(points=table, out=tmp_path / "third")


def test_an_import_that_was_cut_off_leaves_nothing(open_session, tmp_path: Path) -> None:
    names = open_session(out=tmp_path / "other").names
    table = tmp_path / "points.csv"
    write_points(table, {names[0]: [Point(5, 6, "spot")], names[2]: [Point(7, 8)]})
    session = open_session(points=table)
    path = tmp_path / "out" / JOURNAL
    whole = path.read_bytes()
    for end in range(whole.index(b"\n") + 1, len(whole), 40):
        path.write_bytes(whole[:end])
        assert open_session().state.images == {}
    assert open_session(points=table).state.images == session.state.images


def test_undo_sent_twice_at_once_is_done_once(clicked: TestClient, open_session) -> None:
    session = open_session()
    name = session.names[0]
    session.edit(name, "a", [{"op": "add", "x": 3, "y": 60}])
    before, answers = len(session.state.image(name).targets), []
    ask = lambda: answers.append(session.undo("a", "undo", "one"))  # noqa: E731
    threads = [threading.Thread(target=ask) for _ in range(2)]
    with session._lock_of(name):  # both wait here, each having found that the request is new
        for thread in threads:
            thread.start()
        time.sleep(0.2)
    for thread in threads:
        thread.join()
    assert len(session.state.image(name).targets) == before - 1
    assert [answer["removed"] for answer in answers] == [[1], [1]]


def test_undo_does_not_give_two_targets_the_same_marks(clicked: TestClient) -> None:
    (target,) = targets(clicked)
    edit(clicked, 0, {"op": "delete", "id": 0})
    edit(clicked, 0, {"op": "add", "x": target["x"], "y": target["y"]}, who="b")
    assert clicked.post("/api/undo", json={"client": "a"}).status_code == 409
    assert [one["id"] for one in targets(clicked)] == [1]


def test_windows_are_told_the_counts_of_an_edited_image(open_session) -> None:
    session = open_session()
    heard: list[tuple[str, dict]] = []
    session.listeners.append(lambda event, data: heard.append((event, data)))
    session.edit(session.names[1], "a", [{"op": "add", "x": 9, "y": 9}, {"op": "done", "done": True}])
    assert heard == [
        ("edit", {"revision": 1, "index": 1, "client": "a", "targets": 1, "corrected": 0, "done": True})
    ]


def test_a_journal_of_another_set_is_refused(open_session, tmp_path: Path) -> None:
    edit(client_of(open_session()), 0, {"op": "add", "x": 5, "y": 5})
    folder = tmp_path / "else"
    folder.mkdir()
    np.save(folder / "one.npy", np.ones((9, 9), np.uint8))
    with pytest.raises(InputError, match="give the folder of that set"):
        open_session(images=folder)


def test_many_browsers_at_once_lose_no_click(open_session) -> None:
    session = open_session()
    failures: list[str] = []

    def work(number: int) -> None:
        own = client_of(session)
        for x in range(10):
            place = {"op": "add", "x": 2 + 6 * x, "y": 5 + 7 * number}
            answer = own.post(f"/api/images/{x % 2}/edits", json={"client": f"c{number}", "edits": [place]})
            if answer.status_code != 200:
                failures.append(answer.text)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    found = {
        (one.point.x, one.point.y)
        for state in session.state.images.values()
        for one in state.targets.values()
    }
    assert found == {(2 + 6 * x, 5 + 7 * number) for x in range(10) for number in range(8)}
    assert session.state.revision == 80


def test_seconds_per_target_leave_out_pauses() -> None:
    seconds = Seconds()
    seconds.add("a", 0.0, "one", ())
    seconds.add("a", 4.0, "one", [0])
    seconds.add("b", 5.0, "one", [7])
    seconds.add("a", 10.0, "one", [1])
    seconds.add("a", 13.0, "two", ())
    seconds.add("a", 1000.0, "two", [0])
    seconds.add("a", 1001.0, "two", [5])
    states = {"one": ImageState({n: Annotation(Point(n, 0)) for n in (0, 1, 7)}),
              "two": ImageState({0: Annotation(Point(0, 0))})}  # fmt: skip
    assert list(seconds.rows(states)) == [
        ("one", 0, 4.0, 1), ("one", 1, 9.0, 1), ("one", 2, 0.0, 1), ("two", 0, 30.0, 1),
        ("two", None, 1.0, 1),
    ]  # fmt: skip


def test_suggestions_are_shown_until_they_are_taken_or_rejected(open_session, frames: Path) -> None:
    session = open_session()
    name = session.names[0]
    detect = detector_of("tophat", frames / "images", session.names)
    found = suggestions_of(detect(name, session.frames.frame(name).pixels))
    assert found
    work = Work(session, "tophat", detect)

    def shown() -> dict:
        _, state, labels = session.label(name)
        return work.suggested(name, state, labels)

    assert shown()["suggestions_state"] == "pending"
    work._treat(name)
    assert [one["x"] for one in shown()["suggestions"]] == [one.x for one in found]
    session.edit(name, "a", [{"op": "add", "x": found[0].x, "y": found[0].y, "suggestion": True}])
    left = shown()["suggestions"]
    assert (found[0].x, found[0].y) not in [(one["x"], one["y"]) for one in left]
    for one in left:
        session.edit(name, "a", [{"op": "reject", "x": one["x"], "y": one["y"]}])
    assert shown() == {"suggestions": [], "suggestions_state": "ready"}
    with pytest.raises(InputError, match="give a checkpoint, or one of tophat"):
        detector_of("nothing", frames, session.names)


def test_doubtful_targets_come_first(clicked: TestClient, open_session) -> None:
    session = open_session()
    edit(client_of(session), 1, {"op": "add", "x": 10, "y": 50})
    work = Work(session)
    assert work.queue(10) == {"pending": 2, "targets": []}
    for name in session.names[:2]:
        work._treat(name)
    found = work.queue(10)
    assert found["pending"] == 0
    urgencies = [target["urgency"] for target in found["targets"]]
    assert urgencies == sorted(urgencies, reverse=True)
    assert all(target["flags"] for target in found["targets"])
    session.edit(session.names[1], "a", [{"op": "done", "done": True}])
    assert all(target["index"] != 1 for target in work.queue(10)["targets"])


def test_parts_of_a_huge_image_are_checked_as_the_whole(open_session, tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "wide"
    folder.mkdir()
    draw = np.random.default_rng(5)
    pixels = draw.integers(90, 110, (300, 700)).astype(np.uint8)
    places = [(0, 0), (3, 699), (64, 64), (66, 70), (127, 127), (128, 400), (150, 431), (299, 640), (200, 10)]
    for y, x in places:
        pixels[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 3] = draw.integers(150, 255)
    np.save(folder / "a.npy", pixels)
    session = open_session(images=folder)
    doubtful = [(250, 300), (130, 402), (140, 500)]
    edit(client_of(session), 0, *({"op": "add", "x": x, "y": y} for y, x in places + doubtful))
    edit(client_of(session), 0, {"op": "polygon", "id": 8, "corners": [[5, 150], [20, 150], [20, 230]]})
    _, _, labels = session.label("a")
    whole = check_targets("a", pixels.shape, finals(labels), session.config, 0)
    monkeypatch.setattr("mclc_gpu.annotate.checking._WHOLE", 0)
    assert len(list(parts_of(pixels.shape, finals(labels)))) > 3
    parts = check_targets("a", pixels.shape, finals(labels), session.config, 0)
    view = (0, 0, 0, 0)
    shown = [{place: replace(one, view=view) for place, one in found.items()} for found in (whole, parts)]
    assert shown[0] == shown[1]
    assert any(one.flags for one in whole.values())
