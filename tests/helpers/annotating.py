"""Clients of an annotation server, without a network."""

import numpy as np
from starlette.testclient import TestClient

from mclc_gpu.annotate.jobs import jobs_of
from mclc_gpu.annotate.server import Server
from mclc_gpu.annotate.session import Session
from mclc_gpu.annotate.work import Work
from mclc_gpu.data.exports import EXPORTS

PORT = 8765


def client_of(session: Session, token: str | None = None, **headers: str) -> TestClient:
    """Return a client of a server of a session, whose background thread does not run."""
    app = Server(session, Work(session, jobs=jobs_of(session), formats=list(EXPORTS))).app(PORT, token)
    return TestClient(app, base_url=f"http://127.0.0.1:{PORT}", headers=headers, follow_redirects=False)


def edit(client: TestClient, index: int, *edits: dict, who: str = "a") -> dict:
    """Make some edits of an image; return the answer."""
    answer = client.post(f"/api/images/{index}/edits", json={"client": who, "edits": list(edits)})
    assert answer.status_code == 200, answer.text
    return answer.json()


def mask_of(content: dict, shape: tuple[int, int]) -> np.ndarray:
    """Return the mask of a target as a page draws it, in its image."""
    mask, box = np.zeros(shape, bool), content["mask"]
    inside = np.arange(len(box["runs"])) % 2 == 1
    own = np.repeat(inside, box["runs"]).reshape(box["height"], box["width"])
    mask[box["top"] : box["top"] + box["height"], box["left"] : box["left"] + box["width"]] = own
    return mask
