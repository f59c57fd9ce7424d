#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/chat/needle.jsonl with Hugging Face's apply_chat_template
(transformers 5.24 made the committed file), on the tokenizer of the shipped model.

    make_chat_golden.py TOKENIZER_JSON OUT_DIR

Lines: {"config": chat_template as tokenizer_config.json has it, "jinja": the text of
chat_template.jinja or null, "messages", "ids"}."""

import json
import os
import shutil
import sys
import tempfile

from transformers import AutoTokenizer

# The ways in which published templates write the system turn that nobody asked for.
QWEN25 = r"""{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' }}
    {%- endif %}
    {{- "\n\n# Tools\n\n{\"name\": <function-name>}\n</tool_call><|im_end|>\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""
TURNS = (
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}" + TURNS
)
MATH = QWEN25.replace(
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    r"Don\'t guess: \"reason\"\tstep by step,\n{{}} within \\boxed{}.",
)
PLAIN = "{% for message in messages %}" + TURNS
OUTSIDE = (
    "{# '<|im_start|>system\nnot this<|im_end|>' #}{% set a = {'b': {'c': \"<|im_\"}} %}"
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nIt's \\n \"so\" <|im_end|>\n{% endif %}"
    "{% for message in messages %}" + TURNS
)
CRLF = PLAIN.replace("{% for", "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\r\na\rb<|im_end|>\n' }}{% endif %}{% for", 1)
EMPTY = PLAIN.replace("{% for", "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n<|im_end|>\n' }}{% endif %}{% for", 1)

TEMPLATES = [
    (QWEN25, None), (QWEN2, None), (MATH, None), (PLAIN, None), (OUTSIDE, None), (CRLF, None), (EMPTY, None),
    ([{"name": "tool_use", "template": "{{ 'no' }}"}, {"name": "default", "template": QWEN25}], None),
    ("{{ 'no chat' }}", QWEN25), (QWEN25, PLAIN), (None, MATH),
]

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Who are you?\r\n é"}
CHATS = [
    [USER],
    [SYSTEM, USER],
    [{"role": "system", "content": ""}, USER],
    [USER, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "\nGo\n"}],
    [USER, SYSTEM, USER],
]


def write(path, value):
    with open(path, "w", newline="") as out:
        out.write(value)


def ids_of(tokenizer_json, config, jinja, messages):
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(tokenizer_json, os.path.join(folder, "tokenizer.json"))
        members = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": config}
        write(os.path.join(folder, "tokenizer_config.json"), json.dumps(members))
        if jinja is not None:
            write(os.path.join(folder, "chat_template.jinja"), jinja)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def main():
    tokenizer_json, out_dir = sys.argv[1:]
    with open(os.path.join(out_dir, "needle.jsonl"), "w") as out:
        for config, jinja in TEMPLATES:
            for messages in CHATS:
                line = {"config": config, "jinja": jinja, "messages": messages}
                line["ids"] = ids_of(tokenizer_json, config, jinja, messages)
                out.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
