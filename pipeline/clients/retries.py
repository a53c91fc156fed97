"""Judge a server's answer to one try: an answer, a failure that another try may heal, a rate limit, or a refusal.

The rules come from what OpenAI, Azure, Anthropic, OpenRouter, LiteLLM, vLLM, SGLang, TGI, llama.cpp, Ollama, LM Studio,
Cloudflare, AWS load balancers and nginx answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pipeline.clients.answer_text import shown
from pipeline.clients.waits import wait_asked_for

JSON, MESSAGE_PACK = "application/json", "application/msgpack"

# 4xx statuses that a later try can change: a time-out, a conflict, a connection for another host, a dependency (TGI's
# failed generation), too early, Groq's full capacity, a client that a proxy believes gone.
HEALING_4XX = frozenset({408, 409, 421, 424, 425, 429, 460, 498, 499})
# 5xx statuses that no later try changes: not implemented, another HTTP version, a loop, a login page. All others heal:
# also Cloudflare's 520 to 530 and Anthropic's 529.
LASTING_5XX = frozenset({501, 505, 506, 508, 510, 511})
# Statuses that say: too many requests at once.
TOO_MANY = frozenset({429, 498, 503, 529})
# A later try of these would ask for a result that the server makes in the background, or has no body.
WITHOUT_ANSWER = frozenset({202, 204, 205})

# Causes of a refusal, for the remedy.
KEY, QUOTA, MODEL, PROXY, REDIRECT, REQUEST = "key", "quota", "model", "proxy", "redirect", "request"
UNREACHABLE = "unreachable"

NO_MODEL = re.compile(
    r"model_not_found|invalid model name|model_access_denied|not allowed to (?:access|call) (?:this )?model|"
    r"no such model|unknown model|not a valid model|try pulling it|no healthy deployments for this model|"
    r"\bmodel\b.{0,120}(?:does not exist|not found|not supported|not available)",
    re.IGNORECASE | re.DOTALL,
)
BAD_KEY = re.compile(
    r"(?:invalid|incorrect|missing|wrong|expired|revoked)[ _-](?:(?:openai|proxy|server|or|x)[ _-])*"
    r"(?:api[ _-]?key|key provided|token|credential|authentication)|api[ _-]?key (?:is )?(?:not valid|invalid|missing|"
    r"not found|expired|required)|no api[ _-]?key|api_key_invalid|token_not_found_in_db|no_db_connection|"
    r"no connected db|virtual key expected|authentication[ _]error|authenticationerror|unauthori[sz]ed",
    re.IGNORECASE,
)
NO_QUOTA = re.compile(
    r"insufficient[ _](?:quota|balance|credits?|funds)|billing_(?:hard_limit|not_active)|credit balance is too low|"
    r"budget[ _](?:has been )?exceeded|exceeded_?budget|payment required|requires more credits|account is not active",
    re.IGNORECASE,
)
# OpenAI says this of an account without money; Google also of a limit per minute, with that word or the time to wait.
NO_QUOTA_UNLESS_TIMED = re.compile(r"exceeded your current quota|quota[ _]?exceeded", re.IGNORECASE)
TIMED = re.compile(r"per.?(?:second|minute|hour|day)", re.IGNORECASE)
RATE_LIMIT = re.compile(
    r"rate.?limit|too many requests|resource.?exhausted|throttling|request limit reached", re.IGNORECASE
)
# A single request above the limit of a minute never gets through.
TOO_LARGE = re.compile(r"request too large", re.IGNORECASE)
OVERLOADED = re.compile(
    r"overloaded|unavailable|time.?out|timed out|try again|capacity|internal.?(?:server.?)?error", re.I
)
LASTING = re.compile(
    r"invalid.?request|bad.?request|context.?length|content.?(?:filter|policy)|does not (?:exist|support)|"
    r"not supported|not_found|validation",
    re.IGNORECASE,
)
TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)


class Temporary(Exception):
    """One try failed in a way that another may not."""

    def __init__(self, reason: str, wait_s: float = 0.0, too_many: bool = False) -> None:
        super().__init__(reason)
        self.wait_s = wait_s
        """The server asks for this pause, in seconds; 0: it does not say."""
        self.too_many = too_many
        """Whether the server says that too many requests are at it."""


class RateLimited(Temporary):
    """The server takes so many requests in a time, and these were more: it says nothing against the request."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason, wait_s, too_many=True)


class Refused(Exception):
    """The server will never take the request; `cause` is one of the names above."""

    def __init__(self, reason: str, cause: str = REQUEST, target: str = "") -> None:
        super().__init__(reason)
        self.cause = cause
        self.target = target
        """The address to which the server redirects."""


