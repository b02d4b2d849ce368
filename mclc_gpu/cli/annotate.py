"""Command annotate."""

from mclc_gpu.annotate.command import serve
from mclc_gpu.annotate.config import AnnotateOptions
from mclc_gpu.annotate.session import Session
from mclc_gpu.cli.common import print_skipped
from mclc_gpu.errors import Skipped


def annotate(options: AnnotateOptions, started: float) -> int:
    """Run `mclc-gpu annotate` until it is interrupted; return the number of skipped inputs."""
    del started
    left_out: list[Skipped] = []

    def announce(session: Session, skipped: list[Skipped], address: str) -> None:
        left_out.extend(skipped)
        print_skipped(skipped)
        print(f"{len(session.names)} images, {_annotated(session)}, kept in {session.out}; Ctrl+C ends")
        print(f"open {address}", flush=True)

    serve(options, announce)
    return len(left_out)


def _annotated(session: Session) -> str:
    targets = sum(len(state.targets) for state in session.state.images.values())
    return f"{targets} targets" if targets else "no targets yet"
