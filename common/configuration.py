"""A configuration: mask, frame shape and dtype, codec. Every frame names the one it was taken with."""

from __future__ import annotations

import hashlib
import json
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from common.operators.spec import MaskSpec


class CodecSpec(BaseModel):
    """How measurements travel; every choice resolved, so that both ends agree."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    values: Literal["integer", "float32", "float16", "quantised"]
    step: float = Field(
        default=0.0,
        ge=0,
        description="quantised: one step, in the measurement's units; error is at most half",
    )
    coding: Literal["plain", "packed", "bitshuffle-lz4", "bitshuffle-zstd"]
    level: int = Field(
        default=0, description="integers: flat level taken off before coding; see common.flat_level"
    )

    @property
    def error_bound(self) -> str:
        """The largest error that coding can make, in words and numbers."""
        match self.values:
            case "integer":
                return "0 (lossless)"
            case "float32":
                return "relative 6e-8"
            case "float16":
                return "relative 4.9e-4"
            case "quantised":
                return f"absolute {self.step / 2:.6g}"


class Configuration(BaseModel):
    """What a worker must know to recover a frame; ``config_id`` is a hash of the first four fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mask: MaskSpec
    shape: tuple[int, int]
    dtype: str
    codec: CodecSpec
    config_id: str = ""
    mask_hash: str
    compression_factor: float
    printed_compression_factor: float

    @classmethod
    def create(
        cls, mask: MaskSpec, shape: tuple[int, int], dtype: str, codec: CodecSpec,
        *, mask_hash: str, compression_factor: float, printed_compression_factor: float,
    ) -> Self:  # fmt: skip
        """The configuration with its id computed."""
        identity = {"mask": mask.model_dump(), "shape": shape, "dtype": dtype, "codec": codec.model_dump()}
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
        return cls(
            mask=mask, shape=shape, dtype=dtype, codec=codec,
            config_id=hashlib.sha256(text.encode()).hexdigest()[:16],
            mask_hash=mask_hash, compression_factor=compression_factor,
            printed_compression_factor=printed_compression_factor,
        )  # fmt: skip
