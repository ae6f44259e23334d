"""A small HTTP client for a vLLM server: JSON in, JSON out, every failure one line. The standard library is enough."""

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

from recoup.errors import SourceError

CONTROL_SECONDS = 300.0  # what vLLM's own weight-transfer client waits
SHOWN_CHARACTERS = 200  # of a refusal
CONNECTIONS = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}


class Server:
    """A vLLM server at an address such as http://localhost:8000.

    Raises:
        SourceError: the address is no HTTP address.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self._parts = urlsplit(self.address)
        if self._parts.scheme not in CONNECTIONS or not self._parts.netloc:
            raise SourceError(f"{address}: is no address of a server; write it like http://localhost:8000")

    def get(self, path: str) -> dict[str, Any]:
        """Ask for what is at `path`."""
        return self._ask("GET", path, None, CONTROL_SECONDS)

    def post(
        self, path: str, payload: dict[str, Any] | None = None, seconds: float = CONTROL_SECONDS
    ) -> dict[str, Any]:
        """Send `payload` to `path`; waits at most `seconds` for each part of the answer."""
        return self._ask("POST", path, payload or {}, seconds)

    def _ask(self, method: str, path: str, payload: dict[str, Any] | None, seconds: float) -> dict[str, Any]:
        """The answer's JSON object; an empty answer is an empty object.

        Raises:
            SourceError: the server cannot be reached, does not answer in time, refuses, or answers no JSON object.
        """
        body = None if payload is None else json.dumps(payload)
        connection = CONNECTIONS[self._parts.scheme](self._parts.netloc, timeout=seconds)
        try:
            connection.request(method, self._parts.path + path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            status, text = response.status, response.read().decode("utf-8", "replace")
        except TimeoutError:
            raise SourceError(f"{self.address}{path}: no answer in {seconds:g} s; is the server overloaded?") from None
        except (OSError, http.client.HTTPException) as error:
            raise SourceError(f"{self.address}: cannot be reached ({error}); is the vLLM server running?") from None
        finally:
            connection.close()
        if status != http.client.OK:
            raise SourceError(f"{self.address}{path}: {_refusal(status, text)}")
        return _parsed(text, self.address + path)


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        answer = json.loads(text) if text else {}
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise SourceError(f"{where}: answered no JSON object; is this a vLLM server?")
    return answer


def _refusal(status: int, text: str) -> str:
    shown = " ".join(text.split())[:SHOWN_CHARACTERS]
    if status == http.client.NOT_FOUND:
        return f"refused with 404 ({shown}); start the server with VLLM_SERVER_DEV_MODE=1"
    return f"refused with {status} ({shown})"
