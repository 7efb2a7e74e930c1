# Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE.
"""Renders the chat templates under src/test/resources with Python's jinja2.

The environment is set up as HuggingFace transformers sets it up for apply_chat_template: immutable
sandbox, trim_blocks, lstrip_blocks, loop controls, raise_exception, strftime_now and a tojson filter
without HTML escapes. The time is fixed. Run with: python chat_template_golden.py (needs jinja2).
"""

import json
from datetime import datetime
from pathlib import Path

from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

FOLDER = Path(__file__).parent.parent / "resources/ai/djl/kvquant/translate"
NOW = datetime(2024, 7, 6, 10, 5, 3)


class Generation(Extension):
    """The generation block is what it contains."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def environment():
    def raise_exception(message):
        raise TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = NOW.strftime
    return env


def message(role, content, **more):
    return {"role": role, "content": content, **more}


USER = message("user", " Why is the sky {{ 'blue' }}? <b>&amp;</b> {% if %} 你好 🙂\n")
SYSTEM = message("system", "Be brief.\n")
ASSISTANT = message("assistant", "Rayleigh scattering. ")
LAST = message("user", "Thanks")
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the \"weather\" <now>",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = message("assistant", "", tool_calls=[{"function": {"name": "weather", "arguments": {"city": "Köln", "unit": "C"}}}])
CONVERSATIONS = {
    "one user message": dict(messages=[USER]),
    "system and user": dict(messages=[SYSTEM, USER]),
    "empty system": dict(messages=[message("system", ""), USER]),
    "turns": dict(messages=[SYSTEM, USER, ASSISTANT, LAST]),
    "turns without prompt": dict(messages=[USER, ASSISTANT], add_generation_prompt=False),
    "roles do not alternate": dict(messages=[USER, LAST]),
    "tools": dict(messages=[SYSTEM, USER], tools=[TOOL]),
    "tools and turns": dict(messages=[USER, ASSISTANT, LAST], tools=[TOOL, TOOL], tools_in_user_message=False),
    "built-in tools": dict(messages=[LAST], builtin_tools=["brave_search", "code_interpreter", "wolfram"]),
    "tool call": dict(messages=[LAST, CALL, message("tool", "20 °C")], date_string="1 May 2025"),
}


def render(template, variables):
    try:
        return environment().from_string(template).render(**variables)
    except Exception as error:  # what fails there must fail here
        return {"error": f"{error}"}


def main():
    golden = []
    defaults = dict(bos_token="<s>", eos_token="</s>", add_generation_prompt=True)
    for path in sorted(FOLDER.glob("templates/*.jinja")):
        for name, conversation in CONVERSATIONS.items():
            variables = {**defaults, **conversation}
            row = dict(name=f"{path.stem}: {name}", template=path.read_text(), variables=variables)
            golden.append({**row, "expected": render(row["template"], variables)})
    small = [message("system", " Be brief. "), message("user", "Hi {{ 7*7 }} <b>&</b> {% if %}")]
    small += [message("assistant", "Hello\nthere"), message("user", "Bye")]
    variables = {**defaults, "messages": small}
    for line in (FOLDER / "snippets.txt").read_text().splitlines():
        golden.append(dict(name=line, template=line, variables=variables, expected=render(line, variables)))
    text = json.dumps(golden, ensure_ascii=False, indent=1)
    (FOLDER / "chat-template-golden.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
