"""What a client is told when its request cannot be answered, in OpenAI's envelope."""

import logging
from collections.abc import Mapping
from typing import Any

from spark_jax.errors import SparkError, one_line

_LOG = logging.getLogger("spark_jax.serve")
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_LONGEST = 500  # characters of a message: a request's own text may be in it


class ApiError(Exception):
    """An answer that is no speech.

    Attributes:
      status: of HTTP.
      message: one line.
      param: the field of the request that is at fault.
      code: a word for programs.
      headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: object,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, one_line(message, _LONGEST), param, code
        self.headers = dict(headers or {})

    @property
    def envelope(self) -> dict[str, Any]:
        """Returns the body of the answer."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def bad_request(param: str | None, message: object, code: str | None = None) -> ApiError:
    """Returns the error for a field that is at fault."""
    return ApiError(400, message, param=param, code=code)


def from_spark_error(error: SparkError, params: Mapping[str, str], default: str | None) -> ApiError:
    """Returns the error of a request that the model refuses.

    Args:
      error: its message begins with the name of what is at fault, mostly.
      params: fields of the request by such names.
      default: the field where the message begins otherwise.
    """
    first = str(error).partition(" ")[0].rstrip(":")
    return bad_request(params.get(first, default), error)


def as_api_error(error: BaseException) -> ApiError:
    """Returns what a client is told of any error; of an unexpected one no more than that there was one."""
    if isinstance(error, ApiError):
        return error
    _LOG.error("unexpected error", exc_info=error)
    return ApiError(500, f"the server failed ({type(error).__name__})", code="server_error")
