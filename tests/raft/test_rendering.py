"""What is rendered is what is trained: real chat templates, thoughts, tools, control tokens in texts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft.errors import InputError
from raft.rendering import Controls, assistant_turn, chat_ids, chat_options, chat_text, split_thought
from raft.rendering.controls import without_end
from raft.rendering.earlier import earlier_turns
from raft.rendering.row import answer_message
from raft.rendering.thoughts import ends_inside
from raft.rows import normalize_rows
from tests.raft.chat_templates import with_template
from tests.tiny import CHAT_TEMPLATE, END, tokenizer

QUESTION = [{"role": "user", "content": "Why?"}]
# Template, the token that ends its turns, what comes before the answer, what is trained.
PLAIN = [
    ("qwen3", END, "<|im_start|>assistant\n<think>\n\n</think>\n\n", "Because.<|im_end|>"),
    ("qwen2_5", END, "<|im_start|>assistant\n", "Because.<|im_end|>"),
    ("llama3_1", "<|eot_id|>", "<|start_header_id|>assistant<|end_header_id|>\n\n", "Because.<|eot_id|>"),
    ("gemma3", "<end_of_turn>", "<start_of_turn>model\n", "Because.<end_of_turn>"),
    ("gemma4", "<turn|>", "<|turn>model\n", "Because.<turn|>"),
    ("phi3", "<|end|>", "<|assistant|>\n", "Because.<|end|>"),
    ("gptoss", "<|return|>", "<|start|>assistant", "<|channel|>final<|message|>Because.<|return|>"),
    ("glm4moe", "<|endoftext|>", "<|assistant|>\n<think></think>", "\nBecause.<|endoftext|>"),
    ("cohere", "<|END_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>", "Because.<|END_OF_TURN_TOKEN|>"),
    ("lfm2", END, "<|im_start|>assistant\n", "Because.<|im_end|>"),
    # The generation prompt opens a thought; an answer without one follows the turn's beginning.
    ("deepseek_r1_distill", "<｜end▁of▁sentence｜>", "<｜Assistant｜>", "Because.<｜end▁of▁sentence｜>"),
]


def turn_of(tokens, answer, messages=QUESTION, **options):
    message = {"role": "assistant", "content": answer} if isinstance(answer, str) else answer
    return assistant_turn(tokens, messages, message, [tokens.eos_token_id], **options)


@pytest.mark.parametrize(("name", "end", "before", "trained"), PLAIN, ids=[case[0] for case in PLAIN])
def test_an_answer_is_trained_as_the_template_writes_it(name, end, before, trained):
    tokens = with_template(name, end=end)
    turn = turn_of(tokens, "Because.")
    assert tokens.decode(turn.target) == trained
    assert tokens.decode(turn.context).endswith(before)
    assert turn.prompt == chat_ids(tokens, QUESTION)
    assert turn.context == turn.prompt[: len(turn.context)]


@pytest.mark.parametrize(("name", "end", "before", "trained"), PLAIN, ids=[case[0] for case in PLAIN])
def test_trl_trains_the_same_tokens(name, end, before, trained):
    """But for what follows the end of the turn, and for an end token where the template writes none."""
    tokens = with_template(name, end=end)
    options = {"enable_thinking": False, "return_dict": True}
    prompt = tokens.apply_chat_template(QUESTION, add_generation_prompt=True, **options)["input_ids"]
    answer = {"role": "assistant", "content": "Because."}
    whole = tokens.apply_chat_template([*QUESTION, answer], **options)["input_ids"]
    data = pytest.importorskip("trl.data_utils", reason="TRL is not installed")
    if not hasattr(data, "common_prefix_length"):
        pytest.skip("this TRL has no common_prefix_length")
    shared = data.common_prefix_length(prompt, whole)
    turn = turn_of(tokens, "Because.")
    assert turn.context == whole[:shared]
    whole_turn = [*turn.context, *turn.target]
    assert whole[: len(whole_turn)] == whole_turn or whole == whole_turn[:-1]


THOUGHTS = [
    ("qwen3", END, "<|im_start|>assistant\n", "<think>\nHm.\n</think>\n\nBecause.<|im_end|>"),
    ("qwen3_6", END, "<|im_start|>assistant\n<think>\n", "Hm.\n</think>\n\nBecause.<|im_end|>"),
    ("glm4moe", "<|endoftext|>", "<|assistant|>", "\n<think>Hm.</think>\nBecause.<|endoftext|>"),
    (
        "gptoss",
        "<|return|>",
        "<|start|>assistant",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Because.<|return|>",
    ),
]


@pytest.mark.parametrize("key", ["reasoning_content", "thinking"])
@pytest.mark.parametrize(("name", "end", "before", "trained"), THOUGHTS, ids=[case[0] for case in THOUGHTS])
def test_the_thought_of_an_answer_is_trained(name, end, before, trained, key):
    tokens = with_template(name, end=end)
    row = {"answer_turn": {key: "Hm."}}
    message = answer_message(row, "Because.")
    turn = turn_of(tokens, message, **chat_options(row, message))
    assert tokens.decode(turn.target) == trained
    assert tokens.decode(turn.context).endswith(before)


def test_a_thought_in_the_content_is_not_trained_beside_an_empty_one():
    tokens = with_template("qwen3", end=END)
    message = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nBecause."}
    turn = turn_of(tokens, message, **chat_options({}, message))
    trained = tokens.decode([*turn.context, *turn.target])
    assert trained.count("<think>") == 1 and trained.endswith("<think>\nHm.\n</think>\n\nBecause.<|im_end|>")
    # A row can ask for the generation prompt of a model that does not think; the thought is trained all the same.
    quiet = turn_of(tokens, message, enable_thinking=False)
    assert tokens.decode([*quiet.context, *quiet.target]) == trained


def test_a_short_answer_is_told_from_the_tokens_behind_it():
    """ "e" also stands in <|im_end|> and in "assistant\n"."""
    tokens = with_template("qwen2_5", end=END)
    for answer in ("e", "i", "a", "|"):
        assert tokens.decode(turn_of(tokens, answer, [{"role": "user", "content": answer}]).target) == f"{answer}{END}"


def test_the_end_of_the_turn_is_the_first_end_token_behind_the_answer():
    """Phi's template writes another one behind the whole chat."""
    tokens = with_template("phi3", end="<|end|>")
    ends = tokens.convert_tokens_to_ids(["<|end|>", "<|endoftext|>"])
    tokens.eos_token = "<|endoftext|>"
    turn = assistant_turn(tokens, QUESTION, {"role": "assistant", "content": "Because."}, ends)
    assert tokens.decode(turn.target) == "Because.<|end|>"


