"""Chat messages and rows to token ids: what a chat template writes, and which part of it an answer is.

Below engines, refine, train and evaluate, all of which ask models by it.
"""

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
