"""Learned priors: what images look like, told by a network that takes noise from them.

``load_prior("small")`` for one that comes with the product, ``load_prior("a/folder")`` for any other.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch

from reconstructor.priors.folder import CARD, FILES
from reconstructor.priors.network import NetworkPrior

__all__ = ["NetworkPrior", "load_prior", "prior_names"]

BOX = Path(__file__).parent
# networks of the paper's size take 0.5 GB each
KEPT = 4


def prior_names() -> list[str]:
    """Names of the priors that come with the product."""
    return sorted(card.parent.name for card in BOX.glob(f"*/{CARD}"))


def load_prior(name_or_folder: str | Path, device: torch.device | str = "cpu") -> NetworkPrior:
    """A prior on a device; the last few are kept, and read again where their files have changed.

    Parameters
    ----------
    name_or_folder : str or Path
        One of ``prior_names()``, or a folder as ``NetworkPrior.load`` reads it; ``./small`` is a folder.
    device : torch.device or str
        Where it runs.

    Raises
    ------
    ValueError
        One line: the name is not known, and what there is; or what is wrong with the folder.
    """
    name = str(name_or_folder)
    names = prior_names()
    folder = BOX / name if name in names else Path(name_or_folder).expanduser()
    if not folder.is_dir():
        known = f"{', '.join(names)}, or a folder" if names else "none in the box; name a folder"
        raise ValueError(f"prior {name!r}: not known; there is {known} as diffusers saves it")
    folder = folder.resolve()
    there = [(folder / file).stat() for file in FILES if (folder / file).exists()]
    state = tuple((file.st_ino, file.st_mtime_ns, file.st_size) for file in there)
    return _loaded(folder, str(torch.device(device)), state)


@lru_cache(maxsize=KEPT)
def _loaded(folder: Path, device: str, state: tuple[tuple[int, int, int], ...]) -> NetworkPrior:
    return NetworkPrior.load(folder, device)
