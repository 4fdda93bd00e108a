"""Chat models: messages in, text out. An engine of this process is one way (`local`); each way has a file of its own."""

from raft.chat.base import ChatModel, ChatRequest, Failure, Reply
from raft.chat.local import LocalChat, generate_text

__all__ = ["ChatModel", "ChatRequest", "Failure", "LocalChat", "Reply", "generate_text"]
