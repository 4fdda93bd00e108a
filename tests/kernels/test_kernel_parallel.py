"""Heads that are split over ranks, on two processes with gloo: results and gradients of the whole head on one."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from kernel_cases import leaves, make_case
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from raft_kernels import linear_cross_entropy, linear_topk, linear_topk_kl, topk_kl

RANKS = 2
N, H, V = 13, 8, 60


def start(rank: int, file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=RANKS)
    try:
        for check in (vocabulary_parallel, ties_across_ranks, fsdp_head, refusals):
            check(rank)
        dist.barrier()  # a rank that leaves first would close connections that the other still reads
    finally:
        dist.destroy_process_group()


def vocabulary_parallel(rank: int) -> None:
    c = make_case(N, H, V)
    rows = slice(rank * V // RANKS, (rank + 1) * V // RANKS)
    mask = torch.rand(N, generator=torch.Generator().manual_seed(1)) > 0.3
    # The second rank has all of its rows, some of them, or none of them in the vocabulary; K below and above its rows.
    for vocab, k in ((60, 9), (60, 40), (41, 9), (41, 35), (25, 9)):
        common = {"vocab_size": vocab, "mask": mask, "softcap": 9.0, "logit_scale": 0.7}
        whole = linear_topk(*c.teacher, k, log_partition_at=1.5, **common)
        split = linear_topk(
            c.teacher_hidden, c.teacher_weight[rows], k, log_partition_at=1.5, group=dist.group.WORLD, **common
        )
        assert torch.equal(split.indices, whole.indices)
        torch.testing.assert_close(split[1:], whole[1:])

        x, y = leaves(c.student), leaves((c.student_hidden, c.student_weight[rows], c.student_bias[rows]))
        expected = topk_kl(x[0], x[1], whole, bias=x[2], **common)
        got = topk_kl(y[0], y[1], split, bias=y[2], group=dist.group.WORLD, **common)
        torch.testing.assert_close(got, expected)
        a, b = torch.autograd.grad(expected.sum(), x), torch.autograd.grad(got.sum(), y)
        torch.testing.assert_close(b[0], a[0])
        torch.testing.assert_close(b[1:], tuple(g[rows] for g in a[1:]))


def ties_across_ranks(rank: int) -> None:
    """Equal logits on both ranks: the lowest ids win, which are the first rank's."""
    part = torch.ones(V // RANKS, 1)
    top = linear_topk(torch.ones(2, 1), part, 40, group=dist.group.WORLD)
    assert torch.equal(top.indices, torch.arange(40, dtype=torch.int32).expand(2, 40))


def fsdp_head(rank: int) -> None:
    """Each rank has its own tokens and a shard of the head; the gradient is the mean over the ranks, as FSDP2 gives."""
    c = make_case(N, H, 61)  # shards of different sizes
    mesh = init_device_mesh("cpu", (RANKS,))
    head = distribute_tensor(c.student_weight, mesh, [Shard(0)]).requires_grad_()

    def loss(hidden, weight):
        kl = linear_topk_kl(hidden, weight, hidden * 0.5, weight, k=9).mean()
        return kl + linear_cross_entropy(hidden, weight, torch.arange(len(hidden)))

    def tokens(i):
        return torch.randn(N, H, generator=torch.Generator().manual_seed(i))

    loss(tokens(rank), head).backward()
    plain = c.student_weight.clone().requires_grad_()
    (sum(loss(tokens(i), plain) for i in range(RANKS)) / RANKS).backward()
    torch.testing.assert_close(head.grad.full_tensor(), plain.grad)


def refusals(rank: int) -> None:
    group = dist.group.WORLD
    with pytest.raises(ValueError, match="hold between 5 and 6 rows"):
        linear_topk(torch.ones(2, 4), torch.ones(5 + rank, 4), 3, group=group)
    with pytest.raises(ValueError, match="vocab_size=99 must lie in 1..10"):
        linear_topk(torch.ones(2, 4), torch.ones(5, 4), 3, vocab_size=99, group=group)
    with pytest.raises(ValueError, match="tail='bucket' is not available for a vocabulary-parallel head"):
        linear_topk_kl(*[torch.ones(5, 4)] * 4, k=3, tail="bucket", group=group)


@pytest.mark.slow
def test_two_ranks(tmp_path):
    """All checks in one pair of processes, whose start is most of the time; the traceback names the one that failed."""
    mp.spawn(start, (str(tmp_path / "store"),), nprocs=RANKS)
