"""How a browser signs in and out: a token for a cookie."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from common.tokens import Role
from services.control_plane.body import JsonRoute
from services.control_plane.guard import ASKING, WRONG_TOKEN, Access
from services.control_plane.models import SignIn, SignInView
from services.control_plane.sign_in import COOKIE, LASTS_SECONDS, cookie_of


class SignInRoute(JsonRoute):
    """A route that tells who is not let in nothing else, whatever its body."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As any other, but what is wrong with the body is a 401 too."""
        handle = super().get_route_handler()

        async def handle_alike(request: Request) -> Response:
            try:
                return await handle(request)
            except (RequestValidationError, HTTPException) as error:
                if isinstance(error, HTTPException) and error.status_code == HTTPStatus.UNAUTHORIZED:
                    raise
                headers = getattr(error, "headers", None) or {}
                why = 'the body has to be {"token": "..."}, said to be application/json'
                raise HTTPException(HTTPStatus.UNAUTHORIZED, why, {**headers, **ASKING}) from error

        return handle_alike


router = APIRouter(prefix="/sign-in", tags=["sign-in"], route_class=SignInRoute)


def _access(request: Request) -> Access:
    return request.app.state.access


def _view(request: Request, role: Role) -> SignInView:
    return SignInView(role=role, needed=bool(_access(request).tokens))


@router.get("")
async def signed_in(request: Request) -> SignInView:
    """Who asks, by the token or the cookie of the request."""
    return _view(request, request.state.role)


@router.post(
    "",
    responses={
        200: {"headers": {"Set-Cookie": {"description": f"`{COOKIE}`", "schema": {"type": "string"}}}}
    },
)
async def sign_in(body: SignIn, request: Request, response: Response) -> SignInView:
    """Sign a browser in: the answer sets a cookie that shows the token's role for twelve hours.

    Scripts need no cookie; they send the token itself with every request. A control plane without tokens
    sets none.
    """
    access = _access(request)
    if not access.tokens:
        return _view(request, Role.OPERATOR)
    role = access.tokens.role_of(body.token.get_secret_value().encode("utf-8", "surrogatepass"))
    if role is None:
        await access.wrong(request.scope)
        raise HTTPException(HTTPStatus.UNAUTHORIZED, WRONG_TOKEN, dict(ASKING))
    response.set_cookie(
        COOKIE,
        cookie_of(access.tokens, role),
        max_age=LASTS_SECONDS,
        path="/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return _view(request, role)


@router.delete("", status_code=HTTPStatus.NO_CONTENT)
async def sign_out(request: Request, response: Response) -> None:
    """Sign a browser out: the cookie is gone from it."""
    response.delete_cookie(
        COOKIE, path="/", secure=request.url.scheme == "https", httponly=True, samesite="strict"
    )
