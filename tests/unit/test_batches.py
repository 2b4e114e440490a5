"""Blocks to images: batches, single bad frames, and masks that do not agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import msgspec
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


def _recoverer(
    frames_per_batch: int = 8,
    mask_hash: str = OPERATOR.mask_hash,
    batch_changed: Callable[..., Any] = lambda *_: None,
    keeps_pace: bool = False,
    lpips: Any = None,
) -> Recoverer:
    pixels = frames_per_batch * SHAPE[0] * SHAPE[1]
    recoverer = Recoverer(torch.device("cpu"), pixels, batch_changed, keeps_pace=keeps_pace, lpips=lpips)
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
    assert outcome.results.lpips == {}


class _Network:
    """In LPIPS' place: the mean difference."""

    def on(self, device: torch.device) -> _Network:
        return self

    def distance(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().mean((1, 2))


def test_reference_frames_have_an_lpips_where_a_network_is_given_and_they_are_not_too_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (outcome,) = _recoverer(lpips=_Network()).recover([_block([4, 5], references=[4])], CHOICE)
    assert outcome.results is not None
    assert (list(outcome.results.psnr), outcome.results.lpips) == ([4], {})
    monkeypatch.setattr(reconstructor.batches, "SMALLEST_SIDE", min(SHAPE))
    (outcome,) = _recoverer(lpips=_Network()).recover([_block([4, 5], references=[4])], CHOICE)
    assert outcome.results is not None
    wanted = 2 * np.abs(outcome.results.images[0] - FRAMES[4]).mean() / np.ptp(FRAMES[4])
    assert outcome.results.lpips == {4: pytest.approx(wanted)}


def test_a_bad_frame_does_not_take_others_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = OPERATOR.A(torch.from_numpy(FRAMES[[6]].astype(np.float32))).numpy()

    class Choosy(Recovery):
        def __call__(self, y: torch.Tensor, frame_ids: Sequence[int] | None = None) -> Recovered:
            if any(np.array_equal(one, bad[0]) for one in y.numpy()):
                raise RuntimeError("cannot\nbe recovered")
            return super().__call__(y, frame_ids)

    monkeypatch.setattr(reconstructor.batches, "Recovery", Choosy)
    fine, mixed = _recoverer().recover([_block([0, 1]), _block([5, 6, 7])], CHOICE)
    assert fine.rejected == {}
    assert mixed.rejected == {6: "cannot be recovered"}
    assert mixed.results is not None
    assert list(mixed.results.rows) == [0, 2]
    np.testing.assert_allclose(mixed.results.images, _expected([5, 7]), rtol=1e-4, atol=1e-3)


def test_an_image_that_is_not_finite_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Recovery):
        def __call__(self, y: torch.Tensor, frame_ids: Sequence[int] | None = None) -> Recovered:
            recovered = super().__call__(y, frame_ids)
            recovered.images[0, 0, 0] = float("nan")
            return recovered

    monkeypatch.setattr(reconstructor.batches, "Recovery", Broken)
    (outcome,) = _recoverer().recover([_block([0, 1])], CHOICE)
    assert outcome.results is None
    assert outcome.rejected == dict.fromkeys([0, 1], "the recovered image is not finite")


