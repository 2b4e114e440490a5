"""The flat part of integer measurements is left at home and comes back to the last count."""

import numpy as np
import pytest
import torch

from common.configuration import CodecSpec
from common.flat_level import FlatLevel
from common.operators import MaskSpec
from common.session import ReadoutSpec
from common.wire.codec import decode_array, encode_array
from detector_sim.readout import Readout, make_configuration

MASK = MaskSpec.model_validate({"kind": "coded-aperture", "kernel_size": 4, "mask_count": 8})


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32"])
@pytest.mark.parametrize("shape", [(64, 64), (37, 50)])
def test_measurements_of_full_range_frames_come_back_exactly(dtype: str, shape: tuple[int, int]) -> None:
    info = np.iinfo(dtype)
    frames = np.random.default_rng(1).integers(info.min, info.max, (3, *shape), dtype=dtype, endpoint=True)
    configuration, operator = make_configuration(MASK, shape, dtype, ReadoutSpec(), frames)
    assert configuration.codec.level == round(frames.mean())
    sent = encode_array(Readout(operator, configuration.codec).readout(frames), configuration.codec)
    received = FlatLevel(operator, configuration.codec.level).put_back(decode_array(*sent))
    expected = operator.A(torch.from_numpy(frames.astype(np.float64))).numpy()
    np.testing.assert_array_equal(received, expected)


def test_counting_frames_take_fewer_bytes_without_their_level() -> None:
    frames = np.random.default_rng(2).poisson(45, (16, 128, 128)).astype(np.uint8)
    configuration, operator = make_configuration(MASK, (128, 128), "uint8", ReadoutSpec(), frames)
    sizes = []
    for level in (0, configuration.codec.level):
        codec = CodecSpec.model_validate({**configuration.codec.model_dump(), "level": level})
        _, buffer = encode_array(Readout(operator, codec).readout(frames), codec)
        sizes.append(memoryview(buffer).nbytes)
    assert sizes[1] < 0.85 * sizes[0]


def test_an_open_aperture_sends_frames_as_they_are() -> None:
    frames = np.full((2, 8, 8), 7, np.uint8)
    mask = MaskSpec.model_validate({"kind": "none"})
    configuration, operator = make_configuration(mask, (8, 8), "uint8", ReadoutSpec(), frames)
    assert configuration.codec.level == 0
    np.testing.assert_array_equal(Readout(operator, configuration.codec).readout(frames), frames)
