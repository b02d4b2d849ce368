"""A label run on a GPU that is recorded instead of used: what it asks of the device, chunk by chunk."""

import json

import pytest
from compiling import run_compiling

_RUN = """
import json, shutil, sys
from pathlib import Path
from mclc_gpu.bench.recorder import DEVICE, recorded_device
from mclc_gpu.data.synthetic import write_dataset
from mclc_gpu.distributed import Ranks
from mclc_gpu.labels.config import LabelOptions, preset
from mclc_gpu.labels.pipeline import warm_up
from mclc_gpu.labels.run import label_dataset, read_inputs
from mclc_gpu.labels.stream import Chunks

folder, name, supervision = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
if not (folder / "images").exists():
    write_dataset(folder, 12, 0, size=(96, 96))
options = LabelOptions(
    images=folder / "images", points_from_masks=folder / "masks", out=folder / name / supervision,
    device="cpu", config=preset(name), supervision=supervision,
)
with recorded_device(counting=False) as record:
    warm_up(options.config, DEVICE, [p for own in read_inputs(options).points.values() for p in own])
    ready = set(record.compiled)
counts = {}
for chunks in (1, 4):
    with recorded_device() as record:
        label_dataset(options, ranks=Ranks(DEVICE), chunks=Chunks(images=12 // chunks))
    counts[chunks] = {
        "launches": len(record.launches), "uploads": len(record.uploads), "bytes": sum(record.uploads),
        "downloads": len(record.downloads), "waits": record.waits.total(),
        "unready": len(set(record.compiled) - ready),
    }
    written = sorted(path.name for path in options.out.glob("*/*.png"))
    shutil.rmtree(options.out)
print(json.dumps([counts, len(written)]))
"""


@pytest.mark.parametrize("supervision", ["point", "multi-point", "box"])
@pytest.mark.parametrize(("name", "launches", "uploads"), [("default", 2, 3), ("paper", 6, 4)])
def test_a_chunk_takes_a_handful_of_launches_and_waits_once(
    tmp_path, name: str, launches: int, uploads: int, supervision: str
) -> None:
    counts, files = json.loads(run_compiling("-c", _RUN, str(tmp_path), name, supervision))
    # What three more chunks take, without the warm-up.
    chunk = {key: (counts["4"][key] - counts["1"][key]) / 3 for key in counts["4"]}
    assert counts["4"]["unready"] == 0
    # Boxes need maps that are zero outside them before the CRF.
    assert chunk["launches"] <= launches + (name == "paper" and supervision == "box")
    assert chunk["waits"] == chunk["downloads"] == 1
    assert chunk["uploads"] <= uploads + (name == "paper" and supervision == "box")
    assert files == 2 * 12
