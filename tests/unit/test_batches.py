"""Blocks to images: batches, single bad frames, and masks that do not agree."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import reconstructor.batches
from common.calibration import Calibration
from common.configuration import CodecSpec, Configuration
from common.operators.spec import MaskSpec
from common.session import RecoverySpec
from common.wire.codec import encode_array
from common.wire.messages import ConfigurationNotice, Frames, Start
from reconstructor.batches import Block, Recoverer, RecoveryChoice
from reconstructor.recovery import Recovered, Recovery

SHAPE = (24, 20)
MASK = MaskSpec(kind="coded-aperture", kernel_size=4, mask_count=8)  # pyright: ignore[reportCallIssue]
CODEC = CodecSpec(values="integer", coding="packed")
CHOICE = RecoveryChoice(RecoverySpec(method="minimum_norm", free_share=0.1), "r1")
OPERATOR = MASK.build(SHAPE)
FRAMES = np.random.default_rng(0).poisson(20, (32, *SHAPE)).astype(np.uint8)
CALIBRATION = Calibration.from_frames(torch.from_numpy(FRAMES[:4].astype(np.float32)))


def _configuration(mask_hash: str = OPERATOR.mask_hash) -> Configuration:
    return Configuration.create(
        MASK,
        SHAPE,
        "uint8",
        CODEC,
        mask_hash=mask_hash,
        compression_factor=OPERATOR.compression_factor,
        printed_compression_factor=OPERATOR.printed_compression_factor,
    )


def _recoverer(frames_per_batch: int = 8, mask_hash: str = OPERATOR.mask_hash) -> Recoverer:
    recoverer = Recoverer(torch.device("cpu"), frames_per_batch * SHAPE[0] * SHAPE[1])
    recoverer.start(
        Start(
            series="s1",
            session="x",
            frames_expected=None,
            shape=SHAPE,
            dtype="uint8",
            pixel_size_angstrom=1.5,
            output="",
            optics={},
            calibration=CALIBRATION.model_dump(),
        )
    )
    configuration = _configuration(mask_hash)
    assert recoverer.configure(ConfigurationNotice(configuration=configuration.model_dump(mode="json")))
    return recoverer


def _block(ids: list[int], *, references: list[int] | None = None, wanted: list[int] | None = None) -> Block:
    references = references or []
    y = OPERATOR.A(torch.from_numpy(FRAMES[ids].astype(np.float32))).round().to(torch.int32).numpy()
    payload, buffer = encode_array(y, CODEC)
    buffers = [memoryview(np.asarray(buffer))]
    reference_payload = None
    if references:
        reference_payload, whole = encode_array(FRAMES[references], CODEC)
        buffers.append(memoryview(np.asarray(whole)))
    header = Frames(
        series="s1",
        block=ids[0],
        config_id=_configuration().config_id,
        frame_ids=ids,
        acquired_at=[0.0] * len(ids),
        payload=payload,
        reference_ids=references,
        reference_payload=reference_payload,
        wanted=wanted,
    )
    return Block(header, buffers)


def _expected(ids: list[int]) -> np.ndarray:
    y = OPERATOR.A(torch.from_numpy(FRAMES[ids].astype(np.float32)))
    return Recovery(OPERATOR, CHOICE.spec, CALIBRATION)(y).images.numpy()


@pytest.mark.parametrize("frames_per_batch", [1, 3, 100])
def test_batches_of_any_size_give_the_same_images(frames_per_batch: int) -> None:
    blocks = [_block([0, 1, 2, 3, 4]), _block([9]), _block([5, 6])]
    outcomes = _recoverer(frames_per_batch).recover(blocks, CHOICE)
    for block, outcome in zip(blocks, outcomes, strict=True):
        assert outcome.rejected == {}
        assert outcome.results is not None
        assert outcome.results.header is block.header
        expected = _expected(block.header.frame_ids)
        np.testing.assert_allclose(
            outcome.results.images, expected, rtol=0, atol=1e-5 * np.abs(expected).max()
        )
        assert all(0 < value < 2 for value in outcome.results.free_residual if value is not None)
        assert None not in outcome.results.free_residual
        assert outcome.results.compression_factor == OPERATOR.compression_factor


def test_only_wanted_frames_are_recovered_again() -> None:
    (outcome,) = _recoverer().recover([_block([0, 1, 2, 3], references=[1, 2], wanted=[3, 1])], CHOICE)
    assert outcome.results is not None
    assert list(outcome.results.rows) == [1, 3]
    np.testing.assert_allclose(outcome.results.images, _expected([1, 3]), rtol=1e-4, atol=1e-3)
    assert outcome.results.psnr.keys() == {1}


def test_reference_frames_are_judged() -> None:
    (outcome,) = _recoverer().recover([_block([4, 5, 6], references=[4, 6])], CHOICE)
    assert outcome.results is not None
    assert outcome.results.psnr.keys() == outcome.results.ssim.keys() == {4, 6}
    assert all(10 < value < 60 for value in outcome.results.psnr.values())
    assert all(2 * 1.5 <= value <= 24 * 1.5 for value in outcome.results.frc_resolution_angstrom.values())


def test_a_bad_frame_does_not_take_others_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = OPERATOR.A(torch.from_numpy(FRAMES[[6]].astype(np.float32))).numpy()

    class Choosy(Recovery):
        def __call__(self, y: torch.Tensor) -> Recovered:
            if any(np.array_equal(one, bad[0]) for one in y.numpy()):
                raise RuntimeError("cannot\nbe recovered")
            return super().__call__(y)

    monkeypatch.setattr(reconstructor.batches, "Recovery", Choosy)
    fine, mixed = _recoverer().recover([_block([0, 1]), _block([5, 6, 7])], CHOICE)
    assert fine.rejected == {}
    assert mixed.rejected == {6: "cannot be recovered"}
    assert mixed.results is not None
    assert list(mixed.results.rows) == [0, 2]
    np.testing.assert_allclose(mixed.results.images, _expected([5, 7]), rtol=1e-4, atol=1e-3)


def test_an_image_that_is_not_finite_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Recovery):
        def __call__(self, y: torch.Tensor) -> Recovered:
            recovered = super().__call__(y)
            recovered.images[0, 0, 0] = float("nan")
            return recovered

    monkeypatch.setattr(reconstructor.batches, "Recovery", Broken)
    (outcome,) = _recoverer().recover([_block([0, 1])], CHOICE)
    assert outcome.results is None
    assert outcome.rejected == dict.fromkeys([0, 1], "the recovered image is not finite")


def test_a_payload_that_cannot_be_decoded_is_rejected() -> None:
    block = _block([0, 1])
    torn = Block(block.header, [block.buffers[0][:-5]])
    outcome, fine = _recoverer().recover([torn, _block([2])], CHOICE)
    assert outcome.results is None
    assert outcome.rejected.keys() == {0, 1}
    assert fine.results is not None


def test_a_mask_drawn_otherwise_is_refused() -> None:
    (outcome,) = _recoverer(mask_hash="another").recover([_block([0, 1])], CHOICE)
    assert outcome.results is None
    assert outcome.rejected.keys() == {0, 1}
    assert all("another" in reason and OPERATOR.mask_hash in reason for reason in outcome.rejected.values())


def test_frames_of_an_unknown_configuration_or_series_are_rejected() -> None:
    recoverer = Recoverer(torch.device("cpu"), 1000)
    (outcome,) = recoverer.recover([_block([0])], CHOICE)
    assert outcome.results is None
    assert "not announced" in outcome.rejected[0]


def test_a_recovery_that_cannot_be_built_rejects_and_the_next_one_works() -> None:
    recoverer = _recoverer()
    wrong = RecoveryChoice(RecoverySpec(method="minimum_norm", parameters={"speed": 3}), "r2")
    (outcome,) = recoverer.recover([_block([0])], wrong)
    assert "speed" in outcome.rejected[0]
    (outcome,) = recoverer.recover([_block([0])], CHOICE)
    assert outcome.rejected == {}


def test_recoveries_are_built_once_and_only_so_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    class Counted(Recovery):
        def __init__(self, *args: object) -> None:
            built.append(args)
            super().__init__(*args)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(reconstructor.batches, "Recovery", Counted)
    recoverer = _recoverer()
    for _ in range(3):
        recoverer.recover([_block([0])], CHOICE)
    assert len(built) == 1
    for number in range(reconstructor.batches.RECOVERIES_KEPT):
        recoverer.recover([_block([0])], RecoveryChoice(CHOICE.spec, f"other {number}"))
    recoverer.recover([_block([0])], CHOICE)
    assert len(built) == reconstructor.batches.RECOVERIES_KEPT + 2
