"""Conversations as columns hold them: lists of messages, OpenAI's (role, content) or ShareGPT's (from, value)."""

from typing import Any

from harness.tasks.files import as_text

Message = dict[str, str]
ANSWERING = "assistant"
# Other names of who speaks.
ROLES = {"human": "user", "gpt": ANSWERING, "bot": ANSWERING, "model": ANSWERING, "chatgpt": ANSWERING}
KEYS = (("role", "content"), ("from", "value"))


def read(value: Any) -> list[Message] | None:
    """The messages of a conversation, their roles named as chat templates name them; null for anything else."""
    if not isinstance(value, list) or not value:
        return None
    for role, content in KEYS:
        if all(isinstance(one, dict) and one.get(role) and content in one for one in value):
            return [{"role": _role(str(one[role])), "content": _content(one[content])} for one in value]
    return None


def is_one(value: Any) -> bool:
    """Whether a value of a row is a conversation, as `read` gives it."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _role(name: str) -> str:
    return ROLES.get(name.lower(), name.lower())


def _content(value: Any) -> str:
    """Text; of a message in parts, those that are text."""
    if isinstance(value, list) and all(isinstance(part, dict) for part in value):
        return "".join(as_text(part["text"]) for part in value if "text" in part)
    return as_text(value)


def asked(messages: list[Message]) -> list[Message]:
    """What stands before the last answer: all of a conversation that does not end in one."""
    return messages[:-1] if messages[-1]["role"] == ANSWERING else messages


def answer(messages: list[Message]) -> str:
    """The last answer; nothing where the conversation does not end in one."""
    return messages[-1]["content"] if messages[-1]["role"] == ANSWERING else ""


def turns(messages: list[Message]) -> list[list[Message]]:
    """The conversation up to each of its answers that something stands before."""
    ends = [place + 1 for place, one in enumerate(messages) if place and one["role"] == ANSWERING]
    return [messages[:end] for end in ends]


def written(messages: list[Message]) -> str:
    """Messages as plain text, one below the other, for a prompt without a chat template."""
    return "\n".join(one["content"] for one in messages)
