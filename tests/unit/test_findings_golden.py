"""The full text of representative findings: the other tests assert facts, so that the words can be improved here."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from scripts.checks.doctor import hub, proxy
from scripts.checks.doctor.context import Context
from scripts.findings import Finding, show
from scripts.settings import StackSettings
from tests.configurations import Configuration

REPORT = """\
ok        proxy: none
unchecked model at the hub: the hub answers HTTP 503 for owner/model@main
warning   schema: job dog_breeds: answer.legs is an integer without minimum and maximum: a model may write until \
max_tokens, and the answer is cut
          required: an end for every value
          do: add minimum and maximum
error     option: preset.yaml: --max-model-length is no option of vLLM 0.32.0
          required: options of this version
          do: correct or remove it: did you mean max-model-len or max-log-len?
error     length: job dog_breeds needs at least 94 tokens (16 of the image, the question, 64 of the answer), and the \
model length is 64
          required: a request within the model length; vLLM refuses a longer one
          do: set `max-model-len: 256`, or lower max_tokens in the job file
error     model at the hub: owner/model@main is gated, and there is no hub token
          required: the token of an account with access
          do: accept the licence on owner/model's page at the hub, make a token there, set HF_TOKEN
"""


def test_the_report_of_representative_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().endswith("_PROXY")]:
        monkeypatch.delenv(name)
    configuration = Configuration(tmp_path)
    legs = {"type": "object", "properties": {"legs": {"type": "integer"}}, "additionalProperties": False}
    configuration.set(max_model_length=64, max_model_len=64)
    found: list[Finding] = list(configuration.check().findings)
    configuration.set(max_model_length=None, max_model_len=1024)
    configuration.ask(schema=legs)
    found += configuration.check().findings
    found += proxy.check(Context(StackSettings(state=tmp_path)))
    for status, code in ((503, None), (401, "GatedRepo")):
        found.append(hub.judge("owner/model@main", "owner/model", status, code, None))
    shown = io.StringIO()
    show(found, Console(file=shown, width=1000))
    assert shown.getvalue() == REPORT
