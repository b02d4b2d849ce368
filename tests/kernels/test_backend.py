"""Copies to and from devices."""

import pytest
import torch
from devices import device_of

from mclc_gpu.kernels import backend
from mclc_gpu.kernels.color import rgb_to_lab

_TENSORS = [
    torch.tensor([True, False, True]),
    torch.arange(12, dtype=torch.float64).reshape(3, 4).T,
    torch.zeros(0, 5, dtype=torch.int16),
    torch.tensor(-3, dtype=torch.int64),
    torch.arange(7).to(torch.uint16),
    torch.arange(3, dtype=torch.uint8),
]


def test_upload_to_the_cpu_returns_the_tensors() -> None:
    for got, given in zip(backend.upload(torch.device("cpu"), *_TENSORS), _TENSORS, strict=True):
        assert got is given


def test_upload_is_one_copy_of_aligned_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    device, copies, copy = device_of("triton"), [], backend.copy_to_device
    monkeypatch.setattr(backend, "copy_to_device", lambda *given: copies.append(given) or copy(*given))
    got = backend.upload(device, *_TENSORS)
    ((staging, where),) = copies
    assert (staging.numel(), where) == (16 + 96 + 0 + 16 + 16 + 16, device)
    for part, given in zip(got, _TENSORS, strict=True):
        assert (part.device.type, part.dtype, part.is_contiguous()) == (device.type, given.dtype, True)
        assert torch.equal(part.cpu(), given)
        assert part.storage_offset() * part.element_size() % 16 == 0
    assert backend.upload(device) == []


def test_download_from_the_cpu_returns_the_tensors() -> None:
    for got, given in zip(backend.download(*_TENSORS)(), _TENSORS, strict=True):
        assert got is given


def test_download_is_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    device, copies, copy = device_of("triton"), [], backend.copy_to_host
    monkeypatch.setattr(backend, "copy_to_host", lambda packed: copies.append(packed) or copy(packed))
    fetched = backend.download(*(tensor.to(device) for tensor in _TENSORS))
    assert [packed.numel() for packed in copies] == [160]
    for part, given in zip(fetched(), _TENSORS, strict=True):
        assert part.device.type == "cpu"
        assert torch.equal(part, given)


def test_launching_makes_the_device_current() -> None:
    with backend.launching(torch.device("cpu")):
        pass
    with backend.launching(device_of("triton")):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton compiles for the GPU")
def test_the_interpreted_gpu_refuses_what_a_gpu_refuses() -> None:
    there, here = torch.ones(2, 3, device=device_of("triton")), torch.ones(2, 3)
    with pytest.raises(RuntimeError, match="on the device and on the CPU"):
        there + here
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    with pytest.raises(RuntimeError, match="'triton' needs CUDA tensors"):
        rgb_to_lab(here[:, :, None, None], backend="triton")
