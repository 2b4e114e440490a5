"""Request bodies: JSON, all of it JSON, and not more than a request can need."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

LARGEST_BYTES = 1_000_000
MEDIA_TYPE = "application/json"


class JsonRequest(Request):
    """A request whose body, if it has one, is JSON as RFC 8259 has it."""

    async def body(self) -> bytes:
        """The body.

        Raises
        ------
        HTTPException
            If it is too large, or is not said to be JSON.
        """
        if not hasattr(self, "_body"):
            chunks, size = list[bytes](), 0
            async for chunk in self.stream():
                chunks.append(chunk)
                size += len(chunk)
                if size > LARGEST_BYTES:
                    # what is still to come is not read: the connection cannot be used again
                    raise HTTPException(
                        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                        f"the body is larger than {LARGEST_BYTES} bytes",
                        headers={"Connection": "close"},
                    )
            self._body = b"".join(chunks)
            kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
            if self._body and kind != MEDIA_TYPE:
                said = f"not {kind}" if kind else "and has to say so"
                raise HTTPException(
                    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                    f"the body must be {MEDIA_TYPE}, {said}",
                    headers={"Accept": MEDIA_TYPE},
                )
        return self._body

    async def json(self) -> Any:
        """What the body says.

        Raises
        ------
        json.JSONDecodeError
            If it is no JSON, or holds what JSON has no words for: NaN, infinities, half a character.
        """
        body = await self.body()
        try:
            value = json.loads(body.decode("utf-8"))
            json.dumps(value, allow_nan=False, ensure_ascii=False).encode("utf-8")
        except json.JSONDecodeError:
            raise
        except UnicodeDecodeError as error:
            raise json.JSONDecodeError(f"not UTF-8: {error.reason}", "", error.start) from error
        except UnicodeEncodeError as error:
            raise json.JSONDecodeError("a surrogate without its other half", "", 0) from error
        except (ValueError, RecursionError) as error:  # NaN, a number too large, brackets without end
            raise json.JSONDecodeError(_why(error), "", 0) from error
        return value


def _why(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if "digits" in str(error):
        return "a number with too many digits"
    return "NaN and infinities are no numbers in JSON"


class JsonRoute(APIRoute):
    """A route whose body is read so."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As FastAPI makes it, but of a ``JsonRequest``."""
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive))

        return handle_json
