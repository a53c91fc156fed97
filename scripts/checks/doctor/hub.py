"""The model at the hub: there, at that revision, and ours to fetch. Three different troubles, three messages."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from scripts.checks.doctor.context import Context
from scripts.findings import Finding
from scripts.models.model_files import hub_token, is_hub_name, is_offline
from scripts.stack.services import detector

HUB = "https://huggingface.co"
TIMEOUT_S = 5.0


class KeepRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect to where the file lies is an answer: it is not followed."""

    def redirect_request(self, *_: Any) -> None:
        """No."""


def head(url: str, token: str | None) -> tuple[int, Mapping[str, str]]:
    """Status and headers of a HEAD request.

    Raises:
        OSError: the server cannot be reached.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(url, method="HEAD", headers=headers)
    try:
        with urllib.request.build_opener(KeepRedirects).open(request, timeout=TIMEOUT_S) as response:
            return response.status, dict(response.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers)
    except http.client.HTTPException as error:
        raise OSError(str(error)) from error


def check(context: Context) -> list[Finding]:
    """The preset's model can be had, and the detector's where that is at the hub."""
    return [*of_server(context), *of_detector(context)]


def of_detector(context: Context) -> list[Finding]:
    """The detector's model; nothing where it is on this host."""
    service = detector(context.settings, context.device)
    if not is_hub_name(service.model) or context.has_model(service.model, service.revision):
        return []
    if is_offline(context.environment):
        return [Finding("detector at the hub", "unchecked", "offline: no network is asked")]
    found = can_be_fetched(service.model, service.revision or "main", context.environment)
    return [replace(found, check="detector at the hub")]


def of_server(context: Context) -> list[Finding]:
    """The model server's."""
    if context.options is None:
        return [Finding("model at the hub", "unchecked", "this host has no preset")]
    name = context.options.text("model") or ""
    if context.has_servers_model:
        return [Finding("model at the hub", "ok", f"not asked: {name} is here already")]
    if not is_hub_name(name):
        return [Finding("model at the hub", "unchecked", f"{name} is no name at the hub")]
    if is_offline(context.environment):
        return [Finding("model at the hub", "unchecked", "HF_HUB_OFFLINE: no network is asked")]
    revision = context.options.text("revision") or "main"
    return [can_be_fetched(name, revision, context.environment)]


def can_be_fetched(name: str, revision: str, environment: Mapping[str, str]) -> Finding:
    """Ask the hub for a model's config.json: the same rights as for its weights."""
    endpoint = (environment.get("HF_ENDPOINT") or HUB).rstrip("/")
    token = hub_token(environment)
    what = f"{name}@{revision[:12]}"
    try:
        status, headers = head(f"{endpoint}/{name}/resolve/{urllib.parse.quote(revision, safe='')}/config.json", token)
    except OSError as error:
        reason = getattr(error, "reason", None) or error
        return Finding("model at the hub", "unchecked", f"{endpoint} cannot be reached: {reason}")
    return judge(what, name, status, {key.lower(): value for key, value in headers.items()}.get("x-error-code"), token)


def judge(what: str, name: str, status: int, code: str | None, token: str | None) -> Finding:
    """The finding for the hub's answer."""

    def wrong(found: str, required: str, remedy: str) -> Finding:
        return Finding("model at the hub", "error", found, required, remedy)

    if status < 400:
        return Finding("model at the hub", "ok", f"{what} can be fetched")
    if code == "RevisionNotFound":
        return wrong(f"{what}: the hub has no such revision", "a commit, branch or tag", "correct `revision:`")
    if code == "GatedRepo" and token is None:
        remedy = f"accept the licence on {name}'s page at the hub, make a token there, set HF_TOKEN"
        return wrong(f"{what} is gated, and there is no hub token", "a token of an account that may read it", remedy)
    if code == "GatedRepo":
        remedy = f"accept the licence on {name}'s page at the hub, with the token's account"
        return wrong(f"{what}: the token's account has not accepted the licence", "an accepted licence", remedy)
    if code == "RepoNotFound":
        remedy = "correct `model:`; if it is private, set HF_TOKEN to a token that may read it"
        return wrong(f"{what}: the hub has no such model", "a model that this token may see", remedy)
    if status == 401:
        return wrong(f"{what}: the hub refuses the token", "a valid token", "make a new token at the hub, set HF_TOKEN")
    if status == 404:
        return wrong(f"{what} has no config.json", "a model in the hub's format", "correct `model:`")
    return Finding("model at the hub", "unchecked", f"the hub answers HTTP {status} for {what}")
