"""The suites of contests that `mclc-gpu bench` and pytest-benchmark run."""

from collections.abc import Callable, Mapping

from mclc_gpu.bench import crf_suite, label_suite, slic_suite, train_suite
from mclc_gpu.bench.contest import Contest
from mclc_gpu.bench.ground import Ground

# Contests by name, each built when its turn comes.
SUITES: dict[str, Mapping[str, Callable[[Ground], Contest]]] = {
    "label": label_suite.CONTESTS,
    "slic": slic_suite.CONTESTS,
    "crf": crf_suite.CONTESTS,
    "train": train_suite.CONTESTS,
}
