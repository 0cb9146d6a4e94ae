"""HTTP problems (RFC 9457): a status and one line, without paths."""

from __future__ import annotations

import json
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response

__all__ = ["CLIENT_CLOSED", "PROBLEM_TYPE", "Problem", "problem_response"]

PROBLEM_TYPE = "application/problem+json"
CLIENT_CLOSED = 499  # as nginx calls it; only ever logged


class Problem(Exception):
    """A request that is refused.

    Attributes:
        status: HTTP status.
        detail: What is wrong, which rule holds, how to fix it.
        reason: One word for the metrics.
        headers: Further headers of the answer.
        note: For the log alone.
    """

    def __init__(
        self, status: int, detail: str, *, reason: str = "", headers: dict[str, str] | None = None, note: str = ""
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.reason = reason or str(status)
        self.headers = headers or {}
        self.note = note


def problem_response(request: Request, problem: Problem) -> Response:
    """The answer to a refused request, in the form that the route's clients read."""
    is_v2 = request.url.path == "/v2" or request.url.path.startswith("/v2/")
    title = "Client Closed Request" if problem.status == CLIENT_CLOSED else HTTPStatus(problem.status).phrase
    body = {"type": "about:blank", "title": title, "status": problem.status, "detail": problem.detail}
    # Stock clients of v2 report anything else as a failure to decode. In ASCII: a detail may hold what UTF-8 does not.
    text = json.dumps({"error": problem.detail} if is_v2 else body)
    media_type = "application/json" if is_v2 else PROBLEM_TYPE
    return Response(text, problem.status, headers=problem.headers, media_type=media_type)
