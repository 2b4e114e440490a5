"""The learned prior that a recovery asks for: looked for and described without its network.

Recoveries without one need nothing of it, so PyTorch is imported only where one is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from common.roots import ANYWHERE, Roots
from common.session import LEARNED, RecoverySpec
from common.wire.control import error_line
from services.explain import FieldProblem

if TYPE_CHECKING:
    from reconstructor.priors.base import PriorCard

FIELD = "parameters.prior"
LARGEST_CARD_BYTES = 1_000_000
PIXEL_SIZE_TOLERANCE = 0.01  # files say it with few digits


class Prior(NamedTuple):
    """A learned prior that is there.

    Attributes
    ----------
    place : str
        Its name, or the absolute path of its folder.
    card : PriorCard or None
        What it was trained on; None where nobody has written that down.
    """

    place: str
    card: PriorCard | None

    def told(self) -> str:
        """Which it is and what it was trained on, in one line."""
        if self.card is None:
            return f"learned prior {self.place}: nothing is known of what it was trained on (no card.json)"
        return f"learned prior {self.card.name}: trained on {self.card.trained_on}"

    def doubt(self, shape: tuple[int, int], pixel_size_angstrom: float) -> str:
        """In what a session's frames are not like those it was trained on, in one line; empty: in nothing."""
        if self.card is None:
            return ""
        differences: list[str] = []
        side, sizes = self.card.side_pixels, self.card.pixel_size_angstrom
        if tuple(shape) != (side, side):
            differences.append(f"of {shape[0]}x{shape[1]} pixels (it knows {side}x{side})")
        if sizes is not None and not (
            sizes[0] * (1 - PIXEL_SIZE_TOLERANCE)
            <= pixel_size_angstrom
            <= sizes[1] * (1 + PIXEL_SIZE_TOLERANCE)
        ):
            known = f"{sizes[0]:.4g}" if sizes[0] == sizes[1] else f"{sizes[0]:.4g} to {sizes[1]:.4g}"
            differences.append(f"at {pixel_size_angstrom:.4g} Å a pixel (it knows {known})")
        if not differences:
            return ""
        return (
            f"learned prior {self.card.name} was not trained on frames {' or '.join(differences)}: "
            "look at what it adds"
        )


def prior_of(spec: RecoverySpec, inputs: Roots = ANYWHERE) -> Prior | None:
    """The prior that a recovery asks for; None where its method has none.

    Raises
    ------
    ValueError
        In one line, if a parameter is wrong, or there is no such prior where sessions may read.
    """
    if spec.method != LEARNED:
        return None
    from reconstructor.recovery import check_recovery

    parameters: Any = check_recovery(spec)
    return find(str(parameters.prior), inputs)


def find(name: str, inputs: Roots = ANYWHERE) -> Prior:
    """A prior by its name, or by the folder that it lies in.

    Raises
    ------
    ValueError
        In one line, if there is none, or its card cannot be used.
    """
    from reconstructor.priors import BOX, prior_names
    from reconstructor.priors.folder import CARD, CONFIG

    names = prior_names()
    if name in names:
        return Prior(name, _card(ANYWHERE, str(BOX / name / CARD)))
    known = " and ".join([*names, "folders as diffusers saves them"])
    is_word = "/" not in name
    if is_word and (inputs.limited or not inputs.is_folder(name)):
        raise ValueError(f"{name!r:.200} is not known; there are {known}")
    folder = inputs.named(name)
    if inputs.is_file(folder / CARD):
        return Prior(str(folder), _card(inputs, str(folder / CARD)))
    if any(inputs.is_file(folder / place) for place in (CONFIG, f"unet/{CONFIG}")):
        return Prior(str(folder), None)
    raise ValueError(f"{name!r:.200}: there is no prior: neither {CARD} nor {CONFIG} can be read there")


def settled(spec: RecoverySpec, inputs: Roots = ANYWHERE) -> tuple[RecoverySpec, list[FieldProblem]]:
    """A recovery whose prior, where it is a folder, is named by its absolute path; and what is wrong with it.

    Other parameters are taken to be right.
    """
    try:
        prior = prior_of(spec, inputs)
    except ValueError as error:
        return spec, [FieldProblem(FIELD, error_line(error))]
    if prior is None or "prior" not in spec.parameters:
        return spec, []
    return spec.model_copy(update={"parameters": {**spec.parameters, "prior": prior.place}}), []


def _card(inputs: Roots, path: str) -> PriorCard:
    from reconstructor.priors.base import PriorCard

    try:
        with inputs.open(path) as file:
            return PriorCard.model_validate_json(file.read(LARGEST_CARD_BYTES))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be used ({error_line(error)})") from error
