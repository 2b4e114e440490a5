"""LPIPS is its definition, computed here a second time, and its weights are the published ones or none."""

import hashlib
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d

import reconstructor.lpips
from common.session import RecoverySpec
from common.settings import Settings
from reconstructor.lpips import CONVOLUTIONS, HEADS, TRUNK, Lpips, load_lpips
from reconstructor.quality import lpips
from services.control_plane.metrics import ConfigurationFigures
from services.control_plane.report import quality_of
from services.failure import WrongOption
from services.rerecovery import recover_again


def handmade(seed: int = 0, channels: tuple[int, ...] = (6, 5, 7, 4, 3)) -> Lpips:
    """A network of the right build with invented weights, few of them unless told otherwise."""
    random = torch.Generator().manual_seed(seed)
    kernels, biases, heads, before = [], [], [], 3
    for layer, count in zip(CONVOLUTIONS, channels, strict=True):
        spread = (before * layer.side**2) ** -0.5
        kernels.append(spread * torch.randn(count, before, layer.side, layer.side, generator=random))
        biases.append(0.1 * torch.randn(count, generator=random))
        heads.append(torch.rand(count, generator=random))
        before = count
    return Lpips(kernels, biases, heads)


def images(shape: tuple[int, ...] = (3, 43, 38), seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    a, b = (2 * torch.rand(shape, generator=random, dtype=torch.float64) - 1 for _ in range(2))
    return a, b


# ---- the definition once more, an image and a channel at a time, without torch


def convolved(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray, stride: int, padding: int) -> np.ndarray:
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    outputs = []
    for weights, level in zip(kernel, bias, strict=True):
        planes = [correlate2d(plane, k, mode="valid") for plane, k in zip(x, weights, strict=True)]
        outputs.append(level + np.sum(planes, axis=0)[::stride, ::stride])
    return np.stack(outputs)


def pooled(x: np.ndarray) -> np.ndarray:
    height, width = ((side - 3) // 2 + 1 for side in x.shape[1:])
    found = np.empty((len(x), height, width))
    for i in range(height):
        for j in range(width):
            found[:, i, j] = x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((1, 2))
    return found


def features(image: np.ndarray, network: Lpips) -> list[np.ndarray]:
    x = np.stack(
        [(image + 0.030) / 0.458, (image + 0.088) / 0.448, (image + 0.188) / 0.450]  # red, green, blue
    )
    found = []
    geometry = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))
    for number, (stride, padding) in enumerate(geometry):
        if number in (1, 2):
            x = pooled(x)
        kernel, bias = network.kernels[number].double().numpy(), network.biases[number].double().numpy()
        x = np.maximum(convolved(x, kernel, bias, stride, padding), 0)
        found.append(x)
    return found


def expected(a: np.ndarray, b: np.ndarray, network: Lpips) -> float:
    total = 0.0
    for f, g, head in zip(features(a, network), features(b, network), network.heads, strict=True):
        f, g = (h / (np.sqrt((h**2).sum(0, keepdims=True)) + 1e-10) for h in (f, g))
        total += np.einsum("c,chw->hw", head.double().numpy(), (f - g) ** 2).mean()
    return total


@pytest.mark.parametrize("shape", [(31, 31), (43, 38), (64, 64)])
def test_distance_is_the_definition(shape: tuple[int, int]) -> None:
    network, (a, b) = handmade(), images((2, *shape))
    wanted = [expected(p, q, network) for p, q in zip(a.numpy(), b.numpy(), strict=True)]
    assert min(wanted) > 0.01
    assert network.distance(a, b).tolist() == pytest.approx(wanted, rel=1e-5)


def test_features_that_are_all_zero_count_as_equal() -> None:
    network, (a, b) = handmade(), images()
    dead = Lpips(network.kernels, [bias - 1e3 for bias in network.biases], network.heads)
    assert dead.distance(a, b).tolist() == [0.0, 0.0, 0.0]


def test_equal_images_are_at_no_distance_and_it_is_symmetric() -> None:
    network, (a, b) = handmade(), images()
    assert network.distance(a, a).tolist() == [0.0, 0.0, 0.0]
    assert network.distance(a, b).tolist() == pytest.approx(network.distance(b, a).tolist(), rel=1e-6)
    assert (network.distance(a, b) > 0).all()


def test_an_image_does_not_depend_on_its_batch_nor_on_the_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    network, (a, b) = handmade(), images((5, 90, 70))
    together = network.distance(a, b).tolist()
    alone = [network.distance(a[i : i + 1], b[i : i + 1]).item() for i in range(5)]
    assert alone == pytest.approx(together, rel=1e-5)
    monkeypatch.setattr(reconstructor.lpips, "STRIP_VALUES", 1)
    assert network.distance(a, b).tolist() == pytest.approx(together, rel=1e-5)
    monkeypatch.setattr(reconstructor.lpips, "BATCH_PIXELS", 2 * 90 * 70)
    assert network.distance(a, b).tolist() == pytest.approx(together, rel=1e-5)


