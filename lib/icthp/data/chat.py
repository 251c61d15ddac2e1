"""One question to an OpenAI-compatible endpoint, whatever the other side does. A request has a deadline as a whole, an answer a largest
size, and a redirect is not followed: a key goes to the address that it was given for. No message holds the key."""

from typing import NamedTuple
import asyncio
import functools
import httpx
import json
import os
import re
import time



LIMIT = 1_000_000  # bytes of an answer; a sentence and its reasoning take some thousands
WAITS = 6  # as often a busy server is asked again, after half a second at first and eight at last
BUSY = {408, 409, 425, 429, *range(500, 600)}


class Key(str):
    """A key that no repr shows: not a traceback's locals, not a logged dict."""

    def __repr__(self):
        return "<the key>"


class Failed(Exception):
    """This question gets no answer; another may."""


class Stopped(RuntimeError):
    """No question would get an answer: the key, the model, the account or the host is at fault."""


class Host(NamedTuple):
    """Where questions go: `url` as it may be shown (no password, no query), `address` to ask, the `key` and the `variable` that held it."""

    url: str
    address: httpx.URL
    key: Key
    variable: str


def host(url: str, variable: str) -> Host:
    """RuntimeError without a usable key in the environment variable, ValueError for a url that is none."""
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
        raise ValueError("the refiner's url is no address of an endpoint: it should look like https://host/v1")
    shown = base.copy_with(username="", password="", query=None, fragment=None)
    return Host(str(shown), base.copy_with(path=base.path.rstrip("/") + "/chat/completions"), Key(key), variable)


def answer(place: Host, question: dict, timeout: float) -> tuple[object, str]:
    """The parsed JSON of an answer and "", or None and why there is none, where it may be worth to ask again: timeout (seconds, of a
    request as a whole), a broken connection, a body too long or no JSON. Waits and asks again while the server is busy or away. Raises
    Failed and Stopped."""
    pause = 0.0
    for wait in range(WAITS + 1):
        time.sleep(pause)
        try:
            status, headers, body = post(place, question, timeout)
        except ConnectionRefusedError as error:
            trouble, pause = Stopped(f"{place.url} cannot be reached: {error}"), _pause({}, wait)
            continue
        except OSError as error:
            return None, str(error)
        parsed = _parsed(body)
        if refused(parsed) or status < 300:
            return parsed, "" if parsed is not None else f"its answer is no JSON of at most {LIMIT} bytes"
        trouble, pause = _trouble(place, status, parsed), _pause(headers, wait)
        if isinstance(trouble, Stopped) or status not in BUSY:
            raise trouble
    raise trouble


def post(place: Host, question: dict, timeout: float) -> tuple[int, httpx.Headers, bytes]:
    """Status, headers and body of one request. ConnectionRefusedError where the host cannot be reached, TimeoutError after `timeout`
    seconds, OSError for whatever else breaks: a hostile server can bring about any of the client's errors, and their texts may quote."""
    try:
        return asyncio.run(_post(place, question, timeout))  # each thread its own loop: only so a deadline cuts off every wait
    except TimeoutError:
        raise TimeoutError(f"no whole answer within {timeout:g} seconds") from None
    except httpx.ConnectError as error:
        raise ConnectionRefusedError(masked(str(error), place.key)) from None
    except Exception as error:
        raise OSError(f"the connection broke ({type(error).__name__})") from None


async def _post(place: Host, question: dict, timeout: float) -> tuple[int, httpx.Headers, bytes]:
    headers = {"Authorization": f"Bearer {place.key}", "Content-Type": "application/json", "Accept-Encoding": "identity"}
    body = bytearray()
    async with asyncio.timeout(timeout), httpx.AsyncClient(timeout=None, verify=_certificates()) as client:
        async with client.stream("POST", place.address, content=json.dumps(question).encode(), headers=headers) as response:
            async for part in response.aiter_raw():
                body += part
                if len(body) > LIMIT:
                    return response.status_code, response.headers, b""
            return response.status_code, response.headers, bytes(body)


@functools.cache
def _certificates():
    return httpx.create_ssl_context()  # takes a while, and every request wants it


def _trouble(place: Host, status: int, parsed) -> Exception:
    """What a status other than 2xx means, with the server's own words where they may help."""
    code, message = _error(parsed)
    said = f": {masked(message, place.key)[:200]!r}" if message else ""
    if status in (401, 403):  # its words often quote the key
        return Stopped(f"{place.url} refuses the key in {place.variable} ({status}): set another key or ask for access to the model")
    if status == 404:
        return Stopped(f"{place.url} knows no such model, or is not what stands before /chat/completions (404){said}")
    if status == 402 or "quota" in code:
        return Stopped(f"{place.url} says that the account's credit is spent ({status}){said}")
    if status < 400:
        return Failed(f"it leads elsewhere ({status}), where the key does not go: give the address that it leads to")
    return Failed(f"it answers {status}{said}")


def _pause(headers, wait: int) -> float:
    """Seconds: as long as the server asks for, up to a minute, or twice as long each time."""
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        if re.fullmatch(r"\d{1,6}(\.\d{1,6})?", headers.get(name, "")):
            return min(float(headers[name]) / unit, 60)
    return min(0.5 * 2**wait, 8)


def masked(text: str, key: str) -> str:
    return re.sub(re.escape(key), "[the key]", text, flags=re.IGNORECASE)


# ---- what an answer says ----------------------------------------------------------------------------------------


def _parsed(body: bytes):
    """JSON, None where it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _error(parsed) -> tuple[str, str]:
    """(code, message) of an error as the servers write it, "" where it has none."""
    error = parsed.get("error", parsed) if isinstance(parsed, dict) else {}
    error = error if isinstance(error, dict) else {"message": error}
    return tuple(value if isinstance(value := error.get(name), str) else "" for name in ("code", "message"))


def _first(parsed) -> dict:
    """The first choice of an answer, {} if it has none."""
    try:
        choice = parsed["choices"][0]
    except (LookupError, TypeError):
        return {}
    return choice if isinstance(choice, dict) else {}


def refused(parsed) -> bool:
    """Does a content policy refuse the question?"""
    code = _error(parsed)[0]
    return _first(parsed).get("finish_reason") == "content_filter" or any(c in code for c in ("content_policy", "content_filter"))


def text(parsed) -> str:
    """What the model says; the texts of content that comes in parts, joined. "" where it says nothing."""
    message = _first(parsed).get("message")
    content = message.get("content") if isinstance(message, dict) else ""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    return "".join(t for t in texts if isinstance(t, str))


def tokens(parsed, question: dict) -> int:
    """How many an answer says it cost; where it does not say, a token for four letters of question and answer."""
    usage = parsed.get("usage") if isinstance(parsed, dict) else None
    total = usage.get("total_tokens") if isinstance(usage, dict) else None
    return total if type(total) is int and 0 <= total < 10**12 else (len(json.dumps(question)) + len(text(parsed))) // 4
