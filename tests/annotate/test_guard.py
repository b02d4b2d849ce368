"""Requests that the server refuses: of strangers, of other sites, too large, too many, malformed."""

import asyncio
import base64
import json
import os
import random
import shutil
import time
from pathlib import Path

import pytest
from annotating import PORT, client_of, edit
from starlette.testclient import TestClient

from mclc_gpu.annotate.edits import _OPERATIONS
from mclc_gpu.annotate.guard import COOKIE, MOST_BODY, Guard
from mclc_gpu.data.names import find_files

TOKEN = "a-token-of-the-test"


def status(client: TestClient, path: str = "/api/session", **headers: str) -> int:
    answer = client.get(path, headers=headers)
    if answer.status_code >= 400:
        assert "\n" not in answer.json()["error"]
    return answer.status_code


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 200),
        ({"Host": f"localhost:{PORT}"}, 200),
        ({"Host": f"[::1]:{PORT}"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": f"evil.example:{PORT}"}, 403),
        ({"Host": "127.0.0.1:1"}, 403),
        ({"Host": f"127.0.0.1:{PORT}", "Origin": f"http://127.0.0.1:{PORT}"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": f"https://127.0.0.1:{PORT}"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
def test_host_and_origin(client: TestClient, headers: dict, expected: int) -> None:
    assert status(client, **headers) == expected


def test_a_token_is_asked_for_and_kept_as_a_cookie(open_session) -> None:
    client = client_of(open_session(), token=TOKEN)
    assert status(client) == 401
    assert status(client, Authorization="Bearer wrong") == 401
    assert status(client, Authorization=f"Basic {TOKEN}") == 401
    assert status(client, Authorization=f"Bearer {TOKEN}", Host="any.name:99") == 200
    password = base64.b64encode(f"anybody:{TOKEN}".encode()).decode()
    assert status(client, "/health", Authorization=f"Basic {password}") == 200
    assert status(client, "/v1/models", Token=TOKEN) == 200
    assert status(client, "/?token=wrong") == 401
    assert status(client, f"/api/session?token={TOKEN}") == 401
    answer = client.get(f"/?token={TOKEN}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert {"httponly", "samesite=lax"} <= set(answer.headers["set-cookie"].lower().split("; "))
    assert client.cookies[COOKIE] == TOKEN
    assert status(client) == 200
    assert status(client, "/") == 200
    client.cookies.clear()
    assert status(client, Cookie=f'odd{{}}=[1 2]"; {COOKIE}={TOKEN}; other') == 200
    assert status(client, Cookie=f"other={TOKEN}") == 401


def test_large_bodies_are_for_images_only(client: TestClient) -> None:
    """A body above the limit of the others is taken if all but the image's text is below it."""
    many = '{"model": [' + "[]," * (MOST_BODY // 3) + '[]], "image": "%s"}'
    answer = client.post("/v1/predict", content=many % ("A" * 9))
    assert (answer.status_code, "besides its image" in answer.json()["error"]) == (400, True)
    answer = client.post("/v1/predict", content='{"model": "mclc-gpu", "image": "' + "A" * MOST_BODY + '"}')
    assert (answer.status_code, answer.json()["error"]["code"]) == (200, "INVALID_IMAGE")


def test_names_that_are_no_text_can_be_shown(open_session, frames: Path, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    source = find_files(frames / "images")
    try:
        shutil.copy(next(iter(source.values())), folder / os.fsdecode(b"a\xff.png"))
        (folder / os.fsdecode(b"b\xff.png")).write_bytes(b"no image")
    except OSError:
        pytest.skip("this file system takes no such names")
    client = client_of(open_session(images=folder))
    edit(client, 0, {"op": "add", "x": 20, "y": 20})
    assert status(client, "/api/images/1") == 422
    shown = client.get("/api/images").json()
    assert shown["names"] == ["a?", "b?"]
    assert "b?.png" in shown["problems"]["1"]
    assert client.get("/api/seconds.csv").content.splitlines()[1].startswith(b"a\xff,0,")


def test_too_large_and_too_many(client: TestClient, monkeypatch) -> None:
    answer = client.post("/api/undo", content=b"x" * (MOST_BODY + 1))
    assert answer.status_code == 413

    def parts():
        for _ in range(MOST_BODY // 65536 + 1):
            yield b"x" * 65536

    assert client.post("/api/undo", content=parts()).status_code == 413
    guard: Guard = client.app  # type: ignore[assignment]
    monkeypatch.setattr("mclc_gpu.annotate.guard._PER_SECOND", 0.5)
    guard._budgets["testclient"] = (0.0, time.monotonic())
    answer = client.get("/api/session")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")


def test_a_body_that_does_not_arrive_is_not_waited_for(client: TestClient, monkeypatch) -> None:
    monkeypatch.setattr("mclc_gpu.annotate.guard._BODY_SECONDS", 0.01)
    sent = []

    async def receive() -> dict:
        await asyncio.sleep(5)
        raise AssertionError

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/api/undo", "query_string": b"", "client": ("a", 1),
        "headers": [(b"host", f"127.0.0.1:{PORT}".encode()), (b"content-length", b"9")],
    }  # fmt: skip
    asyncio.run(client.app(scope, receive, send))  # type: ignore[arg-type, misc]
    assert sent[0]["status"] == 408


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/api/images/4", 404), ("/api/images/-1", 404), ("/api/images/1e3", 404), ("/api/images/../x", 404),
        ("/api/images/0/tiles/0/1/0", 404), ("/api/images/0/tiles/1/0/0", 404),
        ("/api/images/0/tiles/0/0/0?pool=sum", 400), ("/api/images/0/targets/9", 404),
        ("/page/..%2f..%2fpyproject.toml", 404), ("/page/%2e%2e/session.py", 404), ("/page/none.js", 404),
        ("/etc/passwd", 404), ("/api/queue?limit=x", 400), ("/api/images/99999999999999999999", 404),
        ("/api/images/" + "9" * 5000, 404), ("/api/images/0/tiles/999999999/0/0", 404),
    ],
)  # fmt: skip
def test_what_does_not_exist_is_said_in_one_line(client: TestClient, path: str, expected: int) -> None:
    assert status(client, path) == expected


def test_the_page_is_served_with_a_strict_policy(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert client.get("/", headers={"If-None-Match": answer.headers["etag"]}).status_code == 304


BAD = ["", "{", "[]", "null", '"x"', "{}", '{"client": 1, "edits": []}', '{"client": "a b", "edits": [1]}']
BAD += [
    '{"client": "a", "edits": []}',
    '{"client": "a", "edits": {}}',
    '{"client": "a", "edits": [1], "z": 1}',
]
BAD += [
    '{"client": "a", "edits": [NaN]}',
    "[" * 100_000,
    '{"client": "' + "a" * 65 + '", "edits": [1]}',
    "\xff",
]


@pytest.mark.parametrize("body", BAD)
def test_malformed_requests_are_refused(client: TestClient, body: str) -> None:
    answer = client.post("/api/images/0/edits", content=body.encode("latin-1"))
    assert answer.status_code == 400
    assert "\n" not in answer.json()["error"]


def junk(draw: random.Random) -> object:
    """Return some JSON value."""
    small = [0, 1, 5, -1, 2.5, 63, 64, 1e9, -0.5, True, None, "", "x", "spot", [], {}, [1, 2], 1 << 70]
    return draw.choice([*small, [[1, 2], [3, 4]], [[0, 0], ["x", 1]], {"top": 0, "runs": [1]}])


def field(draw: random.Random, name: str, number: int) -> object:
    """Return a value that a field of an edit may have, or junk; `number` is that of a target."""
    x, y = draw.randint(-2, 65), draw.randint(-2, 65)
    size = draw.randint(1, 4)
    good: dict[str, object] = {
        "id": number, "x": x, "y": y, "box": [x, y, x + size, y + size],
        "seeds": [[x, y]], "stroke": [[x, y], [x + size, y]], "corners": [[x, y], [x + 4, y], [x, y + size]],
        "mask": {"top": x, "left": y, "height": size, "width": 2, "runs": [1, 2 * size - 1]},
        "category": draw.choice([None, "spot", "point"]), "step": draw.randint(-3, 3), "how": "brush",
        "done": draw.random() < 0.5, "suggestion": True,
    }  # fmt: skip
    return junk(draw) if draw.random() < 0.1 else good[name]


def test_random_edits_are_made_or_refused(client: TestClient) -> None:
    draw = random.Random(0)
    seen = set()
    for turn in range(160):
        if turn % 10 == 0:
            number = edit(client, 0, {"op": "add", "x": turn % 64, "y": turn / 5}, who="b")["added"][0]
        name, (_, required, optional) = draw.choice(list(_OPERATIONS.items()))
        names = sorted(required) + [one for one in sorted(optional) if draw.random() < 0.4]
        body = {"client": "a", "edits": [{"op": name} | {one: field(draw, one, number) for one in names}]}
        answer = client.post("/api/images/0/edits", json=body)
        assert answer.status_code in (200, 409, 422), (body, answer.text)
        seen.add((name, answer.status_code))
        if answer.status_code != 200:
            assert "\n" not in answer.json()["error"]
        if draw.random() < 0.1:
            assert client.post("/api/undo", json={"client": "a"}).status_code in (200, 404)
    assert len({name for name, status in seen if status == 200}) >= len(_OPERATIONS) - 2
    assert {status for _, status in seen} == {200, 409, 422}
    assert client.get("/api/images/0").status_code == 200


def test_random_bytes_are_refused(client: TestClient) -> None:
    draw = random.Random(1)
    good = json.dumps({"client": "a", "edits": [{"op": "add", "x": 5, "y": 5}]}).encode()
    for _ in range(100):
        damaged = bytearray(good)
        for _ in range(draw.randint(1, 6)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        answer = client.post("/api/images/1/edits", content=bytes(damaged))
        assert answer.status_code in (200, 400, 409, 422), answer.text
