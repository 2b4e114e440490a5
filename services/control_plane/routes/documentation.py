"""The page to try calls out, from this server alone, under a policy that lets in nothing else."""

from __future__ import annotations

from functools import lru_cache

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html

from services.control_plane.headers import POLICY, inline_hashes

ASSETS = "/api/v1/docs-assets"  # fastapi-offline mounts them there

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def documentation(request: Request) -> Response:
    """Swagger UI."""
    page, policy = _page(request.app)
    return Response(page, headers={POLICY: policy}, media_type="text/html")


@lru_cache(maxsize=1)
def _page(app: FastAPI) -> tuple[bytes, str]:
    page = bytes(
        get_swagger_ui_html(
            openapi_url=str(app.openapi_url),
            title=app.title,
            swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{ASSETS}/favicon.png",
        ).body
    )
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src 'self' {inline_hashes('script', page)}",
            "style-src 'self'",
            "img-src 'self' data:",
            "font-src 'self' data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    return page, policy