def test_the_figure_takes_each_reference_from_black_to_white() -> None:
    network, (a, b) = handmade(), images()
    b[:, 0, 0], b[:, 0, 1] = -1, 1
    wanted = network.distance(a, b).tolist()
    scale = torch.tensor([1.0, 50.0, 1e-3], dtype=torch.float64)[:, None, None]
    level = torch.tensor([0.0, 1e4, -7.0], dtype=torch.float64)[:, None, None]
    assert lpips(a, b, network).tolist() == pytest.approx(wanted, rel=1e-6)
    assert lpips(scale * a + level, scale * b + level, network).tolist() == pytest.approx(wanted, rel=1e-5)


def test_there_is_no_figure_for_a_flat_reference() -> None:
    a, _ = images()
    assert not lpips(a, torch.ones_like(a), handmade()).isfinite().any()


def test_wrong_shapes_are_named() -> None:
    network = handmade()
    with pytest.raises(ValueError, match=r"\(2, 40, 40\) and \(2, 40, 41\)"):
        network.distance(torch.zeros(2, 40, 40), torch.zeros(2, 40, 41))
    with pytest.raises(ValueError, match="at least 31 pixels, got 30x64"):
        network.distance(torch.zeros(2, 30, 64), torch.zeros(2, 30, 64))


# ---- the account of a session


def account(shape: tuple[int, int], **quality: Any) -> dict[str, Any]:
    figures = {"mask": {"kind": "none"}, "compression_factor": 1.0, "printed_compression_factor": 1.0}
    rest = {"config_id": "c", "error_bound": "", "first_frame": 0, "frames": 9, "quality": quality}
    return quality_of([ConfigurationFigures.model_validate({**figures, **rest})], shape)


def test_an_account_without_the_figure_says_why() -> None:
    measured = account((64, 64), references=2, lpips=0.25)
    assert (measured["lpips"], measured["lpips_absent"]) == (0.25, None)
    for shape, references, why in (
        ((64, 64), 2, "the setting lpips names no folder"),
        ((64, 30), 2, "less than 31 pixels"),
        ((64, 64), 0, "no frame was sent whole"),
    ):
        found = account(shape, references=references, ssim=0.5)
        assert found["lpips"] is None
        assert why in found["lpips_absent"]


# ---- weights

PUBLISHED = tuple(layer.channels for layer in CONVOLUTIONS)


def write(folder: Path, network: Lpips) -> None:
    """The two files as torchvision and lpips write them, and a tensor that is not wanted."""
    trunk = {"classifier.6.bias": torch.zeros(1000)}
    heads = {}
    for layer, kernel, bias, head in zip(
        CONVOLUTIONS, network.kernels, network.biases, network.heads, strict=True
    ):
        trunk |= {f"{layer.name}.weight": kernel, f"{layer.name}.bias": bias}
        heads[layer.head] = head[None, :, None, None]
    torch.save(trunk, folder / "alexnet-owt-7be5be79.pth")
    torch.save(heads, folder / "alex.pth")


def trust(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Take the files in this folder for the published ones."""
    for name, published in (("TRUNK", TRUNK), ("HEADS", HEADS)):
        found = hashlib.sha256((folder / published.name).read_bytes()).hexdigest()
        monkeypatch.setattr(reconstructor.lpips, name, published._replace(sha256=found))


def test_weights_are_read_from_the_published_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, (a, b) = handmade(channels=PUBLISHED), images()
    write(tmp_path, network)
    trust(monkeypatch, tmp_path)
    assert load_lpips(tmp_path).distance(a, b).tolist() == network.distance(a, b).tolist()


def test_the_name_of_torchvisions_file_holds_the_hash_it_must_have() -> None:
    assert TRUNK.name == f"alexnet-owt-{TRUNK.sha256[:8]}.pth"
    assert all(len(bytes.fromhex(published.sha256)) == 32 for published in (TRUNK, HEADS))


@pytest.mark.parametrize("published", [TRUNK, HEADS])
def test_a_file_that_is_missing_or_another_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: reconstructor.lpips.WeightsFile
) -> None:
    write(tmp_path, handmade(channels=PUBLISHED))
    trust(monkeypatch, tmp_path)
    file = tmp_path / published.name
    file.write_bytes(b"something else")
    found = hashlib.sha256(b"something else").hexdigest()[:16]
    with pytest.raises(ValueError, match=f"{published.name}: is not .* begins with {found}") as caught:
        load_lpips(tmp_path)
    assert "\n" not in str(caught.value)
    file.unlink()
    with pytest.raises(ValueError, match=f"{published.name}: cannot be read .No such file") as caught:
        load_lpips(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_worker_without_the_weights_it_should_have_ends_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "services.cli", "reconstructor"],
        env={**os.environ, "CRYOFLUX_LPIPS": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr  # a setting: starting it again would not help
    (said,) = done.stderr.strip().splitlines()
    assert "alexnet-owt-7be5be79.pth: cannot be read (No such file" in said


def test_a_recovery_without_the_weights_it_should_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongOption, match=r"alexnet-owt-7be5be79\.pth: cannot be read"):
        recover_again(
            tmp_path / "session",
            tmp_path / "again",
            RecoverySpec(method="dct"),
            settings=Settings.load(lpips=str(tmp_path)),
            progress=lambda frames, done: nullcontext(),
        )


def test_a_tensor_that_is_missing_or_of_another_shape_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, handmade(channels=(*PUBLISHED[:4], 255)))
    trust(monkeypatch, tmp_path)
    with pytest.raises(ValueError, match=r"alexnet.*pth: holds no tensor features\.10\.weight of shape"):
        load_lpips(tmp_path)
