"""A prior's folder: what has to lie in it, and everything in it checked before any of it is used.

Two layouts, both diffusers' own: ``UNet2DModel.save_pretrained``, ``config.json`` beside
``diffusion_pytorch_model.safetensors``; and ``DDPMPipeline.save_pretrained``, the same in ``unet/``. Noise
levels are in ``scheduler/scheduler_config.json``, the card in ``card.json``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open

from reconstructor.priors.base import Flow, Prediction, PriorCard, Schedule, VariancePreserving

CARD = "card.json"
CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
SCHEDULER = "scheduler/scheduler_config.json"
UNET = "unet"
FILES = (CARD, SCHEDULER, CONFIG, WEIGHTS, f"{UNET}/{CONFIG}", f"{UNET}/{WEIGHTS}")

# Standard deviation of images brought to [-1, 1] by their extremes, of which a folder without a card says
# nothing: white noise of 128x128 pixels has 0.25, EMPIAR-10076's particles at that size 0.23 to 0.27.
ASSUMED_SIGNAL_STD = 0.25
LONGEST_TEXT_BYTES = 1_000_000
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
FLOW_STEPS = 1000

Described = TypeVar("Described", bound=BaseModel)
Share = Annotated[float, Field(gt=0, lt=1)]
Side = Annotated[int, Field(ge=8, le=16_384)]
Channels = Annotated[int, Field(ge=1, le=16_384)]


class NetworkConfig(BaseModel):
    """What a prior asks of diffusers' ``config.json``; all else is the network's own business."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    kind: Literal["UNet2DModel"] = Field(alias="_class_name")
    sample_size: Side | tuple[Side, Side]
    in_channels: Literal[1]
    out_channels: Literal[1]
    block_out_channels: tuple[Channels, ...] = Field(min_length=1, max_length=10)
    layers_per_block: int = Field(ge=1, le=32)
    down_block_types: tuple[Literal["DownBlock2D", "AttnDownBlock2D"], ...]
    up_block_types: tuple[Literal["UpBlock2D", "AttnUpBlock2D"], ...]
    time_embedding_type: Literal["positional"] = "positional"
    class_embed_type: None = None
    num_class_embeds: None = None

    @property
    def side_pixels(self) -> int:
        """Side of the images it was made for, the longer one."""
        return self.sample_size if isinstance(self.sample_size, int) else max(self.sample_size)


class DiffusionScheduler(BaseModel):
    """What is read of a ``scheduler_config.json`` of a diffusion model; defaults are diffusers' own."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    kind: Literal["DDPMScheduler", "DDIMScheduler"] = Field(alias="_class_name")
    num_train_timesteps: int = Field(1000, ge=2, le=100_000)
    beta_start: Share = 1e-4
    beta_end: Share = 0.02
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    trained_betas: list[Share] | None = Field(None, min_length=2, max_length=100_000)
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    rescale_betas_zero_snr: Literal[False] = False

    def schedule(self) -> VariancePreserving:
        """The noise levels."""
        from diffusers import DDPMScheduler

        levels = self.model_dump(exclude={"kind", "prediction_type", "rescale_betas_zero_snr"})
        return VariancePreserving(DDPMScheduler(**levels).betas)


class FlowScheduler(BaseModel):
    """What is read of a flow's ``scheduler_config.json``."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    kind: Literal["FlowMatchEulerDiscreteScheduler"] = Field(alias="_class_name")
    num_train_timesteps: Literal[1000] = 1000

    def schedule(self) -> Flow:
        """The noise levels."""
        return Flow()


@dataclass(frozen=True)
class PriorFolder:
    """A folder that was found to be in order.

    Attributes
    ----------
    card : PriorCard
        Its own, or one made up from what the other files tell.
    schedule : Schedule
        Noise levels.
    config : dict
        Of the network, as diffusers wrote it.
    weights : Path
        The safetensors file.
    shapes : dict
        Name to shape of every tensor in that file.
    """

    card: PriorCard
    schedule: Schedule
    config: dict[str, Any]
    weights: Path
    shapes: dict[str, tuple[int, ...]]


