"""The page on which a browser signs in: one file that needs no other, for nothing else is served before."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from services.control_plane.headers import inline_hashes

PAGE = Path(__file__).parent / "sign_in_page.html"
MEDIA_TYPE = "text/html; charset=utf-8"

ROOT = b'data-root="./"'
LARGEST_DEPTH = 64  # folders; an address that is deeper is nothing of ours


def sign_in_page(path: str) -> bytes:
    """The page, as the answer to a request for any path.

    Parameters
    ----------
    path : str
        As it was requested, neither decoded nor with its query: from it the page knows where the console
        begins, also behind a reverse proxy that takes a prefix away.
    """
    depth = min(path.partition("?")[0].count("/") - 1, LARGEST_DEPTH)
    return _content().replace(ROOT, b'data-root="%s"' % (b"../" * depth or b"./"), 1)


@lru_cache(maxsize=1)
def sign_in_policy() -> str:
    """Content-Security-Policy of the page: its own script and style, known by their hashes, nothing else."""
    content = _content()
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {inline_hashes('script', content)}",
            f"style-src {inline_hashes('style', content)}",
            "img-src data:",  # its icon
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


@lru_cache(maxsize=1)
def _content() -> bytes:
    return PAGE.read_bytes()