def test_a_measurement_that_is_not_finite_is_rejected_alone() -> None:
    """Codings of real numbers let it through; it must not spoil those beside it."""
    codec = CodecSpec(values="float32", coding="plain")
    recoverer = _recoverer()
    configuration = Configuration.create(
        MASK, SHAPE, "float32", codec, mask_hash=OPERATOR.mask_hash,
        compression_factor=OPERATOR.compression_factor,
        printed_compression_factor=OPERATOR.printed_compression_factor,
    )  # fmt: skip
    recoverer.configure(ConfigurationNotice(configuration=configuration.model_dump(mode="json")))
    y = OPERATOR.A(torch.from_numpy(FRAMES[:6].astype(np.float32))).numpy()
    y[4].flat[7] = np.inf
    payload, buffer = encode_array(y, codec)
    header = Frames(
        series="s1", block=0, config_id=configuration.config_id, frame_ids=list(range(6)),
        acquired_at=[0.0] * 6, payload=payload,
    )  # fmt: skip
    (outcome,) = recoverer.recover([Block(header, [memoryview(np.asarray(buffer))])], CHOICE)
    assert outcome.rejected == {4: "the measurement holds numbers that are not finite"}
    assert outcome.results is not None
    assert list(outcome.results.rows) == [0, 1, 2, 3, 5]
    expected = _expected([0, 1, 2, 3, 5])
    np.testing.assert_allclose(outcome.results.images, expected, rtol=0, atol=1e-5 * expected.max())


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_measurements_of_another_shape_do_not_reach_a_recovery(
    monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    called = []
    monkeypatch.setattr(Recovery, "__call__", lambda *_: called.append(1))
    y = np.zeros((2, 8, 6, 5), np.int32)
    y = y[:, :-1] if cut == 1 else y[:, :, :-1] if cut == 2 else y[..., :-1]
    payload, buffer = encode_array(y, CODEC)
    good = _block([0, 1])
    header = msgspec.structs.replace(good.header, payload=payload)
    (outcome,) = _recoverer().recover([Block(header, [memoryview(np.asarray(buffer))])], CHOICE)
    assert outcome.results is None
    assert all("[2, 8, 6, 5] expected" in reason for reason in outcome.rejected.values())
    assert outcome.rejected.keys() == {0, 1}
    assert not called


@pytest.mark.parametrize("spoil", ["torn", "shape"])
def test_reference_frames_that_cannot_be_read_are_rejected_without_the_others(spoil: str) -> None:
    block = _block([0, 1, 2, 3, 4], references=[1, 3])
    header, whole = block.header, block.buffers[1]
    if spoil == "torn":
        whole = whole[:-5]
    else:
        reference_payload, other = encode_array(FRAMES[[1, 3], :-1], CODEC)
        header = msgspec.structs.replace(header, reference_payload=reference_payload)
        whole = memoryview(np.asarray(other))
    (outcome,) = _recoverer().recover([Block(header, [block.buffers[0], whole])], CHOICE)
    assert outcome.rejected.keys() == {1, 3}
    assert outcome.results is not None
    assert list(outcome.results.rows) == [0, 2, 4]


# ---- a learned prior


class _Prior:
    """A recovery in a learned prior's place: says of a frame that it was shifted by its number."""

    room = 1000  # frames that memory holds
    calls: ClassVar[list[tuple[int, list[int]]]] = []  # evaluations, frame_ids

    def __init__(self, op: Any, spec: RecoverySpec, calibration: Calibration) -> None:
        self._linear = Recovery(op, CHOICE.spec, calibration)
        self._evaluations = spec.parameters["evaluations"]
        self._samples = spec.parameters.get("samples", 1)

    def __call__(self, y: torch.Tensor, frame_ids: Sequence[int]) -> Any:
        assert len(frame_ids) == len(y)
        self.calls.append((self._evaluations, list(frame_ids)))
        if len(y) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        found = self._linear(y)
        spread = torch.full_like(found.images, 0.25) if self._samples > 1 else None
        return SimpleNamespace(
            images=found.images,
            free_residual=found.free_residual,
            prior_shift=torch.tensor([frame / 100 if frame else torch.nan for frame in frame_ids]),
            spread=spread,
        )


@pytest.fixture
def prior(monkeypatch: pytest.MonkeyPatch) -> type[_Prior]:
    monkeypatch.setattr(reconstructor.batches, "Recovery", _Prior)
    monkeypatch.setattr(_Prior, "calls", [])
    monkeypatch.setattr(_Prior, "room", 1000)
    return _Prior


def _learned(**parameters: Any) -> RecoveryChoice:
    return RecoveryChoice(RecoverySpec(method="diffusion", parameters=parameters), f"r{parameters}")


def test_a_frame_keeps_its_number_and_what_is_told_of_it_however_batches_are_cut(prior: type[_Prior]) -> None:
    prior.room = 2
    blocks = [_block([3, 4, 5, 6], wanted=[6, 4]), _block([0]), _block([7, 8, 9])]
    outcomes = _recoverer().recover(blocks, _learned(evaluations=12))
    assert [frames for _, frames in prior.calls] == [
        [4, 6, 0, 7, 8, 9],
        [4, 6, 0],
        [4],
        [6],
        [0],
        [7],
        [8],
        [9],
    ]
    for outcome, frames in zip(outcomes, ([4, 6], [0], [7, 8, 9]), strict=True):
        assert outcome.results is not None
        assert [known.evaluations for known in outcome.results.learned] == [12] * len(frames)
        shifts = [known.prior_shift for known in outcome.results.learned]
        assert shifts == [pytest.approx(frame / 100) if frame else None for frame in frames]
        assert {known.posterior_spread for known in outcome.results.learned} == {None}


def test_what_is_told_of_frames_survives_a_bad_one_among_them(prior: type[_Prior]) -> None:
    class Choosy(prior):
        def __call__(self, y: torch.Tensor, frame_ids: Sequence[int]) -> Any:
            if 6 in frame_ids:
                raise RuntimeError("cannot be recovered")
            return super().__call__(y, frame_ids)

    reconstructor.batches.Recovery = Choosy  # undone by the fixture
    (outcome,) = _recoverer().recover([_block([5, 6, 7, 8])], _learned(samples=3))
    assert outcome.rejected == {6: "cannot be recovered"}
    assert outcome.results is not None
    assert [known.prior_shift for known in outcome.results.learned] == pytest.approx([0.05, 0.07, 0.08])
    assert [known.posterior_spread for known in outcome.results.learned] == [0.25] * 3


def test_nothing_is_told_of_a_prior_where_none_is_used() -> None:
    (outcome,) = _recoverer().recover([_block([1, 2])], CHOICE)
    assert outcome.results is not None
    assert list(outcome.results.learned) == []


def test_without_a_stream_to_keep_up_with_the_usual_number_of_evaluations_is_taken(
    prior: type[_Prior],
) -> None:
    recoverer = _recoverer()
    recoverer.recover([_block([1])], _learned())
    recoverer.recover([_block([1])], _learned(evaluations=33))
    assert [evaluations for evaluations, _ in prior.calls] == [20, 33]
    assert recoverer.pace is None


def test_the_number_of_evaluations_follows_what_is_measured(prior: type[_Prior]) -> None:
    recoverer, choice = _recoverer(keeps_pace=True), _learned()
    (first,) = recoverer.recover([_block([1])], choice)
    assert first.results is not None
    assert first.results.learned[0].evaluations == 20
    assert recoverer.pace is not None
    assert recoverer.pace.cost is None  # the first call of a recovery is not what they cost
    recoverer.recover([_block([2])], choice)
    assert recoverer.pace.cost is not None
    for second in range(4):
        recoverer.pace.came(float(second), [float(second)])
    recoverer.pace.took(1, 20, 1e6)
    (last,) = recoverer.recover([_block([3])], choice)
    assert last.results is not None
    assert last.results.learned[0].evaluations == 10
    assert [evaluations for evaluations, _ in prior.calls] == [20, 20, 10]


def test_another_recovery_is_measured_anew_and_one_without_a_prior_is_not(prior: type[_Prior]) -> None:
    recoverer = _recoverer(keeps_pace=True)
    pace = recoverer.keep_pace(_learned())
    assert pace is not None
    assert recoverer.keep_pace(_learned()) is pace
    assert recoverer.keep_pace(_learned(samples=2)) is not pace
    assert recoverer.keep_pace(CHOICE) is None
    assert recoverer.pace is None


# ---- memory that is short


class _Small(Recovery):
    """A recovery that has memory for so many frames at a time."""

    room = 3
    sizes: ClassVar[list[int]] = []

    def __call__(self, y: torch.Tensor, frame_ids: Sequence[int] | None = None) -> Recovered:
        self.sizes.append(len(y))
        if len(y) > self.room:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {len(y)} GiB")
        return super().__call__(y, frame_ids)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> type[_Small]:
    monkeypatch.setattr(reconstructor.batches, "Recovery", _Small)
    monkeypatch.setattr(reconstructor.batches, "PAUSES_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(_Small, "sizes", [])
    monkeypatch.setattr(_Small, "room", 3)
    return _Small


@pytest.mark.parametrize("method", ["minimum_norm", "wiener", "dct", "wavelet", "tv"])
def test_a_batch_that_memory_does_not_hold_is_halved_and_comes_back_the_same(
    monkeypatch: pytest.MonkeyPatch, method: Any
) -> None:
    choice = RecoveryChoice(RecoverySpec(method=method, free_share=0.1), "r1")
    blocks = [_block(list(range(10)), references=[2, 7]), _block([11, 12, 13])]
    whole = _recoverer(100).recover(blocks, choice)
    monkeypatch.setattr(reconstructor.batches, "Recovery", _Small)
    monkeypatch.setattr(_Small, "sizes", [])
    monkeypatch.setattr(_Small, "room", 3)
    told = []
    recoverer = _recoverer(100, batch_changed=lambda *change: told.append(change))
    halved = recoverer.recover(blocks, choice)
    assert _Small.sizes == [13, 6, 3, 3, 3, 3, 1]
    assert recoverer.batch_halvings == 2
    assert recoverer.frames_at_a_time == 3
    assert told == [((_configuration().config_id, method), 3, True)]
    for a, b in zip(whole, halved, strict=True):
        assert b.rejected == {}
        assert a.results is not None
        assert b.results is not None
        scale = np.abs(a.results.images).max()
        np.testing.assert_allclose(b.results.images, a.results.images, rtol=0, atol=2e-6 * scale)
        np.testing.assert_allclose(
            np.array(b.results.free_residual, float), np.array(a.results.free_residual, float), rtol=1e-4
        )
        assert b.results.psnr == pytest.approx(a.results.psnr, rel=1e-4)
    _Small.sizes.clear()
    recoverer.recover(blocks, choice)
    assert _Small.sizes == [3, 3, 3, 3, 1]  # not one that fails first


def test_what_is_kept_for_the_free_residual_does_not_depend_on_how_batches_are_cut() -> None:
    """The same measurements are held out of every frame, whoever recovers it and with whichever others."""
    first, again = (Recovery(OPERATOR, CHOICE.spec, CALIBRATION) for _ in range(2))
    assert first.held_out is not None
    assert again.held_out is not None
    assert torch.equal(first.held_out, again.held_out)
    y = OPERATOR.A(torch.from_numpy(FRAMES.astype(np.float32)))
    whole = first(y).free_residual
    for size in (1, 5, 16):
        parts = torch.cat([again(part).free_residual for part in y.split(size)])
        torch.testing.assert_close(parts, whole, rtol=1e-5, atol=0)


def test_a_frame_that_does_not_fit_alone_is_rejected_and_the_worker_goes_on(small: type[_Small]) -> None:
    small.room = 0
    recoverer = _recoverer()
    (outcome,) = recoverer.recover([_block([0, 1])], CHOICE)
    assert outcome.results is None
    assert outcome.rejected.keys() == {0, 1}
    for reason in outcome.rejected.values():
        assert "out of memory on cpu: one frame of 24 x 20 pixels alone does not fit" in reason
        assert "a smaller batch_pixels does not help" in reason
    small.room = 100
    (outcome,) = recoverer.recover([_block([0, 1])], CHOICE)
    assert outcome.rejected == {}


def test_memory_that_comes_free_while_one_frame_waits_for_it_saves_the_frame(small: type[_Small]) -> None:
    class Passing(small):
        def __call__(self, y: torch.Tensor, frame_ids: Sequence[int] | None = None) -> Recovered:
            type(self).room = 0 if len(self.sizes) < 3 else 100
            return super().__call__(y, frame_ids)

    reconstructor.batches.Recovery = Passing  # undone by the fixture
    (outcome,) = _recoverer().recover([_block([0, 1])], CHOICE)
    assert outcome.rejected == {}
    assert small.sizes == [2, 1, 1, 1, 1]


def test_what_is_kept_makes_room_for_a_recovery_that_cannot_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = 2

    class Large(Recovery):
        built = 0

        def __init__(self, *args: object) -> None:
            assert recoverer is not None
            if len(recoverer._recoveries) >= kept:
                raise torch.OutOfMemoryError("CUDA out of memory")
            super().__init__(*args)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(reconstructor.batches, "Recovery", Large)
    recoverer = _recoverer()
    for number in range(5):
        (outcome,) = recoverer.recover([_block([0])], RecoveryChoice(CHOICE.spec, f"r{number}"))
        assert outcome.rejected == {}
    kept = 0
    (outcome,) = recoverer.recover([_block([0])], RecoveryChoice(CHOICE.spec, "never"))
    assert "out of memory" in outcome.rejected[0]


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