def read_folder(folder: Path) -> PriorFolder:
    """Read all of a prior's folder but the weights' values.

    Without a card, as other people's models come, one is made up: ``frames``, brought to [-1, 1] by their
    extremes, with the standard deviation this gives cryo-EM particles (``ASSUMED_SIGNAL_STD``); it says that
    nothing is known of what the network was trained on. Put a ``card.json`` there to say what is known.

    Raises
    ------
    ValueError
        One line: which file is missing, broken or of a kind that is not read, and what to do.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: not a folder; a prior is a folder as diffusers saves it")
    pipeline = folder / "model_index.json"
    if pipeline.exists():
        parts = {name for name in _json(pipeline) if not name.startswith("_")}
        if others := sorted(parts - {UNET, "scheduler"}):
            raise ValueError(f"{pipeline}: needs {', '.join(others)}; only a unet and a scheduler are read")
    place = folder / UNET if (folder / UNET).is_dir() else folder
    text = _json(place / CONFIG)
    network = _checked(NetworkConfig, text, place / CONFIG)
    shapes = _shapes(place / WEIGHTS)
    parameters = sum(prod(shape) for shape in shapes.values())

    at = folder / SCHEDULER
    scheduler: DiffusionScheduler | FlowScheduler | None = None
    prediction: Prediction = "epsilon"
    if at.exists():
        levels = _json(at)
        if levels.get("_class_name") == "FlowMatchEulerDiscreteScheduler":
            scheduler, prediction = _checked(FlowScheduler, levels, at), "flow"
        else:
            scheduler = _checked(DiffusionScheduler, levels, at)
            prediction = scheduler.prediction_type
    elif not (folder / CARD).exists():
        raise ValueError(f"{folder}: neither {CARD} nor {SCHEDULER} there, so what it predicts is not known")

    if (folder / CARD).exists():
        card = _checked(PriorCard, _json(folder / CARD), folder / CARD)
        if scheduler and card.prediction != prediction:
            raise ValueError(
                f"{folder / CARD}: says that {card.prediction} is predicted, {SCHEDULER} says {prediction}"
            )
        if card.parameters != parameters:
            raise ValueError(
                f"{folder / CARD}: says {card.parameters} parameters, {place / WEIGHTS} holds {parameters}"
            )
    else:
        card = PriorCard(
            name=folder.resolve().name, content="frames", prediction=prediction,
            side_pixels=network.side_pixels, pixel_size_angstrom=None, signal_std=ASSUMED_SIGNAL_STD,
            trained_on=f"nothing is known of it: no {CARD} came with it; taken to be frames as recorded, "
            f"brought to [-1, 1] by their extremes, of standard deviation {ASSUMED_SIGNAL_STD}",
            images=0, steps=0, batch=0, parameters=parameters,
        )  # fmt: skip
    schedule = scheduler.schedule() if scheduler else usual_schedule(card.prediction)
    if not bool(schedule.sigma.isfinite().all()):
        raise ValueError(f"{at}: nothing is left of the image at the last steps; use fewer or smaller betas")
    return PriorFolder(card, schedule, text, place / WEIGHTS, shapes)


def usual_schedule(prediction: Prediction) -> Schedule:
    """The noise levels of a prior that says nothing else of them."""
    return Flow() if prediction == "flow" else VariancePreserving()


def scheduler_config(schedule: Schedule, prediction: Prediction) -> dict[str, Any]:
    """``scheduler_config.json`` from which diffusers makes the same noise levels."""
    if isinstance(schedule, Flow):
        return {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": FLOW_STEPS}
    assert isinstance(schedule, VariancePreserving)
    usual = torch.equal(schedule.betas, VariancePreserving().betas)
    return {
        "_class_name": "DDPMScheduler", "num_train_timesteps": len(schedule.betas),
        "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02,
        "trained_betas": None if usual else schedule.betas.tolist(),
        "prediction_type": prediction, "clip_sample": False,
    }  # fmt: skip


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LONGEST_TEXT_BYTES:
            raise ValueError(f"{path}: over {LONGEST_TEXT_BYTES} bytes, so not what diffusers writes there")
        text = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ValueError(f"{path}: missing; a prior is a folder as diffusers saves it") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(text, dict):
        raise ValueError(f"{path}: must be a JSON object")
    return text


def _checked(model: type[Described], text: dict[str, Any], path: Path) -> Described:
    try:
        return model.model_validate(text)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        got = "" if first["type"] == "missing" else f", got {str(first['input'])[:60]!r}"
        raise ValueError(f"{path}: {name}: {first['msg']}{got}") from error


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a safetensors file, which is checked to be whole."""
    if not path.is_file():
        pickled = sorted(found.name for pattern in PICKLED for found in path.parent.glob(pattern))
        if pickled:
            raise ValueError(
                f"{path.parent / pickled[0]}: pickled weights are not read, for reading can run code that is "
                f"in them; save the model anew with diffusers' save_pretrained, which writes {WEIGHTS}"
            )
        if path.with_name(f"{path.name}.index.json").exists():
            raise ValueError(f"{path.parent}: weights in several files are not read; save them as one")
        raise ValueError(f"{path}: missing; a prior is a folder as diffusers saves it")
    try:
        with safe_open(path, "pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            odd = next(
                (name for name, part in parts.items() if not part.get_dtype().startswith(("F", "BF"))), None
            )
            shapes = {name: tuple(part.get_shape()) for name, part in parts.items()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error}); copy it again") from error
    if odd is not None:
        raise ValueError(f"{path}: {odd} is not of floating point")
    return shapes
