"""Copies to and from devices."""

import pytest
import torch

from mclc_gpu.kernels import backend

_META = torch.device("meta")  # a device whose tensors have no values
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
    copies = []

    def copy(host: torch.Tensor, device: torch.device) -> torch.Tensor:
        copies.append((host.numel(), device))
        return host.clone()

    monkeypatch.setattr(backend, "copy_to_device", copy)
    got = backend.upload(_META, *_TENSORS)
    assert copies == [(16 + 96 + 0 + 16 + 16 + 16, _META)]
    for part, given in zip(got, _TENSORS, strict=True):
        assert part.dtype == given.dtype
        assert part.is_contiguous()
        assert torch.equal(part, given)
        assert part.storage_offset() * part.element_size() % 16 == 0


def test_upload_to_a_device() -> None:
    for part, given in zip(backend.upload(_META, *_TENSORS), _TENSORS, strict=True):
        assert (part.device, part.dtype, part.shape) == (_META, given.dtype, given.shape)
    assert backend.upload(_META) == []


def test_download_from_the_cpu_returns_the_tensors() -> None:
    for got, given in zip(backend.download(*_TENSORS)(), _TENSORS, strict=True):
        assert got is given


def test_download_is_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    copies = []

    def copy(tensor: torch.Tensor):
        copies.append((tensor.device, tensor.numel()))
        return lambda: torch.zeros(tensor.shape, dtype=tensor.dtype)

    monkeypatch.setattr(backend, "copy_to_host", copy)
    fetched = backend.download(*(tensor.to(_META) for tensor in _TENSORS))
    assert copies == [(_META, 160)]
    for part, given in zip(fetched(), _TENSORS, strict=True):
        assert torch.equal(part, torch.zeros_like(given))


@pytest.mark.gpu
def test_copies_of_a_gpu() -> None:
    device = torch.device("cuda")
    for part, given in zip(backend.download(*backend.upload(device, *_TENSORS))(), _TENSORS, strict=True):
        assert torch.equal(part, given)


def test_launching_on_the_cpu() -> None:
    with backend.launching(torch.device("cpu")):
        pass
