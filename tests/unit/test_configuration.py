"""What both ends agree on: the identity of a configuration and the calibration of a series."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.calibration import Calibration
from common.configuration import CodecSpec, Configuration
from common.operators.spec import MaskSpec
from common.rings import radial_bins


def configuration(
    *, masks: int = 8, shape: tuple[int, int] = (64, 64), dtype: str = "uint8", coding: str = "packed"
) -> Configuration:
    return Configuration.create(
        MaskSpec.model_validate({"kind": "coded-aperture", "mask_count": masks}),
        shape,
        dtype,
        CodecSpec.model_validate({"values": "integer", "coding": coding}),
        mask_hash="0" * 16,
        compression_factor=16 / masks,
        printed_compression_factor=16 / masks,
    )


def test_config_id_survives_the_wire() -> None:
    sent = configuration()
    received = Configuration.model_validate(sent.model_dump(mode="json"))
    assert received == sent
    again = Configuration.create(
        received.mask, received.shape, received.dtype, received.codec, mask_hash=received.mask_hash,
        compression_factor=received.compression_factor,
        printed_compression_factor=received.printed_compression_factor,
    )  # fmt: skip
    assert again.config_id == sent.config_id


@pytest.mark.parametrize(
    "change", [{"masks": 7}, {"shape": (64, 65)}, {"dtype": "uint16"}, {"coding": "plain"}]
)
def test_config_id_tells_mask_shape_dtype_and_codec_apart(change: dict) -> None:
    assert configuration(**change).config_id != configuration().config_id


def test_radial_power_of_white_noise_is_flat_and_sums_to_the_variance() -> None:
    frames = 3.0 * torch.randn(16, 48, 64, generator=torch.Generator().manual_seed(0))
    calibration = Calibration.from_frames(frames)
    rings = torch.tensor(calibration.radial_power[4:24])
    assert rings.mean() == pytest.approx(9.0, rel=0.03)
    assert calibration.radial_power[0] == pytest.approx(0.0, abs=1e-9)
    assert calibration.standard_deviation == pytest.approx(3.0, rel=0.02)


@given(st.integers(8, 40), st.integers(8, 40))
def test_radial_power_keeps_parseval_for_any_shape(height: int, width: int) -> None:
    frames = torch.randn(
        2, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(height)
    )
    calibration = Calibration.from_frames(frames)
    weight = torch.full((height, width // 2 + 1), 2.0, dtype=torch.float64)
    weight[:, 0] = 1
    if width % 2 == 0:
        weight[:, -1] = 1
    rings = radial_bins((height, width))
    total = (torch.tensor(calibration.radial_power, dtype=torch.float64)[rings] * weight).sum()
    expected = (frames - frames.mean((1, 2), keepdim=True)).square().sum() / 2
    assert math.isclose(float(total), float(expected), rel_tol=1e-9)
