"""Products over unions of ids, in many tiles and chunks, and the divergence kernel. Interpreted:
test_triton_interpreter.py starts this file in a process of its own."""

import math

import pytest
import torch
from kernel_cases import leaves, make_case

from raft_kernels import TopK, topk_kl
from raft_kernels.budgets import Budgets, use_budgets
from raft_kernels.dispatch import INTERPRETED, use_dense
from raft_kernels.divergence import DIVERGENCES, topk_divergence
from raft_kernels.student.op import student_logits

if not INTERPRETED:
    pytest.skip("run interpreted by test_triton_interpreter.py", allow_module_level=True)

from raft_kernels.gpu import divergence, student, union

# Error of a result, of its largest value: fp32 sums; fp16 operands are kept; bf16 rounds dloss/dy, and the interpreter
# truncates it.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2**-10, torch.bfloat16: 2**-6}
N, V, PADDING, K = 150, 300, 7, 9
PAIRS = Budgets().union_pairs


@pytest.fixture(autouse=True)
def unions():
    """Always the way over unions, and workspaces that hold NaN: what is read without having been written shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    with use_dense(False):
        yield
    torch.use_deterministic_algorithms(False)


def some_ids(n: int, v: int, k: int) -> torch.Tensor:
    return torch.rand(n, v).topk(k).indices.sort(-1).values.int()


def logits_and_gradients(x, ids, mask, dz, operands):
    """z at the ids, and the gradients by hidden states, head and bias for dloss/dz."""
    z = student_logits(*x, ids, mask, V, 0.5, None, operands, None, "triton")
    return [z.detach(), *torch.autograd.grad(z, x, dz)]


def in_fp64(x, ids, mask, dz):
    hidden, weight, bias = (t.double() for t in x)
    at, d = ids.long(), dz.double().masked_fill(~mask.unsqueeze(1), 0)
    z = 0.5 * (hidden @ weight.t() + bias).gather(1, at)
    dense = 0.5 * torch.zeros(N, V + PADDING, dtype=torch.float64).scatter(1, at, d)
    return [z, dense @ weight, dense.t() @ hidden, dense.sum(0)]


@pytest.mark.parametrize("h", [70, 300])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_many_tiles_and_chunks(monkeypatch, dtype, h):
    chunks, whole = [], student._chunks
    monkeypatch.setattr(student, "_chunks", lambda n, step: chunks.append(len(whole(n, step))) or whole(n, step))
    c = make_case(N, h, V + PADDING, dtype)
    ids, mask = some_ids(N, V, K), torch.rand(N) > 0.2
    dz = torch.randn(N, K).masked_fill(torch.rand(N, K) < 0.3, 0)
    exact = in_fp64(c.student, ids, mask, dz)
    hidden = c.student_hidden.clone()
    hidden[~mask] = math.nan
    x = leaves((hidden, *c.student[1:]))

    one = logits_and_gradients(x, ids, mask, dz, dtype)
    assert set(chunks) == {1}
    chunks.clear()
    with use_budgets(union_workspace=1, union_pairs=1):
        many = [logits_and_gradients(x, ids, mask, dz, dtype) for _ in range(2)]
    assert min(chunks) > 1
    for got, again, undivided, truth in zip(*many, one, exact, strict=True):
        assert torch.equal(got, again)
        torch.testing.assert_close(got, undivided, rtol=1e-5, atol=1e-6)
        rows = mask if len(truth) == N else torch.ones(len(truth), dtype=torch.bool)
        error = (got.double() - truth)[rows].abs().max() / truth.abs().max()
        assert error <= (TOLERANCE[dtype] if got is not many[0][0] else TOLERANCE[torch.float32])
    assert (many[0][1][~mask] == 0).all()
    assert (many[0][2][V:] == 0).all() and (many[0][3][V:] == 0).all()


def test_gradients_below_the_range_of_fp16():
    """2**-30 is 0 in fp16; its products with hidden states of 2**10 are not."""
    hidden = torch.full((64, 16), 2.0**10, dtype=torch.float16)
    x = leaves((hidden, torch.zeros(V, 16, dtype=torch.float16), torch.zeros(V)))
    ids = torch.zeros(64, 1, dtype=torch.int32)
    grads = logits_and_gradients(x, ids, None, torch.full((64, 1), 2.0**-29), torch.float16)
    assert (grads[2][0] == 2.0**-14).all()


@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_head_of_more_elements_than_32_bits_count(layout):
    """4 GiB of which two rows are touched; a wrong address ends the process."""
    h, v = 16400, 131072
    weight = torch.empty((v, h) if layout == "rows" else (h, v), dtype=torch.bfloat16)
    weight = weight if layout == "rows" else weight.t()
    hidden, ids = torch.ones(1, h, dtype=torch.bfloat16, requires_grad=True), torch.tensor([[5, v - 3]]).int()
    weight[ids[0].long()] = torch.tensor([[1.0], [-2.0]]).bfloat16()
    z = student_logits(hidden, weight, None, ids, None, v, 1.0, None, torch.bfloat16, None, "triton")
    assert z.tolist() == [[h, -2 * h]]
    z.sum().backward()
    assert (hidden.grad == -1).all()


@pytest.mark.parametrize("n, v, tile", [(1, 5, 4), (10, 40, 4), (8, 300, 4), (7, 90, 16)])
def test_union_lists_the_ids_in_use(n, v, tile):
    ids, live = some_ids(n, v, 3), torch.rand(n, 3) > 0.4
    live[:tile] &= n < 10  # a tile that uses nothing
    found = union.of_tokens(ids, live, v, tile, PAIRS)
    place, capacity = found.columns, found.members.shape[1]
    for t in range(-(-n // tile)):
        rows = slice(t * tile, (t + 1) * tile)
        expected = sorted(set(ids[rows][live[rows]].tolist()))
        assert found.sizes[t] == len(expected) <= capacity
        assert found.members[t, : len(expected)].tolist() == expected
        assert torch.equal(found.members[t][place[rows][live[rows]].long()], ids[rows][live[rows]])
    assert (place[~live] == capacity).all()
    everything = union.of_tokens(ids, None, v, tile, PAIRS)
    assert torch.equal(everything.sizes, union.of_tokens(ids, torch.ones_like(live), v, tile, PAIRS).sizes)


def test_ids_that_are_used_alike_stand_together():
    """Ids of most tokens, of the first eight, of the last eight, of a single token, and of none."""
    n, v = 64, 40
    sets = [[7, 30, *([3, 21] if t < 8 else [4, 9] if t >= 56 else [0 if t == 20 else 37, 38])] for t in range(n)]
    ids = torch.tensor([sorted(each) for each in sets]).int()
    order, places = union.by_use(ids, v)
    assert sorted(order.tolist()) == list(range(v))
    assert torch.equal(order[places], torch.arange(v).int())
    assert order[:9].tolist() == [7, 30, 37, 38, 3, 21, 4, 9, 0]


def test_skipped_entries_are_in_no_product(monkeypatch):
    n, k = 6, 10
    c = make_case(n, 8, n * k)
    teacher = TopK(torch.randperm(n * k).view(n, k).sort(-1).values.int(), torch.randn(n, k))
    sizes, of_tokens = [], union.of_tokens

    def recorded(*args):
        found = of_tokens(*args)
        sizes.append(int(found.sizes.sum()))
        return found

    monkeypatch.setattr(union, "of_tokens", recorded)
    for skip_below in (0.0, 0.3):
        x = leaves(c.student)
        loss = topk_kl(x[0], x[1], teacher, bias=x[2], skip_below=skip_below)
        listed = len(sizes)
        grads = torch.autograd.grad(loss.sum(), x)
        assert sizes[listed - 1] == n * k
        # Listed once where all entries have a gradient; else again, without those that have none.
        assert sizes[listed:] == ([int((grads[2] != 0).sum())] if skip_below else [])
    assert sizes[-1] < n * k


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("c", [1, 2, 33, divergence.MAX_CLASSES, divergence.MAX_CLASSES + 1])
def test_divergence_of_any_number_of_classes(c, name):
    z, t = 3 * torch.randn(3, c), 3 * torch.randn(3, c)
    t[0, 1 : c // 2] = -math.inf  # classes without mass
    if name != "reverse":
        t[1, 1 : c // 2] = z[1, 1 : c // 2] = -math.inf
    z[2, 0] = math.nan
    options = (None, 1.5, 0.7, name, 0.3, 2.25, 0.0)
    got = topk_divergence(z, t, *options, "triton")
    exact = topk_divergence(z.double(), t.double(), *options, "torch")
    for a, b in zip(got, exact, strict=True):
        torch.testing.assert_close(a, b.float(), rtol=1e-4, atol=1e-5, equal_nan=True)
    assert got[0][2].isnan() and not got[0][1].isnan()
