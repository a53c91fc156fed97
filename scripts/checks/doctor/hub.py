"""The models at the hub: they exist, at that revision, and the token may read them."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import replace
from email.message import Message
from functools import partial
from typing import Any

from scripts.checks.doctor.context import Context
from scripts.findings import Finding, error, ok, unchecked
from scripts.models.model_files import hub_token, is_hub_name, is_offline
from scripts.services import KINDS, Kind
from scripts.stack.services import python_service

NAME = "model at the hub"
TIMEOUT_S = 5.0


def address(environment: Mapping[str, str]) -> str:
    """The hub's address: HF_ENDPOINT may name a mirror."""
    return (environment.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


class KeepRedirects(urllib.request.HTTPRedirectHandler):
    """Take a redirect for an answer: it leads to the file."""

    def redirect_request(self, *_: Any) -> None:
        """Do not follow."""


def head(url: str, token: str | None) -> tuple[int, Message]:
    """Status and headers of a HEAD request.

    Raises:
        OSError: the server cannot be reached.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(url, method="HEAD", headers=headers)
    try:
        with urllib.request.build_opener(KeepRedirects).open(request, timeout=TIMEOUT_S) as response:
            return response.status, response.headers
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.code, answer.headers
    except http.client.HTTPException as failure:
        raise OSError(str(failure)) from failure


def check(context: Context) -> list[Finding]:
    """The preset's model can be fetched, and those of other services if they come from the hub."""
    others = [kind for kind in KINDS.values() if kind.module]
    return [*of_server(context), *(finding for kind in others for finding in of_service(context, kind))]


def of_service(context: Context, kind: Kind) -> list[Finding]:
    """The model of another service, unless it is on this host."""
    service, name = python_service(context.settings, context.device, kind), f"{kind.name} at the hub"
    if not is_hub_name(service.model) or context.has_model(service.model, service.revision):
        return []
    if is_offline(context.environment):
        return [unchecked(name, "offline: no request to the hub")]
    return [replace(can_be_fetched(service.model, service.revision or "main", context.environment), check=name)]


def of_server(context: Context) -> list[Finding]:
    """The model server's model."""
    if context.options is None:
        return [unchecked(NAME, "this host has no preset")]
    name = context.options.text("model") or ""
    if context.has_servers_model:
        return [ok(NAME, f"no request needed: {name} is in place")]
    if not is_hub_name(name):
        return [unchecked(NAME, f"{name} is not a name at the hub")]
    if is_offline(context.environment):
        return [unchecked(NAME, "HF_HUB_OFFLINE: no request to the hub")]
    return [can_be_fetched(name, context.options.text("revision") or "main", context.environment)]


def can_be_fetched(name: str, revision: str, environment: Mapping[str, str]) -> Finding:
    """Request a model's config.json from the hub: it needs the same rights as the weights."""
    endpoint, token = address(environment), hub_token(environment)
    url = f"{endpoint}/{name}/resolve/{urllib.parse.quote(revision, safe='')}/config.json"
    try:
        status, headers = head(url, token)
    except OSError as failure:
        reason = getattr(failure, "reason", None) or failure
        return unchecked(NAME, f"{endpoint} cannot be reached: {reason}")
    return judge(f"{name}@{revision[:12]}", name, status, headers.get("X-Error-Code"), token)


def judge(what: str, name: str, status: int, code: str | None, token: str | None) -> Finding:
    """The finding for the hub's answer."""
    wrong = partial(error, NAME)
    accept = f"accept the licence on {name}'s page at the hub"
    match code:
        case _ if status < 400:
            return ok(NAME, f"{what} can be fetched")
        case "RevisionNotFound":
            return wrong(f"{what}: the hub has no such revision", "a commit, branch or tag", "correct `revision:`")
        case "GatedRepo" if token is None:
            remedy = f"{accept}, make a token there, set HF_TOKEN"
            return wrong(f"{what} is gated, and there is no hub token", "the token of an account with access", remedy)
        case "GatedRepo":
            found = f"{what}: the token's account has not accepted the licence"
            return wrong(found, "an accepted licence", f"{accept}, with the token's account")
        case "RepoNotFound":
            remedy = "correct `model:`; if it is private, set HF_TOKEN to a token that may read it"
            return wrong(f"{what}: the hub has no such model", "a model that this token may see", remedy)
    if status == 401:
        return wrong(f"{what}: the hub refuses the token", "a valid token", "make a new token at the hub, set HF_TOKEN")
    if status == 404:
        return wrong(f"{what} has no config.json", "a model in the hub's format", "correct `model:`")
    return unchecked(NAME, f"the hub answers HTTP {status} for {what}")