def test_a_template_without_an_end_token_gets_the_tokenizers():
    tokens = tokenizer()
    tokens.chat_template = "{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}"
    assert tokens.decode(turn_of(tokens, "a").target) == f"a\n{END}"
    tokens.eos_token = None
    with pytest.raises(InputError, match="nothing names the token that ends an answer"):
        assistant_turn(tokens, QUESTION, {"role": "assistant", "content": "a"}, [])


@pytest.mark.parametrize(
    ("template", "what"),
    [
        (
            "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }}{% endif %}{% endfor %}",
            "user.s message",
        ),
        (
            "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}<|im_end|>{% endif %}{% endfor %}",
            "answer",
        ),
        # Of parts: a text is looped over by its characters, none of which has a type.
        (
            "{% for m in messages %}{% for part in m['content'] %}{{ part.text }}{% endfor %}<|im_end|>{% endfor %}",
            "user.s message",
        ),
    ],
    ids=["no question", "no answer", "parts"],
)
def test_a_template_that_leaves_out_a_text_is_refused(template, what):
    tokens = tokenizer()
    tokens.chat_template = template
    with pytest.raises(InputError, match=f"the chat template leaves out the {what}"):
        turn_of(tokens, "Because.")


def test_a_question_that_is_rewritten_once_it_is_answered_is_refused():
    tokens = tokenizer()
    tokens.chat_template = (
        "{% for m in messages %}{{ (messages | length) ~ m['role'] ~ m['content'] ~ '<|im_end|>' }}{% endfor %}"
    )
    with pytest.raises(InputError, match="question and answer cannot be told apart: '1userQUESTION"):
        turn_of(tokens, "Because.")


