"""Endpoints: what is sent, what comes back, and what a server that misbehaves does to it."""

import random
import threading
import time

import pytest

from raft.chat import ChatRequest, Failure, Reply
from raft.chat.endpoint import EndpointChat, split_endpoint
from raft.chat.limit import Limit
from raft.chat.pool import ChatPool
from raft.chat.traffic import RESTING, Place, Traffic
from raft.errors import ConfigError, EngineError
from raft.settings import RefineSettings
from tests.raft.chat_server import BROKEN, CUT, Answer, chat_server


def request(text: str, **options: object) -> ChatRequest:
    return ChatRequest([{"role": "user", "content": text}], seed=5, **options)  # type: ignore[arg-type]


def asked(body: dict) -> str:
    return body["messages"][-1]["content"]


@pytest.fixture(autouse=True)
def _no_key_and_no_long_waits(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)


def test_every_request_is_answered_once_and_carries_its_settings():
    with chat_server(lambda body, n: Answer(f"you said {asked(body)}")) as server:
        chat = EndpointChat(server.name())
        requests = [request(f"text {i}", temperature=0.25, max_tokens=17) for i in range(40)]
        replies = dict(chat.replies(requests))
    assert replies == {i: Reply(f"you said text {i}", 7) for i in range(40)}
    assert len(server.bodies) == 40
    sent = server.bodies[0]
    assert (sent["model"], sent["seed"], sent["temperature"], sent["max_tokens"]) == ("scripted", 5, 0.25, 17)
    assert "response_format" not in sent and "tools" not in sent


def test_template_options_and_tools_are_handed_on():
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {}}}]
    with chat_server(lambda body, n: Answer()) as server:
        list(EndpointChat(server.name()).replies([request("x", options={"tools": tools, "enable_thinking": True})]))
    assert server.bodies[0]["tools"] == tools
    assert server.bodies[0]["chat_template_kwargs"] == {"enable_thinking": True}


@pytest.mark.parametrize(
    "first",
    [
        Answer("wait", status=429, headers={"Retry-After": "0.05"}),
        Answer("oh no", status=500),
        Answer("not yet", status=503),
        Answer(fault=CUT),
        Answer(fault=BROKEN),
    ],
    ids=["429", "500", "503", "cut", "broken"],
)
def test_a_passing_fault_costs_a_repetition_and_nothing_else(first):
    with chat_server(lambda body, n: first if n == 0 else Answer("good")) as server:
        replies = dict(EndpointChat(server.name()).replies([request(f"text {i}") for i in range(10)]))
    assert replies == {i: Reply("good", 7) for i in range(10)}
    assert len(server.bodies) == 20


@pytest.mark.parametrize(
    ("answer", "reason", "lasting"),
    [
        (Answer("cut off", finish_reason="length"), "the output was cut after 7 tokens (max_tokens)", True),
        (Answer(""), "the output is empty", True),
        (Answer("<think>\nhm"), "the output is empty", True),
        (Answer(None, refusal="I would rather\nnot."), "the server refuses: I would rather not.", True),
        (Answer("x", finish_reason="content_filter"), "the server refuses: its content filter", True),
        (Answer(choices=False), "the answer has no choice", False),
        (Answer("too long for me", status=400), "HTTP 400: ", True),
        (Answer(fault=BROKEN), "the answer cannot be read: JSONDecodeError", False),
        (Answer("always", status=500), "HTTP 500: ", False),
    ],
)
def test_a_request_that_fails_says_why(answer, reason, lasting):
    with chat_server(lambda body, n: answer if asked(body) == "bad" else Answer("good")) as server:
        chat = EndpointChat(server.name())
        list(chat.replies([request("good")]))
        replies = dict(chat.replies([request("good"), request("bad"), request("good")]))
    assert replies[0] == replies[2] == Reply("good", 7)
    failure = replies[1]
    assert isinstance(failure, Failure) and failure.reason.startswith(reason) and failure.lasting is lasting
    assert "\n" not in failure.reason


def test_a_slow_answer_is_given_up_after_the_timeout(monkeypatch):
    monkeypatch.setattr("raft.chat.endpoint.REPEATS", 1)
    with chat_server(lambda body, n: Answer(seconds=2 if asked(body) == "slow" else 0)) as server:
        chat = EndpointChat(server.name(), timeout=0.3)
        replies = dict(chat.replies([request("slow"), request("fast")]))
    assert replies == {0: Failure("no answer in 0.3 s", lasting=False), 1: Reply("ok", 7)}


