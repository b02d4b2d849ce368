"""A folder of synthetic frames, and sessions and servers of it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="annotate needs Starlette")
pytest.importorskip("httpx", reason="Starlette's test client needs httpx")

from annotating import client_of
from starlette.testclient import TestClient

from mclc_gpu.annotate.command import session_of
from mclc_gpu.annotate.config import AnnotateOptions
from mclc_gpu.annotate.session import Session
from mclc_gpu.data.synthetic import write_dataset

Open = Callable[..., Session]


@pytest.fixture(scope="session")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with images/ and masks/ of synthetic frames, 64 x 64."""
    folder = tmp_path_factory.mktemp("frames")
    write_dataset(folder, count=4, seed=3, size=(64, 64))
    return folder


@pytest.fixture
def open_session(frames: Path, tmp_path: Path) -> Iterator[Open]:
    """Open a session of the frames; all are closed at the end."""
    with ExitStack() as stack:

        def begin(out: Path = tmp_path / "out", **options) -> Session:
            made = AnnotateOptions(**{"images": frames / "images", "out": out, **options})
            return stack.enter_context(session_of(made))[0]

        yield begin


@pytest.fixture
def client(open_session: Open) -> Iterator[TestClient]:
    """Client of a server of the frames."""
    with client_of(open_session()) as client:  # one event loop for all requests
        yield client