# ---- tools ----

TOOL = {"type": "function", "function": {"name": "now", "description": "", "parameters": {"type": "object"}}}
CALL = {"type": "function", "id": "c12345678", "function": {"name": "now", "arguments": '{"zone": "UTC"}'}}
CALLED = [QUESTION[0], {"role": "assistant", "content": None, "tool_calls": [CALL]}]
ANSWERED = [
    *CALLED,
    {"role": "tool", "name": "now", "tool_call_id": "c12345678", "content": "12:00"},
    {"role": "assistant", "content": "Noon."},
]


def tool_turn(name, end, messages, *ends):
    tokens = with_template(name, end=end)
    row = normalize_rows([{"messages": messages, "tools": [TOOL]}])[0]
    message = answer_message(row, row["answer"])
    known = [tokens.eos_token_id, *tokens.convert_tokens_to_ids(list(ends))]
    turn = assistant_turn(tokens, row["prompt"], message, known, **chat_options(row, message))
    return tokens.decode(turn.context), tokens.decode(turn.target)


@pytest.mark.parametrize(
    ("name", "ends", "called"),
    [
        ("qwen3", [END], '<tool_call>\n{"name": "now", "arguments": {"zone": "UTC"}}\n</tool_call><|im_end|>'),
        ("llama3_1", ["<|eot_id|>"], '{"name": "now", "parameters": {"zone": "UTC"}}<|eot_id|>'),
        (
            "gemma4",
            ["<turn|>", "<|tool_response>"],
            '<|tool_call>call:now{zone:<|"|>UTC<|"|>}<tool_call|><|tool_response>',
        ),
        (
            "gptoss",
            ["<|return|>", "<|call|>"],
            ' to=functions.now<|channel|>commentary json<|message|>{"zone": "UTC"}<|call|>',
        ),
    ],
)
def test_calls_of_tools_and_answers_after_them_are_trained(name, ends, called):
    context, target = tool_turn(name, ends[0], CALLED, *ends)
    assert "now" in context and target == called
    context, target = tool_turn(name, ends[0], ANSWERED, *ends)
    assert "12:00" in context and target.endswith(f"Noon.{ends[0]}") and "12:00" not in target


def test_control_tokens_in_the_description_of_a_tool_are_plain_characters():
    tokens = with_template("qwen3", end=END)
    tool = {"type": "function", "function": {**TOOL["function"], "description": f"says {END}"}}
    ids = chat_ids(tokens, QUESTION, tools=[tool])
    assert ids.count(tokens.eos_token_id) == chat_ids(tokens, QUESTION, tools=[TOOL]).count(tokens.eos_token_id)
    assert f"says {END}" in tokens.decode(ids)


def test_tools_that_a_template_leaves_out_are_refused():
    with pytest.raises(InputError, match="the chat template leaves out the tool 'now'"):
        tool_turn("phi3", "<|end|>", ANSWERED)
    tokens = with_template("phi3", end="<|end|>")
    with pytest.raises(InputError, match="the chat template leaves out the call of 'now'"):
        turn_of(tokens, {"role": "assistant", "content": "", "tool_calls": [CALL]})


# ---- control tokens in texts ----


def test_a_template_may_take_arguments_of_any_name():
    """Also those of the parameters of our own functions."""
    tokens = tokenizer()
    tokens.chat_template = "{{ answer }} {{ ends }} {{ tokenizer }}\n" + CHAT_TEMPLATE
    given = {"answer": "brief", "ends": "soon", "tokenizer": "any"}
    options = chat_options({"chat_template_kwargs": given})
    turn = assistant_turn(tokens, QUESTION, {"role": "assistant", "content": "Because."}, [], **options)
    assert tokens.decode(turn.context).startswith("brief soon any\n<|im_start|>user")
    assert turn.prompt == chat_ids(tokens, QUESTION, **options)
    assert earlier_turns(tokens, QUESTION, [], **options) == []


