"""One request to an OpenAI-compatible endpoint, whatever the other side does. A request has a deadline as a whole, an answer a largest
size, and redirects are refused: a key goes to the address that it was given for. No message holds the key."""

import asyncio
import functools
import json
import os
import re
import time
from typing import NamedTuple

import httpx

MAX_BYTES = 1_000_000  # of an answer; a sentence and its reasoning take some thousands
RETRIES = 6  # of a busy server, after half a second at first and eight at last
BUSY_STATUSES = {408, 409, 425, 429, *range(500, 600)}


class Key(str):
    """A key that no repr shows: not a traceback's locals, not a logged dict."""

    def __repr__(self):
        return "<the key>"


class RequestError(Exception):
    """This request gets no answer; another may."""


class EndpointError(RuntimeError):
    """No request would get an answer: the key, the model, the account or the host is at fault."""


class Endpoint(NamedTuple):
    """Where requests go: `url` for messages (no password, no query), `address` to ask, the `key` and the `variable` that held it."""

    url: str
    address: httpx.URL
    key: Key
    variable: str


def open_endpoint(url: str, variable: str) -> Endpoint:
    """The endpoint whose address ends before /chat/completions, with the key in the environment `variable`. RuntimeError for a key that
    is missing or malformed, ValueError for a malformed url."""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise RuntimeError(f"no key for the endpoint: set the environment variable {variable}")
    if not re.fullmatch(r"[!-~]+", key):
        raise RuntimeError(f"the environment variable {variable} holds characters that no key has: set it anew")
    try:
        base = httpx.URL(url.strip())
    except httpx.InvalidURL:
        base = httpx.URL("")
    if base.scheme not in ("http", "https") or not base.host:
        raise ValueError("the url is no address of an endpoint: it should look like https://host/v1")
    public = base.copy_with(username="", password="", query=None, fragment=None)
    return Endpoint(str(public), base.copy_with(path=base.path.rstrip("/") + "/chat/completions"), Key(key), variable)


def ask(endpoint: Endpoint, request: dict, timeout: float) -> tuple[object, str]:
    """The parsed JSON of an answer and "", or None and a reason for which a second try may help: timeout (seconds, of a request as a
    whole), a broken connection, a body too long or no JSON. Waits and asks again while the server is busy or away. Raises RequestError and
    EndpointError."""
    pause = 0.0
    for attempt in range(RETRIES + 1):
        time.sleep(pause)
        try:
            status, headers, body = post(endpoint, request, timeout)
        except ConnectionRefusedError as error:
            failure = EndpointError(f"{endpoint.url} cannot be reached: {error}")
            pause = _pause({}, attempt)
            continue
        except OSError as error:
            return None, str(error)
        answer = _parse(body)
        if is_refused(answer) or status < 300:
            return answer, "" if answer is not None else f"its answer is no JSON of at most {MAX_BYTES} bytes"
        failure = _status_error(endpoint, status, answer)
        pause = _pause(headers, attempt)
        if isinstance(failure, EndpointError) or status not in BUSY_STATUSES:
            raise failure
    raise failure


def post(endpoint: Endpoint, request: dict, timeout: float) -> tuple[int, httpx.Headers, bytes]:
    """Status, headers and body of one request. ConnectionRefusedError where the host cannot be reached, TimeoutError after `timeout`
    seconds, OSError for whatever else breaks: a hostile server can bring about any of the client's errors, and their texts may quote."""
    try:
        return asyncio.run(_post(endpoint, request, timeout))  # each thread its own loop: only so a deadline cuts off every wait
    except TimeoutError:
        raise TimeoutError(f"no whole answer within {timeout:g} seconds") from None
    except httpx.ConnectError as error:
        raise ConnectionRefusedError(mask_key(str(error), endpoint.key)) from None
    except Exception as error:
        raise OSError(f"the connection broke ({type(error).__name__})") from None


async def _post(endpoint: Endpoint, request: dict, timeout: float) -> tuple[int, httpx.Headers, bytes]:
    headers = {"Authorization": f"Bearer {endpoint.key}", "Content-Type": "application/json", "Accept-Encoding": "identity"}
    body = bytearray()
    async with asyncio.timeout(timeout), httpx.AsyncClient(timeout=None, verify=_certificates()) as client:
        async with client.stream("POST", endpoint.address, content=json.dumps(request).encode(), headers=headers) as response:
            async for part in response.aiter_raw():
                body += part
                if len(body) > MAX_BYTES:
                    return response.status_code, response.headers, b""
            return response.status_code, response.headers, bytes(body)


@functools.cache
def _certificates():
    return httpx.create_ssl_context()  # takes a while, and every request wants it


def _status_error(endpoint: Endpoint, status: int, answer) -> Exception:
    """What a status other than 2xx means, with the server's own message if it may help."""
    code, message = _error(answer)
    quoted = f": {mask_key(message, endpoint.key)[:200]!r}" if message else ""
    if status in (401, 403):  # its message often quotes the key
        return EndpointError(f"{endpoint.url} refuses the key in {endpoint.variable} ({status}): "
                             "set another key or ask for access to the model")  # fmt: skip
    if status == 404:
        return EndpointError(f"{endpoint.url} knows no such model, or is not what stands before /chat/completions (404){quoted}")
    if status == 402 or "quota" in code:
        return EndpointError(f"{endpoint.url} says that the account's credit is spent ({status}){quoted}")
    if status < 400:
        return RequestError(f"it leads elsewhere ({status}), where the key does not go: give the address that it leads to")
    return RequestError(f"it answers {status}{quoted}")


def _pause(headers, attempt: int) -> float:
    """Seconds: as long as the server asks for, up to a minute, or twice as long each time."""
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        if re.fullmatch(r"\d{1,6}(\.\d{1,6})?", headers.get(name, "")):
            return min(float(headers[name]) / unit, 60)
    return min(0.5 * 2**attempt, 8)


def mask_key(text: str, key: str) -> str:
    """The text with "[the key]" for the key, in whatever case."""
    return re.sub(re.escape(key), "[the key]", text, flags=re.IGNORECASE)


# ---- what an answer holds ---------------------------------------------------------------------------------------


def _parse(body: bytes):
    """The JSON of a body, None if it is malformed."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _error(answer) -> tuple[str, str]:
    """(code, message) of an error as the servers write it, "" for what is missing."""
    error = answer.get("error", answer) if isinstance(answer, dict) else {}
    error = error if isinstance(error, dict) else {"message": error}
    return tuple(value if isinstance(value := error.get(name), str) else "" for name in ("code", "message"))


def _first_choice(answer) -> dict:
    """The first choice of an answer, {} if it has none."""
    try:
        choice = answer["choices"][0]
    except (LookupError, TypeError):
        return {}
    return choice if isinstance(choice, dict) else {}


def is_refused(answer) -> bool:
    """Does a content policy refuse the request?"""
    code = _error(answer)[0]
    return _first_choice(answer).get("finish_reason") == "content_filter" or any(c in code for c in ("content_policy", "content_filter"))


def answer_text(answer) -> str:
    """The model's message; content that comes in parts, joined. "" if there is none."""
    message = _first_choice(answer).get("message")
    content = message.get("content") if isinstance(message, dict) else ""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    return "".join(t for t in texts if isinstance(t, str))


def total_tokens(answer, request: dict) -> int:
    """The tokens that an answer says it cost; without such a count, a token for four letters of request and answer."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    total = usage.get("total_tokens") if isinstance(usage, dict) else None
    return total if type(total) is int and 0 <= total < 10**12 else (len(json.dumps(request)) + len(answer_text(answer))) // 4
