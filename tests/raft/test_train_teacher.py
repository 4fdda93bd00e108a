"""Teachers with other numbers of rows for padding than the student, against float64 logits with these rows cut off."""

from types import SimpleNamespace

import pytest
import torch

from raft.engines.base import Completion
from raft.errors import ConfigError
from raft.models.language_model import LanguageModel
from raft.models.packing import pack
from raft.train.rollout import Scored
from raft.train.teacher import Teacher, check_same_tokens
from raft_kernels import topk_kl, topk_metrics
from tests.golden.training import checkpoint, config, load

T, K, COMMON = 1.5, 20, 944  # of 936 tokens
PROMPT, ROLLOUT = [9, 4, 700, 31], [12, 5, 88, 301, 7]
SCORED = SimpleNamespace(teacher_prompt=PROMPT)


def pair(student_rows, teacher_rows):
    """Two models, whose padding would win everywhere if it counted, with the tokenizer of both."""
    student, tokenizer = load(dtype=torch.float64, vocab_size=student_rows)
    teacher, _ = load(dtype=torch.float64, vocab_size=teacher_rows, seed=1)
    with torch.no_grad():
        for model in (student, teacher):
            model.lm_head.weight[COMMON:] *= 20
    return LanguageModel(student), teacher, tokenizer


def logits(model, ids=(*PROMPT, *ROLLOUT)):
    return model(input_ids=torch.tensor([[*ids]])).logits[0, len(PROMPT) - 1 : -1, :COMMON]


@pytest.mark.parametrize(("student_rows", "teacher_rows"), [(COMMON, 1000), (1000, COMMON)])
@pytest.mark.parametrize("tail", ["renormalize", "bucket"])
def test_padding_of_another_length_does_not_count(tmp_path, student_rows, teacher_rows, tail):
    student, other, tokenizer = pair(student_rows, teacher_rows)
    made = Teacher(student, other, device=torch.device("cpu"), tokenizer=tokenizer)
    args = config(tmp_path, top_k=K, temperature=T)
    scored = [Scored(SCORED, Completion(ROLLOUT, "length"))]
    top, _ = made.topk(scored, args, student.model)

    with torch.no_grad():
        t = logits(other)
    best = t.topk(K).indices.sort(-1).values
    assert torch.equal(top.indices.long(), best)
    torch.testing.assert_close(top.logits, t.gather(1, best))
    torch.testing.assert_close(top.log_partition, torch.logsumexp(t / T, -1))

    z = logits(student.inner)
    p, q = (torch.log_softmax(x / T, -1) for x in (t, z))
    if tail == "renormalize":
        p, q = (torch.log_softmax(x.gather(1, best), -1) for x in (p, q))
    else:
        rest = torch.ones_like(z, dtype=torch.bool).scatter(1, best, False)
        p, q = (
            torch.cat([x.gather(1, best), x.masked_fill(~rest, -torch.inf).logsumexp(-1, keepdim=True)], 1)
            for x in (p, q)
        )
    expected = T**2 * (p.exp() * (p - q)).sum(-1)

    hidden = student.hidden(pack([PROMPT + ROLLOUT[:-1]]))[len(PROMPT) - 1 :]
    head = student.head()
    found = topk_kl(hidden, head.weight, top, temperature=T, tail=tail, **head.options)
    torch.testing.assert_close(found, expected)
    measured = topk_metrics(hidden, head.weight, top, temperature=T, **head.options)
    torch.testing.assert_close(measured.student_mass, torch.softmax(z / T, -1).gather(1, best).sum(-1))
    assert torch.equal(measured.top1_agreement, (z.argmax(-1) == t.argmax(-1)).double())

    gradients = [torch.autograd.grad(x.sum(), student.head().weight, retain_graph=True)[0] for x in (found, expected)]
    torch.testing.assert_close(*gradients)

    share = 0.5
    masses = torch.softmax(t / T, -1).sort(-1, descending=True).values.cumsum(-1).mean(0)
    assert made.k_for(share, scored, T, student.model) == int((masses < share).sum()) + 1


def test_a_row_of_padding_that_the_student_drew_does_not_stop_the_teacher(tmp_path):
    student, other, tokenizer = pair(1000, COMMON)
    made = Teacher(student, other, device=torch.device("cpu"), tokenizer=tokenizer)
    scored = [Scored(SCORED, Completion([12, 990, 88], "length"))]
    top, _ = made.topk(scored, config(tmp_path, top_k=K, temperature=T), student.model)
    with torch.no_grad():
        t = logits(other, [*PROMPT, 12, COMMON - 1, 88])
    torch.testing.assert_close(top.logits, t.gather(1, top.indices.long()))


def test_the_same_number_of_rows_is_left_as_it_is():
    student, other, tokenizer = pair(COMMON, COMMON)
    made = Teacher(student, other, device=torch.device("cpu"), tokenizer=tokenizer)
    assert made.model.tokens is None and student.head().options["vocab_size"] is None


def test_a_teacher_by_its_path_may_have_more_padding():
    student, _, tokenizer = pair(COMMON, COMMON)
    path = str(checkpoint(vocab_size=1000, seed=1))
    made = Teacher(student, path, device=torch.device("cpu"), tokenizer=tokenizer)
    assert made.model.tokens == student.tokens == COMMON


@pytest.mark.parametrize("rows", [935, 900])
def test_a_teacher_without_rows_for_all_tokens_is_refused(rows):
    student, other, tokenizer = pair(COMMON, rows)
    with pytest.raises(ConfigError, match=rf"student's vocabulary of 944 tokens, found {rows}; .*\(.*tokenizer: 935\)"):
        Teacher(student, other, device=torch.device("cpu"), tokenizer=tokenizer)


def test_without_a_tokenizer_other_rows_are_refused():
    student, other, _ = pair(COMMON, 1000)
    with pytest.raises(
        ConfigError, match=r"student's vocabulary of 944 tokens, found 1000; .*\(.*tokenizer: unknown\)"
    ):
        Teacher(student, other, device=torch.device("cpu"))


def test_a_teacher_with_another_tokenizer_is_refused():
    ours, theirs = (SimpleNamespace(get_vocab=lambda v=v: v) for v in ({"a": 0, "b": 1}, {"b": 0, "a": 1, "c": 2}))
    with pytest.raises(ConfigError, match="found another in the/teacher: 'a' is 1, not 0"):
        check_same_tokens(ours, theirs, "the/teacher")
    more = SimpleNamespace(get_vocab=lambda: {"a": 0, "b": 1, "<think>": 2})
    check_same_tokens(ours, more, "the/teacher")
    check_same_tokens(more, ours, "the/teacher")
