"""A judge that is a chat model, in this process or behind an endpoint."""

from collections.abc import Sequence

from raft.chat import ChatModel, ChatRequest, EndpointChat, Failure, Reply
from raft.digest import derived_seed
from raft.judges.base import Candidate, Score
from raft.judges.verdict import VERSION, Verdict, judge_chat, read_verdict, speaks_to_judge

ATTEMPTS = 2
"""How often a verdict that cannot be read is asked for, the last time at temperature 1."""


class ModelJudge:
    """Asks for a verdict (`raft.judges.verdict`) on each candidate, greedily."""

    def __init__(self, chat: ChatModel, *, name: str | None = None, max_tokens: int = 1024):
        """name: for people, where the model's own is none to read. max_tokens: of a verdict, the thought included."""
        self.name = name or chat.name
        self.version = f"{VERSION} {chat.name} {max_tokens}"
        self.waits = isinstance(chat, EndpointChat)
        """Whether the time is spent elsewhere, so that other judges may work meanwhile."""
        self._chat = chat
        self.max_tokens = max_tokens

    def score(self, candidates: Sequence[Candidate]) -> list[Score]:
        """One score a candidate; its `problem` says why a reply could not be used."""
        scores: dict[int, Score] = {}
        open_places = list(range(len(candidates)))
        for attempt in range(1, ATTEMPTS + 1):
            requests = [self._request(candidates[place], attempt) for place in open_places]
            for at, reply in self._chat.replies(requests):
                place = open_places[at]
                scores[place] = _score(candidates[place], reply)
            open_places = [place for place in open_places if scores[place].value is None]
        return [scores[place] for place in range(len(candidates))]

    def _request(self, candidate: Candidate, attempt: int) -> ChatRequest:
        return ChatRequest(
            judge_chat(candidate),
            derived_seed([self.name, attempt, candidate.row_id]),
            temperature=0.0 if attempt == 1 else 1.0,
            max_tokens=self.max_tokens,
            schema=Verdict.model_json_schema(),
        )


def _score(candidate: Candidate, reply: Reply | Failure) -> Score:
    flag = speaks_to_judge(candidate)
    if isinstance(reply, Failure):
        return Score(None, problem=reply.reason, lasting=reply.lasting, flag=flag)
    verdict = read_verdict(reply.text, candidate)
    if isinstance(verdict, str):
        return Score(None, problem=verdict, flag=flag)
    return Score(verdict.score, verdict.reason, flag=flag)