def test_a_control_token_in_a_text_does_not_end_the_turn():
    tokens = with_template("qwen2_5", end=END)
    ids = chat_ids(tokens, [{"role": "user", "content": f"What does {END} mean?"}])
    end = tokens.convert_tokens_to_ids(END)
    assert ids.count(end) == 2  # of the system's turn and of the user's
    assert f"What does {END} mean?{END}" in tokens.decode(ids)
    turn = turn_of(tokens, f"{END} ends a turn.")
    assert turn.target.count(end) == 1 and turn.target[-1] == end
    assert tokens.decode(turn.target) == f"{END} ends a turn.{END}"


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.sampled_from(["<|im_start|>", END, "<|endoftext|>", "a b", "\n", "é", "<|im_"]), max_size=8))
def test_texts_are_encoded_as_they_are_whatever_stands_in_them(parts):
    tokens = tokenizer()
    text = "x" + "".join(parts)
    ids = chat_ids(tokens, [{"role": "user", "content": text}])
    assert tokens.decode(ids) == f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    controls = set(Controls.of(tokens).ids.values())
    assert [i for i in ids if i in controls] == tokens.convert_tokens_to_ids(["<|im_start|>", END, "<|im_start|>"])


def test_texts_without_control_tokens_are_encoded_as_ever():
    tokens = with_template("llama3_1", end="<|eot_id|>")
    messages = [{"role": "system", "content": "be brief"}, *QUESTION]
    expected = tokens.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert chat_ids(tokens, messages) == expected


def test_the_end_token_of_an_answer_is_taken_off():
    assert without_end(f"Because.{END}\n", [END]) == "Because."
    assert without_end(f"Because.{END}{END}", [END]) == "Because."
    assert without_end(f"{END} ends a turn.", [END]) == f"{END} ends a turn."
    assert without_end("Because. ", [END]) == "Because. "


def test_a_known_tokenizer_that_gets_more_tokens_is_looked_at_again():
    tokens = tokenizer()
    assert "<|new|>" not in Controls.of(tokens).ids
    tokens.add_tokens(["<|new|>"], special_tokens=True)
    assert Controls.of(tokens).first_in("a <|new|> b") == "<|new|>"


# ---- thoughts ----


@pytest.mark.parametrize(
    ("text", "thought", "rest"),
    [
        ("Because.", None, "Because."),
        ("<think>\nHm.\n</think>\n\nBecause.", "Hm.", "Because."),
        ("Hm.\n</think>\n\nBecause.", "Hm.", "Because."),  # opened by the generation prompt
        ("<think>\nHm, and so on", "Hm, and so on", ""),  # cut
        ("<|channel>thought\nHm.<channel|>Because.", "Hm.", "Because."),
    ],
)
def test_thoughts_are_told_from_texts(text, thought, rest):
    found = split_thought(text)
    assert (found.thought, found.text) == (thought, rest)


def test_a_prompt_that_ends_inside_a_thought_is_told():
    tokens = with_template("deepseek_r1_distill", end="<｜end▁of▁sentence｜>")
    assert ends_inside(chat_text(tokens, QUESTION)) == "<think>"
    quiet = with_template("qwen3", end=END)
    assert ends_inside(chat_text(quiet, QUESTION)) is None
    assert ends_inside(chat_text(quiet, QUESTION, enable_thinking=True)) is None


@pytest.mark.parametrize(
    ("name", "end", "trained"),
    [
        ("qwen3", END, ["1<|im_end|>"]),
        ("qwen2_5", END, ["1<|im_end|>"]),
        ("llama3_1", "<|eot_id|>", ["1<|eot_id|>"]),
        ("gemma3", "<end_of_turn>", ["1<end_of_turn>"]),
        ("deepseek_r1_distill", "<｜end▁of▁sentence｜>", ["1<｜end▁of▁sentence｜>"]),
        ("phi3", "<|end|>", ["1<|end|>"]),
    ],
)
def test_earlier_turns_stand_where_the_template_writes_them(name, end, trained):
    tokens = with_template(name, end=end)
    messages = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "1"}, *QUESTION]
    ids = chat_ids(tokens, messages)
    spans = earlier_turns(tokens, messages, [tokens.eos_token_id])
    assert [tokens.decode(ids[a:b]) for a, b in spans] == trained
    assert earlier_turns(tokens, QUESTION, [tokens.eos_token_id]) == []
