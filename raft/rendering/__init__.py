"""Renders chat messages and rows to token ids with the chat template, and finds the answer's tokens in the result."""

from raft.rendering.chat import chat_ids, chat_text
from raft.rendering.controls import Controls
from raft.rendering.row import chat_options
from raft.rendering.thoughts import Thoughtful, output, split_thought
from raft.rendering.turn import Turn, assistant_turn

__all__ = [
    "Controls",
    "Thoughtful",
    "Turn",
    "assistant_turn",
    "chat_ids",
    "chat_options",
    "chat_text",
    "output",
    "split_thought",
]
