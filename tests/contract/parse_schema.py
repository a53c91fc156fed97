#!/usr/bin/env python3
"""Print for each JSON Schema whether this vLLM refuses it with xgrammar, and whether its grammar accepts an answer.

Runs in vLLM's environment: stdin holds pairs of a schema and an answer as JSON text, stdout gets a line of JSON.
"""

from __future__ import annotations

import json
import sys

import xgrammar
from vllm.v1.structured_output.backend_xgrammar import (
    has_xgrammar_unsupported_json_features,
)
from xgrammar.testing import _is_grammar_accept_string

found = []
for schema, answer in json.load(sys.stdin):
    try:
        grammar = xgrammar.Grammar.from_json_schema(json.dumps(schema), any_whitespace=False)
    except RuntimeError:
        found.append({"refused": True, "accepted": False})
        continue
    accepted = _is_grammar_accept_string(grammar, answer)
    found.append({"refused": has_xgrammar_unsupported_json_features(schema), "accepted": accepted})
print(json.dumps(found))
