"""OpenAI's client against a server of ours: chat, stream, JSON schema, and what speculation did.

Start one with `specstream serve`, then run `python examples/serving_client.py [URL]`; needs `pip install openai`.
Without a URL it is that of $OPENAI_BASE_URL, which the server's log shows, else port 8000 of this machine.
"""

import os
import sys

try:
    import openai
except ImportError:
    sys.exit("error: OpenAI's client is not installed: pip install openai")

SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Cairo", "Lagos", "Nairobi"]}, "rivers": {"type": "integer", "maximum": 9}},
    "required": ["city", "rivers"],
    "additionalProperties": False,
}

url = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
client = openai.OpenAI(base_url=url, api_key="none")
try:
    model = next(iter(client.models.list())).id
except openai.APIConnectionError:
    sys.exit(f"error: no server answers at {url}: start one with specstream serve")
question = [{"role": "user", "content": "Name three rivers in Africa."}]

answer = client.chat.completions.create(model=model, messages=question, max_tokens=40)
print(answer.choices[0].message.content)
speculation = answer.model_extra["speculation"]
print(
    f"{speculation['mean_accepted_length']:.2f} tokens a pass, {speculation['acceptance_rate']:.0%} of drafts accepted"
)

for chunk in client.chat.completions.create(model=model, messages=question, max_tokens=40, stream=True):
    if chunk.choices and chunk.choices[0].delta.content:
        print(chunk.choices[0].delta.content, end="", flush=True)
print()

answer = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "A city in Africa and how many rivers it has, as JSON."}],
    max_tokens=60,
    response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}},
)
print(answer.choices[0].message.content)
