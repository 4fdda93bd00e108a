"""Chat models: messages in, text out. Each way to one has a file of its own; `local` is an engine in this process."""

from raft.chat.base import ChatModel, ChatRequest, Failure, Reply
from raft.chat.endpoint import EndpointChat
from raft.chat.local import LocalChat, generate_text

__all__ = ["ChatModel", "ChatRequest", "EndpointChat", "Failure", "LocalChat", "Reply", "generate_text"]