@pytest.mark.parametrize(
    ("message", "thought", "text"),
    [
        ({"content": "<think>\nhm\n</think>\n\nBecause."}, "hm", "Because."),
        ({"content": "Because.", "reasoning_content": "hm"}, "hm", "Because."),
        ({"content": " Because.\n", "reasoning": "hm"}, "hm", "Because."),
    ],
)
def test_thoughts_are_told_from_the_text(message, thought, text):
    with chat_server(lambda body, n: Answer(message=message)) as server:
        ((_, reply),) = EndpointChat(server.name()).replies([request("why?")])
    assert reply == Reply(text, 7, thought)


@pytest.mark.parametrize(("status", "said"), [(401, "bad key"), (403, "not you"), (404, "no such model")])
def test_what_no_request_would_survive_ends_the_run(status, said):
    with chat_server(lambda body, n: Answer(said, status=status)) as server:
        with pytest.raises(EngineError, match=f"scripted@http://.*: HTTP {status}: .*{said}"):
            list(EndpointChat(server.name()).replies([request(f"{i}") for i in range(100)]))
        assert len(server.bodies) <= 8


def test_a_server_that_is_not_there_ends_the_run_after_some_requests(monkeypatch):
    monkeypatch.setattr("raft.chat.endpoint.REPEATS", 0)
    with chat_server(lambda body, n: Answer()) as server:
        pass
    replies = EndpointChat(server.name()).replies([request(f"{i}") for i in range(200)])
    found: list[object] = []
    with pytest.raises(EngineError, match="50 requests in a row failed.*the same command goes on from there"):
        found.extend(replies)
    assert len(found) == 50


def test_a_server_that_refuses_whatever_is_asked_ends_the_run_and_leaves_no_failure_that_lasts():
    with chat_server(lambda body, n: Answer("no temperature, please", status=400)) as server:
        replies = EndpointChat(server.name()).replies([request(f"{i}") for i in range(200)])
        found = []
        with pytest.raises(EngineError, match="50 requests in a row failed, the last: HTTP 400: .*no temperature"):
            found.extend(replies)
    assert all(isinstance(reply, Failure) and not reply.lasting for _, reply in found)


def test_failures_are_counted_over_calls():
    with chat_server(lambda body, n: Answer("no", status=400)) as server:
        chat = EndpointChat(server.name())
        for i in range(4):
            list(chat.replies([request(f"{i} {j}") for j in range(12)]))
        with pytest.raises(EngineError, match="50 requests in a row"):
            list(chat.replies([request(f"{j}") for j in range(12)]))