def judge(status: int, headers: Mapping[str, str], body: bytes) -> Temporary | Refused:
    """What an answer means whose status is not a good one."""
    words = body[:4096].decode("utf-8", "replace")
    reason = f"HTTP {status}: {page(words)}"
    if 300 <= status < 400:
        target = headers.get("Location", "")
        return Refused(f"HTTP {status}: redirects to {shown(target) or 'nowhere'}", REDIRECT, target)
    if status == 407:
        return Refused(reason, PROXY)
    wait_s = wait_asked_for(headers, words, limits=status in TOO_MANY or is_rate_limit(status, words))
    untimed = not wait_s and NO_QUOTA_UNLESS_TIMED.search(words) and not TIMED.search(words)
    if status == 402 or NO_QUOTA.search(words) or untimed:
        return Refused(reason, QUOTA)
    if status in (400, 401, 403, 404, 422) and NO_MODEL.search(words):
        return Refused(reason, MODEL)
    if status == 401 or (status != 429 and BAD_KEY.search(words)):
        return Refused(reason, KEY)
    if is_rate_limit(status, words):
        return Refused(reason) if TOO_LARGE.search(words) else RateLimited(reason, wait_s)
    if status in HEALING_4XX or (status >= 500 and status not in LASTING_5XX):
        return Temporary(reason, wait_s, status in TOO_MANY)
    return Refused(reason, KEY if status == 403 and "<" not in words else REQUEST)


def is_rate_limit(status: int, words: str) -> bool:
    """Whether an answer is a rate limit: by its status, or in the words of servers that send another one."""
    return status == 429 or (status in (400, 403) and RATE_LIMIT.search(words) is not None)


def page(words: str) -> str:
    """A server's words on one line; of a proxy's page its title."""
    title = TITLE.search(words) if "<" in words else None
    return shown(title.group(1) if title else words)


def error_in_good_answer(body: bytes, headers: Mapping[str, str], media_type: str) -> Temporary | Refused | None:
    """The error in an answer with a good status; None for an answer that may be one.

    `media_type` is that of the request, which the answer's is expected to be. Of JSON only what looks wrong is parsed:
    this is called for every answer.
    """
    start = body[:1]
    if media_type == MESSAGE_PACK:  # a map, which never begins like a page or JSON
        return None if start and start not in b"<{ \n" else broken(body)
    if media_type != JSON:
        return None
    if (
        start == b"{"
        and b'"choices"' in body
        and b'"message"' in body
        and b'"error"' not in body
        and b'"abort"' not in body
        and body.count(b"{") == body.count(b"}")
    ):
        return None
    try:
        completion = json.loads(body, strict=False)
    except (ValueError, RecursionError):
        return broken(body)
    error = error_of(completion)
    if error is None:
        return None
    status = status_of(error)
    words = shown(error)
    raised = judge(status, headers, words.encode()) if status else judge_words(words, headers)
    raised.args = (f"HTTP 200 but no answer: {words}",)
    return raised


def broken(body: bytes) -> Temporary:
    """A body that is empty, breaks off, or is a proxy's page."""
    words = page(body[:4096].decode("utf-8", "replace"))
    return Temporary(f"HTTP 200 with a broken body: {words}" if words else "HTTP 200 with an empty body")


def error_of(completion: Any) -> Any:
    """The error that a JSON body holds; None where it holds an answer."""
    if not isinstance(completion, dict):
        return completion or "empty"
    if completion.get("error"):
        return completion["error"]
    if isinstance(completion.get("output"), list):  # of the Responses API
        ended = completion.get("status", "completed") in ("completed", "incomplete")
        return None if ended else {"status": completion.get("status")}
    choices = completion.get("choices")
    if not isinstance(choices, list) or not choices:
        return completion or "empty"
    first = choices[0] if isinstance(choices[0], dict) else {}
    if first.get("error"):
        return first["error"]
    # OpenRouter's and LiteLLM's word for a provider that broke off, SGLang's and vLLM's for a request that ended early.
    return first if first.get("finish_reason") in ("error", "abort") else None


def status_of(error: Any) -> int | None:
    """The HTTP status that an error names, if it does."""
    for name in ("code", "status", "status_code", "statusCode"):
        value = error.get(name) if isinstance(error, dict) else None
        if isinstance(value, str) and value.isascii() and value.isdigit():
            value = int(value[:4])
        if type(value) is int and 400 <= value < 600:
            return value
    return None


def judge_words(words: str, headers: Mapping[str, str]) -> Temporary | Refused:
    """What an error without a status means, by its words; what is unknown may heal."""
    if NO_QUOTA.search(words):
        return Refused(words, QUOTA)
    if NO_MODEL.search(words):
        return Refused(words, MODEL)
    if BAD_KEY.search(words):
        return Refused(words, KEY)
    if RATE_LIMIT.search(words):
        return RateLimited(words, wait_asked_for(headers, words, limits=True))
    if LASTING.search(words) and not OVERLOADED.search(words):
        return Refused(words)
    return Temporary(words)
