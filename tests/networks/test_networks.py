"""General tests of every registered detector, and the facts of the published ones.

A new detector is tested here as soon as it is registered in networks/zoo.py:
``pytest tests/networks -k NAME``. If `test_training_on_one_image` fails in batch norm ("more than 1 value
per channel"), raise the detector's `smallest_size` or `smallest_batch`. Add parameters and multiply-adds to
FACTS where they are published.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim
from torch.utils.flop_counter import FlopCounterMode

from mclc_gpu.networks.blocks import Detector, Logits, PooledBatchNorm2d, ZeroConv2d
from mclc_gpu.networks.zoo import NETWORKS, build


@dataclass(frozen=True)
class Facts:
    """Facts of a published network.

    Attributes
    ----------
    parameters : parameters by number of input channels
    multiply_adds : 1e9 multiply-adds for one gray image of 256x256
    masks : masks in training mode, side outputs included
    edge : whether an edge is predicted in training mode
    """

    parameters: dict[int, int]
    multiply_adds: float
    masks: int = 1
    edge: bool = False


FACTS = {
    "acm": Facts({1: 397_823, 3: 397_971}, 0.34),
    "resunet": Facts({1: 3_645_905, 3: 3_646_225}, 4.9),
    "resunet-slim": Facts({3: 914_057}, 1.23),
    "dnanet": Facts({1: 4_696_568, 3: 4_696_888}, 13.9, masks=4),
    "isnet": Facts({1: 986_686, 3: 986_962}, 31.1, edge=True),
    "uiunet": Facts({1: 50_540_309, 3: 50_541_461}, 54.3, masks=7),
    "mshnet": Facts({1: 4_065_481, 3: 4_065_513}, 6.0, masks=5),
    "l2sknet": Facts({1: 898_913, 3: 899_201}, 7.0),
    "sctransnet": Facts({1: 11_202_995, 3: 11_203_635}, 10.5, masks=6),
    "pfan": Facts({1: 16_183_847, 3: 16_184_999}, 32.6),
    "f3net": Facts({1: 25_530_438, 3: 25_536_710}, 8.5, masks=6),
}
every_network = pytest.mark.parametrize("name", NETWORKS)
every_published = pytest.mark.parametrize("name", FACTS)
STRUCTURES = [name for name in NETWORKS if name != "resunet-slim"]
every_structure = pytest.mark.parametrize("name", STRUCTURES)
# Exporting and tracing the large networks takes seconds each.
LARGE = {"dnanet", "isnet", "uiunet", "mshnet", "l2sknet", "sctransnet", "pfan", "f3net"}
every_structure_traced = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in STRUCTURES]
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread: on small maps several take longer, far longer on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def seeded(name: str, in_channels: int = 1) -> Detector:
    torch.manual_seed(0)
    return build(name, in_channels)


def meta(name: str, in_channels: int = 1) -> Detector:
    """Build a detector without values, since shapes alone cost little."""
    with torch.device("meta"):
        return build(name, in_channels)


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def outputs(logits: Logits) -> list[Tensor]:
    return [*logits.masks, *([] if logits.edge is None else [logits.edge])]


def mask_of(detector: Detector, x: Tensor) -> Tensor:
    """Return the only output in evaluation mode."""
    with torch.no_grad():
        (mask,) = outputs(detector.eval()(x))
    return mask


def apart(one: Tensor, other: Tensor) -> float:
    """Return the difference, relative to how much the values vary."""
    assert one.shape == other.shape
    return ((one - other).norm() / (other - other.mean()).norm()).item()


@every_published
def test_parameter_counts(name: str) -> None:
    expected = FACTS[name].parameters
    assert {c: sum(p.numel() for p in meta(name, c).parameters()) for c in expected} == expected


@every_network
def test_batch_norm_of_one_value_an_image_is_marked(name: str) -> None:
    """Training with small batches ends with those layers on their running statistics."""
    detector = meta(name)
    seen: dict[str, tuple[bool, bool]] = {}
    for path, module in detector.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(
                lambda own, given, out, path=path: seen.__setitem__(
                    path, (isinstance(own, PooledBatchNorm2d), given[0].shape[-2:].numel() == 1)
                )
            )
    with torch.no_grad():
        detector.eval()(torch.empty(1, 1, 256, 256, device="meta"))
    assert {path for path, (marked, _) in seen.items() if marked} == {
        path for path, (_, pooled) in seen.items() if pooled
    }


@every_published
def test_multiply_adds(name: str) -> None:
    with FlopCounterMode(display=False) as counter:
        mask_of(meta(name), torch.empty(1, 1, 256, 256, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(FACTS[name].multiply_adds, rel=0.02)


@every_published
def test_side_outputs(name: str) -> None:
    training = meta(name)(torch.empty(2, 1, 64, 64, device="meta"))
    assert len(training.masks) == FACTS[name].masks
    assert (training.edge is not None) == FACTS[name].edge


@every_network
def test_shapes(name: str) -> None:
    sizes = [(256, 256), (135, 96), (97, 131), (33, 17), (1, 1)]
    detector = meta(name)
    training = detector(torch.empty(2, 1, 135, 96, device="meta"))
    assert {out.shape for out in outputs(training)} == {(2, 1, 135, 96)}
    for size in sizes:
        assert mask_of(detector, torch.empty(2, 1, *size, device="meta")).shape == (2, 1, *size)


@every_network
@pytest.mark.parametrize("size", [(33, 49), (3, 1)], ids=str)
def test_images_are_padded_not_resized(name: str, size: tuple[int, int]) -> None:
    detector, x = seeded(name), images(1, 1, *size)
    height, width = (max(-(-s // detector.divisor) * detector.divisor, detector.smallest_size) for s in size)
    padded = F.pad(x, (0, width - size[1], 0, height - size[0]), mode="replicate")
    whole = mask_of(detector, padded)
    assert torch.equal(mask_of(detector, x), whole[..., : size[0], : size[1]])
    assert whole.std() > 0


@every_network
def test_gradients_reach_every_parameter(name: str) -> None:
    detector = seeded(name, 3)
    largest = dict.fromkeys(dict(detector.named_parameters()), 0.0)
    for step in range(2):  # a unit of a one-unit bottleneck may be silent in one of them
        detector.zero_grad()
        found = outputs(detector(images(2, 3, 64, 64) * (1 + step)))
        sum((out * images(*out.shape)).mean() for out in found).backward()
        for key, parameter in detector.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            largest[key] = max(largest[key], parameter.grad.abs().max().item())
    assert [key for key, value in largest.items() if value == 0] == []


@every_network
def test_side_outputs_differ(name: str) -> None:
    with torch.no_grad():
        found = outputs(seeded(name)(images(2, 1, 64, 64)))
    assert all(out.std() > 0 for out in found)
    assert not any(torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])


@every_structure
def test_masks_start_near_the_prior(name: str) -> None:
    detector = seeded(name)
    detector.set_prior(-20.0)
    with torch.no_grad():
        masks = detector(images(2, 1, 64, 64)).masks
    assert all(mask.mean().item() == pytest.approx(-20, abs=4) for mask in masks)


@every_network
def test_evaluation_is_deterministic(name: str) -> None:
    detector, x = seeded(name), images(3, 1, 64, 64)
    kept = x.clone()
    first = mask_of(detector, x)
    state = {key: value.clone() for key, value in detector.state_dict().items()}
    assert torch.equal(mask_of(detector, x), first)
    assert torch.equal(x, kept)
    assert all(torch.equal(value, state[key]) for key, value in detector.state_dict().items())
    assert apart(mask_of(detector, x[1:2]), first[1:2]) < 1e-5  # whatever else is in the batch


@every_network
def test_the_mask_follows_the_image(name: str) -> None:
    detector, x = seeded(name), images(1, 1, 64, 64)
    changed = x.clone()
    changed[..., 40, 24] += 20
    difference = (mask_of(detector, changed) - mask_of(detector, x)).abs()[0, 0]
    row, column = divmod(difference.argmax().item(), 64)
    # Before training, F3Net answers mostly at its coarsest level, of 32 pixels.
    reach = {"f3net": 32}.get(name, 8)
    assert max(abs(row - 40), abs(column - 24)) <= reach


@every_structure
def test_bfloat16_masks_are_near_those_of_float32(name: str) -> None:
    detector = seeded(name).eval()
    side = max(detector.smallest_size, 32)
    x = images(1, 1, side, side)
    with torch.autocast("cpu", torch.bfloat16):
        mask = mask_of(detector, x)
    assert mask.dtype == torch.bfloat16
    assert apart(mask.float(), mask_of(detector, x)) < 0.1


@every_structure
def test_bfloat16_training(name: str) -> None:
    """Check types only, on tensors without values, since many CPUs are slow at bfloat16."""
    with FakeTensorMode():
        detector = build(name)
        with torch.autocast("cpu", torch.bfloat16):
            found = outputs(detector(torch.empty(2, 1, 61, 64)))
        assert {out.dtype for out in found} == {torch.bfloat16}
        sum(out.float().mean() for out in found).backward()
        assert {p.grad.dtype for p in detector.parameters()} == {torch.float32}


@every_network
def test_a_saved_state_restores_the_detector(name: str) -> None:
    detector, other, x = seeded(name), build(name), images(2, 1, 64, 64)
    with torch.no_grad():
        detector(x)  # so that the statistics are not those of a new detector
    assert not torch.equal(mask_of(detector, x), mask_of(other, x))
    file = io.BytesIO()
    torch.save(detector.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(mask_of(detector, x), mask_of(other, x))


@every_structure_traced
def test_compiles_without_graph_breaks(name: str) -> None:
    detector, x = seeded(name), images(2, 1, 61, 64)
    for module in detector.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    expected = outputs(detector(x))
    try:
        found = outputs(torch.compile(detector, backend="eager", fullgraph=True)(x))
        sum(out.mean() for out in found).backward()
    finally:
        torch.compiler.reset()
    assert all(apart(*pair) < 1e-5 for pair in zip(found, expected, strict=True))
    assert all(p.grad is not None for p in detector.parameters())


def onnx_session(detector: Detector, x: Tensor, file: Path, **how: object) -> onnxruntime.InferenceSession:
    # onnxruntime optimizes by itself; the exporter would take half as long again.
    torch.onnx.export(detector, (x,), file, optimize=False, verbose=False, **how)
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


@every_structure_traced
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_onnx(name: str, tmp_path: Path) -> None:
    detector, x = seeded(name).eval(), images(1, 1, 61, 64)
    session = onnx_session(detector, x, tmp_path / "detector.onnx")
    (mask,) = session.run(None, {"x": x.numpy()})
    assert apart(torch.from_numpy(mask), mask_of(detector, x)) < 1e-4


class Halving(Detector):
    """Smallest detector that needs padding, for the parts of the base class alone."""

    divisor = 2
    smallest_size = 4

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 4, 2, 2)

    def segment(self, x: Tensor) -> Logits:
        return Logits((F.pixel_shuffle(self.layer(x), 2),))


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_onnx_of_any_size(tmp_path: Path) -> None:
    detector = Halving().eval()
    free = {0: Dim("batch", max=64), 2: Dim("height", min=2, max=4096), 3: Dim("width", min=2, max=4096)}
    session = onnx_session(detector, images(2, 1, 7, 8), tmp_path / "any.onnx", dynamic_shapes={"x": free})
    for shape in [(1, 1, 9, 9), (3, 1, 2, 13), (2, 1, 8, 6)]:
        (mask,) = session.run(None, {"x": images(*shape).numpy()})
        assert apart(torch.from_numpy(mask), mask_of(detector, images(*shape))) < 1e-5


@every_network
@pytest.mark.parametrize("size", [(64, 64), (1, 1)], ids=str)
def test_training_on_one_image(name: str, size: tuple[int, int]) -> None:
    detector = seeded(name)
    if NETWORKS[name].smallest_batch == 1:
        assert all(out.isfinite().all() for out in outputs(detector(images(1, 1, *size))))
    else:
        with pytest.raises(
            ValueError, match=r"trains on batches of 2 images or more, got 1: .*drop smaller batches"
        ):
            detector(images(1, 1, *size))
    assert all(out.isfinite().all() for out in outputs(detector(images(2, 1, *size))))


@every_network
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 3, 64, 64), r"takes images \[B, 1, H, W\], got \[2, 3, 64, 64\]"),
        (torch.zeros(1, 64, 64), r"takes images \[B, 1, H, W\], got \[1, 64, 64\]"),
        (torch.zeros(2, 1, 0, 64), r"at least one image of one pixel, got \[2, 1, 0, 64\]"),
        (torch.zeros(0, 1, 64, 64), r"at least one image of one pixel, got \[0, 1, 64, 64\]"),
        (torch.zeros(2, 1, 64, 64, dtype=torch.uint8), r"floating-point images, got torch\.uint8"),
    ],
    ids=["channels", "dimensions", "no pixels", "no images", "dtype"],
)
def test_wrong_images(name: str, x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{NETWORKS[name].__name__} .*{message}"):
        meta(name)(x)


@every_network
def test_initialization(name: str) -> None:
    detector = build(name)
    torch.manual_seed(0)
    detector.initialize()
    start = {key: value.clone() for key, value in detector.state_dict().items()}
    with torch.no_grad():
        detector(images(2, 1, 64, 64))
        for parameter in detector.parameters():
            parameter.fill_(9)
    torch.manual_seed(0)
    detector.initialize()
    assert all(torch.equal(value, start[key]) for key, value in detector.state_dict().items())
    for module in detector.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            outer, inner, *kernel = module.weight.shape
            deviation = (2 / ((outer / module.groups + inner) * kernel[0] * kernel[1])) ** 0.5
            expected = 0 if isinstance(module, ZeroConv2d) else deviation
            spread = 5 / module.weight.numel() ** 0.5
            assert module.weight.detach().square().mean().sqrt() == pytest.approx(expected, rel=spread)
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d):
            values = module.weight, module.bias, module.running_mean, module.running_var
            assert [value.unique().item() for value in values] == [1, 0, 0, 1]


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"^network 'unet': use one of acm, resunet, .*dnanet"):
        build("unet")


def test_no_channels() -> None:
    with pytest.raises(ValueError, match="in_channels must be 1 or more, got 0"):
        build("acm", 0)
