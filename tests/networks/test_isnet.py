"""Parts of ISNet alone: deformable convolution, the edge branch, and its weights for the mask."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mclc_gpu.networks.blocks import ZeroConv2d
from mclc_gpu.networks.isnet import DeformableConv2d, EdgeBlock, ISNet, deformable_conv2d, gradient_magnitude

every_kernel = pytest.mark.parametrize("kernel", [(1, 3), (3, 1), (3, 3), (5, 3)], ids=str)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def sample(image: Tensor, y: float, x: float) -> float:
    """Bilinear value of an image [H, W] that is 0 outside, by the definition of the tent function."""
    return sum(
        image[row, column].item() * (1 - abs(y - row)) * (1 - abs(x - column))
        for row in range(image.shape[0])
        for column in range(image.shape[1])
        if abs(y - row) < 1 and abs(x - column) < 1
    )


def deformable_by_definition(
    x: Tensor, offsets: Tensor, modulation: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    batch, channels, height, width = x.shape
    rows, columns = weight.shape[2:]
    out = bias[None, :, None, None].repeat(batch, 1, height, width)
    for b in range(batch):
        for i in range(height):
            for j in range(width):
                for tap in range(rows * columns):
                    row, column = divmod(tap, columns)
                    y = i + row - rows // 2 + offsets[b, 2 * tap, i, j].item()
                    at = j + column - columns // 2 + offsets[b, 2 * tap + 1, i, j].item()
                    for c in range(channels):
                        value = modulation[b, tap, i, j] * sample(x[b, c], y, at)
                        out[b, :, i, j] += weight[:, c, row, column] * value
    return out


def trained_isnet(in_channels: int = 1) -> ISNet:
    """ISNet with motion in its deformable convolutions and statistics that fit its activations."""
    torch.manual_seed(0)
    detector = ISNet(in_channels)
    detector.initialize()
    with torch.no_grad():
        for module in detector.modules():
            if isinstance(module, ZeroConv2d):
                nn.init.normal_(module.weight, std=0.1)
                nn.init.normal_(module.bias)
        for seed in range(3):
            detector(draw(2, in_channels, 64, 64, seed=seed, dtype=torch.float32))
    return detector.eval()


@every_kernel
def test_deformable_without_motion_is_a_convolution(kernel: tuple[int, int]) -> None:
    x, weight, bias = draw(2, 3, 6, 9), draw(4, 3, *kernel, seed=1), draw(4, seed=2)
    offsets = torch.zeros(2, 2 * math.prod(kernel), 6, 9, dtype=x.dtype)
    expected = F.conv2d(x, weight, bias, padding="same")
    torch.testing.assert_close(deformable_conv2d(x, offsets, None, weight, bias), expected)


@every_kernel
@pytest.mark.parametrize("reach", [0.7, 6.0])
def test_deformable_is_as_defined(kernel: tuple[int, int], reach: float) -> None:
    taps = math.prod(kernel)
    x, weight, bias = draw(2, 2, 4, 5), draw(3, 2, *kernel, seed=1), draw(3, seed=2)
    offsets, modulation = reach * draw(2, 2 * taps, 4, 5, seed=3), draw(2, taps, 4, 5, seed=4)
    expected = deformable_by_definition(x, offsets, modulation, weight, bias)
    torch.testing.assert_close(deformable_conv2d(x, offsets, modulation, weight, bias), expected)


def test_deformable_gradients() -> None:
    x, weight, bias = draw(1, 2, 3, 4), draw(2, 2, 1, 3, seed=1), draw(2, seed=2)
    offsets, modulation = draw(1, 6, 3, 4, seed=3), draw(1, 3, 3, 4, seed=4)
    inputs = [tensor.requires_grad_() for tensor in (x, offsets, modulation, weight, bias)]
    assert torch.autograd.gradcheck(deformable_conv2d, inputs)


def test_deformable_places_are_exact_in_bfloat16() -> None:
    x = torch.zeros(1, 1, 1, 1024)
    x[..., 1001] = 1
    offsets = torch.zeros(1, 6, 1, 1024)
    offsets[:, 3] = 1  # the middle tap reads its right neighbor
    weight = torch.tensor([0.0, 1.0, 0.0]).view(1, 1, 1, 3)
    found = deformable_conv2d(*(t.bfloat16() for t in (x, offsets)), None, weight.bfloat16())
    assert found.dtype == torch.bfloat16
    assert found.nonzero().tolist() == [[0, 0, 0, 1000]]


def test_deformable_module_starts_as_half_a_convolution_and_learns_to_move() -> None:
    module = DeformableConv2d(2, 3, (3, 1)).double()
    x = draw(1, 2, 5, 4)
    half = F.conv2d(x, module.weight / 2, module.bias, padding="same")
    torch.testing.assert_close(module(x), half)
    module(x).square().sum().backward()
    offsets, modulation = module.motion.weight.grad.split((6, 3))
    assert (offsets.abs().amax(dim=(1, 2, 3)) > 0).all()
    assert (modulation.abs().amax(dim=(1, 2, 3)) > 0).all()


def test_gradient_of_a_mask() -> None:
    mask = torch.zeros(1, 1, 7, 7)
    mask[..., 2:5, 2:7] = 1  # up to the right border, which is no edge
    corner = math.sqrt(2)
    expected = torch.tensor(
        [
            [0, 0, 0, 0, 0, 0, 0],
            [0, 0, 1, 1, 1, 1, 1],
            [0, 1, corner, 1, 1, 1, 1],
            [0, 1, 1, 0, 0, 0, 0],
            [0, 1, corner, 1, 1, 1, 1],
            [0, 0, 1, 1, 1, 1, 1],
            [0, 0, 0, 0, 0, 0, 0],
        ]
    )
    torch.testing.assert_close(gradient_magnitude(mask)[0, 0], expected, atol=1.1e-3, rtol=0)


def test_gradient_is_taken_channel_by_channel() -> None:
    images = draw(2, 3, 6, 5)
    down, right = torch.gradient(F.pad(images, (1, 1, 1, 1), mode="replicate"), dim=(2, 3))
    expected = 2 * torch.hypot(down, right)[..., 1:-1, 1:-1]
    torch.testing.assert_close(gradient_magnitude(images), expected, atol=1e-3, rtol=1e-3)


def test_gradient_is_differentiable_where_it_is_zero() -> None:
    images = torch.ones(1, 1, 4, 4, requires_grad=True)
    gradient_magnitude(images).sum().backward()
    assert images.grad.isfinite().all()


def test_edge_block_follows_its_formula() -> None:
    torch.manual_seed(0)
    block = EdgeBlock(4).double().eval()
    x, cue = draw(1, 4, 6, 6), draw(1, 1, 6, 6, seed=1)
    nn.init.zeros_(block.gate.attention[3].weight)
    nn.init.constant_(block.gate.attention[3].bias, 0.3)  # the same gate everywhere, whatever the cue
    with torch.no_grad():
        first = block.first(x)
        second = block.second((x + first).relu()).relu()
        opened = 1 + 1 / (1 + math.exp(-0.3 / math.sqrt(1 + 1e-5)))
        gated = torch.einsum("oi,bihw->bohw", block.gate.mix.weight[:, :, 0, 0], second * opened)
        torch.testing.assert_close(block(x, cue), 3 * first.relu() + second + gated)


def test_cue_opens_the_gate() -> None:
    torch.manual_seed(0)
    block = EdgeBlock(4).double().eval()
    x, cue = draw(1, 4, 6, 6), torch.zeros(1, 1, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        before = block(x, cue)
        cue[..., 2, 3] = 5
        changed = (block(x, cue) != before).any(dim=1)
    assert changed.nonzero().tolist() == [[0, 2, 3]]


def test_edge_branch_works_at_full_resolution() -> None:
    detector = trained_isnet()
    for cue in detector.cues:  # without them nothing of a coarser level reaches the edge
        nn.init.zeros_(cue.weight)
    x = draw(1, 1, 64, 64, dtype=torch.float32)
    changed = x.clone()
    changed[..., 31, 33] += 3
    with torch.no_grad():
        detector.training = True  # for the edge alone: batch norm stays in evaluation mode
        difference = (detector(changed).edge - detector(x).edge).abs()[0, 0]
    rows, columns = difference.nonzero().T
    # A gradient, then three blocks of four 3x3 convolutions.
    assert (rows.min(), rows.max()) == (31 - 13, 31 + 13)
    assert (columns.min(), columns.max()) == (33 - 13, 33 + 13)
    assert difference[30:33, 32:35].max() > 0.1 * difference.max()


def test_edge_weighs_the_mask() -> None:
    detector, x = trained_isnet(), draw(1, 1, 64, 64, dtype=torch.float32)
    kept: list[Tensor] = []
    detector.head.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    with torch.no_grad():
        detector.training = True
        edge = detector(x).edge
        nn.init.zeros_(detector.edge_head.weight)  # weighs everything by 1 + 1/2
        detector(x)
    torch.testing.assert_close(kept[0], kept[1] / 1.5 * (1 + edge.sigmoid()))
    assert edge.std() > 0.01


def test_edge_trains_the_backbone() -> None:
    detector = trained_isnet().train()
    detector(draw(2, 1, 64, 64, dtype=torch.float32)).edge.square().mean().backward()
    assert detector.stem[1].weight.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in detector.head.parameters())


@pytest.mark.parametrize("size", [(33, 50), (64, 47), (5, 1)], ids=str)
def test_edge_at_odd_sizes(size: tuple[int, int]) -> None:
    detector, x = trained_isnet(), draw(1, 1, *size, dtype=torch.float32)
    padded = F.pad(x, (0, 64 - size[1], 0, 64 - size[0]), mode="replicate")
    with torch.no_grad():
        detector.training = True
        detector.smallest_size = 64
        whole, cropped = detector(padded), detector(x)
    assert torch.equal(cropped.edge, whole.edge[..., : size[0], : size[1]])
    assert torch.equal(cropped.masks[0], whole.masks[0][..., : size[0], : size[1]])


def test_cues_and_features_move_with_the_image() -> None:
    detector, scene = trained_isnet(), draw(1, 1, 320, 320, dtype=torch.float32)
    kept: list[Tensor] = []
    for block in detector.edge_blocks:
        block.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[1]))
    detector.head.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    with torch.no_grad():
        detector(scene[..., :304, :304])
        detector(scene[..., 16:, 16:])
    for here, there in zip(kept[:4], kept[4:], strict=True):
        inner, moved = here[..., 120:200, 120:200], there[..., 104:184, 104:184]
        # Found: 0.03, as the deepest map sees the border from everywhere; with corners on corners 0.08.
        assert (inner - moved).norm() < 0.05 * (inner - inner.mean()).norm()