def test_words_of_the_server_that_quote_the_key_do_not_get_out(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    wrong = pytest.raises(EngineError, match=r"wrong key \*\*\*")
    with chat_server(lambda body, n: Answer("wrong key sk-secret", status=401)) as server, wrong as raised:
        list(EndpointChat(server.name()).replies([request("x")]))
    assert "sk-secret" not in str(raised.value)


def test_a_caller_that_wants_no_more_leaves_no_thread():
    with chat_server(lambda body, n: Answer(seconds=0.05)) as server:
        chat = EndpointChat(server.name())
        replies = chat.replies([request(f"{i}") for i in range(500)])
        next(replies)
        replies.close()
        assert len(server.bodies) < 100
        assert not any(thread.name.startswith(chat.name) for thread in threading.enumerate())


def test_nothing_is_asked_before_the_first_is_wanted():
    with chat_server(lambda body, n: Answer()) as server:
        replies = EndpointChat(server.name()).replies([request("x")])
        time.sleep(0.1)
        assert server.bodies == []
        assert list(EndpointChat(server.name()).replies([])) == []
        assert len(list(replies)) == 1


def test_structured_output_is_asked_for_and_left_out_where_the_server_refuses_it():
    def answer(body, n):
        return Answer("response_format is not supported", status=400) if "response_format" in body else Answer("{}")

    schema = {"type": "object", "properties": {}}
    with chat_server(answer) as server:
        chat = EndpointChat(server.name())
        for _ in range(2):
            assert [reply for _, reply in chat.replies([request("x", schema=schema)])] == [Reply("{}", 7)]
    assert ["response_format" in body for body in server.bodies] == [True, False, False]
    assert server.bodies[0]["response_format"]["json_schema"]["schema"] == schema


def test_a_server_that_knows_max_completion_tokens_alone_gets_it():
    def answer(body, n):
        wrong = "max_tokens" in body
        return Answer("use 'max_completion_tokens' instead", status=400) if wrong else Answer("good")

    with chat_server(answer) as server:
        replies = list(EndpointChat(server.name(), traffic=Traffic(1)).replies([request("x", max_tokens=9)] * 3))
    assert [reply for _, reply in replies] == [Reply("good", 7)] * 3
    assert [body.get("max_completion_tokens") for body in server.bodies] == [None, 9, 9, 9]


def test_requests_a_minute():
    with chat_server(lambda body, n: Answer()) as server:
        start = time.monotonic()
        list(EndpointChat(server.name(), traffic=Traffic(256, 1200)).replies([request(f"{i}") for i in range(11)]))
        assert time.monotonic() - start >= 0.5


def test_the_key_comes_from_the_environment_and_is_in_no_name(monkeypatch):
    monkeypatch.setenv("OTHER_KEY", "sk-secret")
    with chat_server(lambda body, n: Answer()) as server:
        chat = EndpointChat(server.name(), api_key_env="OTHER_KEY")
        list(chat.replies([request("x")]))
    assert server.bodies[0]["authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in chat.name


def test_a_key_is_needed_for_other_machines_alone():
    EndpointChat("m@http://localhost:1/v1")
    with pytest.raises(ConfigError, match="environment variable OPENAI_API_KEY, found none"):
        EndpointChat("m@https://api.example.com/v1")


@pytest.mark.parametrize("name", ["gpt", "gpt@", "@http://x/v1", "gpt@ftp://x", "gpt@http://", "gpt@localhost:8000"])
def test_names_that_are_no_endpoint(name):
    with pytest.raises(ConfigError, match="expected MODEL@BASE_URL"):
        split_endpoint(name)


def test_names_with_slashes_and_with_secrets():
    assert split_endpoint("org/model@v2@http://h:1/v1/") == ("org/model@v2", "http://h:1/v1")
    with pytest.raises(ConfigError, match="keys come from the environment"):
        split_endpoint("m@http://user:pass@h/v1")


# ---- how many at once ----


def run_limit(limit: Limit, answers: int, rate, refuses=lambda value: False) -> list[int]:
    """The limits while `answers` answers come in from a server that gives rate(in flight) of them a second."""
    now, values = 0.0, []
    for _ in range(answers):
        now += 1 / rate(limit.value)
        limit.heard(now, refused=refuses(limit.value))
        values.append(limit.value)
    return values


def test_a_server_that_keeps_up_gets_all_that_is_allowed():
    values = run_limit(Limit(200), 1000, rate=lambda value: value)
    assert values[-1] == 200 and values.index(200) < 260


def test_a_server_that_is_full_is_not_given_more():
    values = run_limit(Limit(1000), 20_000, rate=lambda value: min(value, 40))
    assert max(values) <= 128 and 40 <= values[-1] <= 80


def test_a_server_that_refuses_is_given_less():
    values = run_limit(Limit(1000), 5000, rate=lambda value: value, refuses=lambda value: value > 100)
    assert max(values) <= 128 and 25 <= values[-1] <= 128
    # Refusals by chance, a quarter of all answers, are no sign of overload, however few requests are in flight.
    draw = random.Random(0)
    rare = run_limit(Limit(64), 2000, rate=lambda value: value, refuses=lambda value: draw.random() < 0.25)
    assert rare[-1] == 64 and sorted(rare) == rare
    # One burst of refusals is answered by one halving, whatever was in flight.
    burst = run_limit(Limit(256, 256), 400, rate=lambda value: value, refuses=lambda value: value == 256)
    assert min(burst) == 128
    assert min(run_limit(Limit(64), 2000, rate=lambda value: value, refuses=lambda value: True)) == 1


def test_a_request_that_waits_to_be_sent_again_leaves_its_place_to_others():
    def answer(body, n):
        text = body["messages"][-1]["content"]
        late = text == "text 0" and n == 0
        return Answer("busy", status=503, headers={"Retry-After": "3"}) if late else Answer(text)

    with chat_server(answer) as server:
        replies = EndpointChat(server.name(), traffic=Traffic(1)).replies([request(f"text {i}") for i in range(3)])
        assert [place for place, _ in replies] == [1, 2, 0]
        assert server.most_at_once == 1


def ask(traffic: Traffic) -> Place:
    return traffic.ask(lambda: None)


def test_many_that_wait_hold_new_ones_back():
    traffic = Traffic(1)
    resting = [ask(traffic) for _ in range(RESTING)]
    for place in resting:
        assert place.state == "flies" and traffic.in_flight == 1
        traffic.rest(place)
    new = ask(traffic)
    assert new.state == "waits" and traffic.in_flight == 0
    woken = []
    traffic.ask_again(resting[0], lambda: woken.append(0))
    traffic.ask_again(resting[1], lambda: woken.append(1))
    # One is in flight at most, and those that are sent again go before new ones.
    assert woken == [0] and traffic.in_flight == 1 and (resting[0].state, new.state) == ("flies", "waits")
    traffic.end(resting[0])
    assert woken == [0, 1] and (resting[1].state, new.state) == ("flies", "waits")
    traffic.end(resting[1])
    assert new.state == "flies"
    traffic.end(new)
    traffic.end(resting[2])
    assert traffic.in_flight == 0 and ask(traffic).state == "flies"


def test_places_are_given_in_the_order_in_which_they_are_asked_for():
    traffic = Traffic(1)
    first, second, third = (ask(traffic) for _ in range(3))
    traffic.end(second)  # given up while it waited
    traffic.end(first)
    assert third.state == "flies"


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_limit_that_has_fallen_grows_again(at_once):
    traffic = Traffic(256)
    for _ in range(400):
        traffic.hears(refused=True)
    flying = [ask(traffic) for _ in range(at_once)]
    assert [place.state for place in flying] == ["flies"] + ["waits"] * (at_once - 1)
    most = 0
    for _ in range(2000):  # each answer is followed by another request, and there may be a moment without any
        place = next(place for place in flying if place.state == "flies")
        traffic.hears(refused=False)
        traffic.end(place)
        flying = [*(one for one in flying if one is not place), ask(traffic)]
        most = max(most, sum(one.state == "flies" for one in flying))
    assert most == at_once


@pytest.mark.parametrize("status", [200, 500])
def test_what_is_given_up_holds_no_place(status):
    traffic = Traffic(8)
    answer = Answer("x", seconds=0.02, status=status, headers={"Retry-After": "5"})
    good = Answer("x", seconds=0.02)
    with chat_server(lambda body, n: answer if int(asked(body)) % 3 else good) as server:
        replies = EndpointChat(server.name(), traffic=traffic).replies([request(f"{i}") for i in range(200)])
        for _ in range(4):
            next(replies)
        replies.close()
    # All places are free: as many as ever are in flight at once, and as many as ever may rest.
    assert traffic.in_flight == 0
    places = [ask(traffic) for _ in range(8)]
    assert [place.state for place in places] == ["flies"] * 8
    for place in places:
        traffic.rest(place)
    assert ask(traffic).state == "flies"


def test_those_that_are_sent_again_hold_the_limit_too():
    def answer(body, n):
        return Answer("busy", status=503, headers={"Retry-After": "0.5"}) if n == 0 else Answer("x", seconds=0.1)

    with chat_server(answer) as server:
        chat = EndpointChat(server.name(), traffic=Traffic(2))
        assert len(list(chat.replies([request(f"{i}") for i in range(7)]))) == 7
        assert len(server.bodies) == 14 and server.most_at_once <= 2


def test_a_role_that_asks_later_need_not_wait_for_the_others_end():
    traffic, order, began = Traffic(2), [], threading.Event()

    def answer(body, n):
        order.append(body["model"])
        began.set()
        return Answer("x", seconds=0.02)

    with chat_server(answer) as server:

        def go(model: str) -> None:
            list(EndpointChat(server.name(model), traffic=traffic).replies([request(f"{i}") for i in range(60)]))

        first = threading.Thread(target=go, args=("a",))
        first.start()
        began.wait()
        go("b")
        first.join()
    # From b's first request on they take turns.
    rest = order[order.index("b") :]
    assert rest[: 2 * rest.count("a")].count("b") >= rest.count("a") / 2


def test_all_models_of_a_server_share_its_limit(tmp_path):
    settings = RefineSettings(concurrency=2)
    with chat_server(lambda body, n: Answer("x", seconds=0.02)) as server:
        pool = ChatPool(settings, str(tmp_path), lambda: pytest.fail("no engine is needed"))

        def ask(model: str) -> None:
            list(pool[server.name(model)].replies([request("x")] * 20))

        asking = [threading.Thread(target=ask, args=(model,)) for model in ("a", "b")]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
        assert len(server.bodies) == 40 and server.most_at_once <= 2
