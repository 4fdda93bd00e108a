"""Tuning: a configuration counts only if its result is right, and only where it wins. And runs that lose their GPU."""

import json

import pytest
import torch

from bench.kernels import cases, check, compare, lost, providers, tune, variants
from bench.kernels.providers import Provider
from raft_kernels.gpu import tiles

TINY = ["--n", "8", "--h", "4", "--v", "96", "--k", "6", "--reps", "2", "--device", "cpu", "--quick"]


# What is right


@pytest.fixture(scope="module")
def exact():
    x = cases.make_inputs(cases.Case(300, 24, 400, 12, "bfloat16", "zipf"), "cpu")
    return x, tune.exact(x)


@pytest.mark.parametrize("kernel", ["product", "hidden_gradient", "weight_gradient", "project"])
def test_the_exact_result_is_that_of_the_operation(exact, kernel, monkeypatch):
    x, expected = exact
    found = tune.operation(kernel, x)()
    tune.check(found, expected[kernel], tune.TOLERANCE)
    monkeypatch.setattr(cases, "CHUNK_ELEMENTS", 400 * 7)  # chunks of seven tokens
    torch.testing.assert_close(tune.exact(x)[kernel], expected[kernel])


@pytest.mark.parametrize("kernel", ["hidden_gradient", "weight_gradient"])
def test_a_gradient_of_nothing_is_wrong_however_small_it_should_be(exact, kernel):
    x, expected = exact
    right = tune.operation(kernel, x)() * 1e-9  # as of a mean over very many tokens
    tune.check(right, expected[kernel] * 1e-9, tune.TOLERANCE)
    one_row = right.clone()
    one_row[right.norm(dim=1).argmax()] = 0
    for wrong in (torch.zeros_like(right), one_row, 1.02 * right, right * float("nan")):
        with pytest.raises(check.WrongResult, match="of the norm"):
            tune.check(wrong, expected[kernel] * 1e-9, tune.TOLERANCE)


# What wins


def rows(kernel, regime, **ms):
    labels = {name: "shipped" if name == "shipped" else json.dumps({"BLOCK": name}) for name in ms}
    return [{"kernel": kernel, "regime": regime, "config": labels[name], "ms_p50": t} for name, t in ms.items()]


def test_a_winner_is_faster_over_both_regimes_by_more_than_noise():
    found = [
        *rows("product", "randn", shipped=10.0, a=8.0, b=9.0),
        *rows("product", "zipf", shipped=4.0, a=5.5, b=3.9),
        *rows("hidden_gradient", "randn", shipped=10.0, a=9.9),
        *rows("hidden_gradient", "zipf", shipped=10.0, a=9.9),
        *rows("weight_gradient", "randn", shipped=10.0, a=1.0),
        {"kernel": "weight_gradient", "regime": "zipf", "config": '{"BLOCK": "a"}', "failed": "out of memory"},
        *rows("weight_gradient", "zipf", shipped=10.0),
    ]
    assert tune.winners(found) == {"product": {"BLOCK": "b"}}
    assert tune.winners([]) == {}


def test_using_other_configurations_ends_with_the_block():
    shipped = tiles.tiles_for(tiles.StudentProductConfig, torch.bfloat16)
    fused = tiles.has_fused_product()
    product, project = tune.SPACE["product"][6], tune.SPACE["project"][2]
    assert shipped != product
    changes = {"product": vars(product), "project": vars(project)}
    with pytest.raises(ZeroDivisionError), variants.using(changes):
        assert tiles.tiles_for(tiles.StudentProductConfig, torch.bfloat16) == product
        assert tiles.tiles_for(tiles.ProjectConfig, torch.bfloat16) == project and tiles.has_fused_product()
        raise ZeroDivisionError
    assert tiles.tiles_for(tiles.StudentProductConfig, torch.bfloat16) == shipped and tiles.has_fused_product() == fused


def test_the_winners_run_beside_what_ships(monkeypatch, tmp_path):
    pytest.importorskip("triton")
    (tmp_path / "tune.json").write_text(json.dumps(rows("product", "randn", shipped=10.0, a=8.0)))
    chosen = []
    monkeypatch.setattr(compare, "using", lambda changes: chosen.append(changes) or variants.using({}))
    out = tmp_path / "records.json"
    words = [*TINY, "--providers", "raft_kernels", "--tuned", str(tmp_path / "tune.json"), "--out", str(out)]
    assert compare.main(words) == 0
    found = json.loads(out.read_text())
    assert {r["provider"] for r in found if r["op"] == "linear_topk_kl"} == {"raft_kernels", "raft_kernels:tuned"}
    assert chosen and all(changes == {"product": {"BLOCK": "a"}} for changes in chosen)
    (tmp_path / "tune.json").write_text("[]")
    assert compare.main(words) == 0
    assert "raft_kernels:tuned: left out, what ships was not beaten" in out.with_suffix(".md").read_text()
    with pytest.raises(SystemExit, match="holds no records of `bench tune`"):
        compare.main([*words[:-4], "--tuned", str(tmp_path / "none.json"), "--out", str(out)])


# A GPU that no longer answers


@pytest.fixture
def fragile(monkeypatch):
    """Loses the GPU after any error; the process that would start again is a call. Gives the words of each start."""
    starts = []

    def check_answers(device, culprit):
        raise lost.DeviceLost(culprit)

    def start_again(*words):
        starts.append(list(words))
        raise SystemExit(0)

    monkeypatch.setattr(lost, "check_answers", check_answers)
    monkeypatch.setattr(lost, "start_again", start_again)
    return starts


def test_a_run_goes_on_without_the_provider_that_lost_the_gpu(monkeypatch, tmp_path, fragile):
    ours = providers.MAKERS["raft_kernels"]("cpu", True)

    def illegal(x):
        raise RuntimeError("an illegal memory access was encountered")

    makers = {"raft_kernels": lambda *_: ours, "torch": providers.MAKERS["torch"]}
    makers["illegal"] = lambda *_: Provider("illegal", "top-K", {"topk_kl": illegal})
    monkeypatch.setattr(providers, "MAKERS", makers)
    out = tmp_path / "records.json"
    words = [*TINY, "--plain", "--out", str(out)]
    with pytest.raises(SystemExit):
        compare.main(words)
    assert fragile == [["kernels", *words, "--without", "illegal"]]
    first = json.loads(out.read_text())
    assert {(r["op"], r["provider"]) for r in first} == {("linear_topk", "raft_kernels"), ("linear_topk", "torch")}
    assert compare.main(fragile[0][1:]) == 0
    found = json.loads(out.read_text())
    assert found[:2] == first  # kept, not measured again
    assert [(r["op"], r["pass"]) for r in found[2::2]] == [
        *(("topk_kl", "forward"), ("topk_kl", "full"), ("linear_topk_kl", "forward"), ("linear_topk_kl", "full"))
    ]
    assert "illegal: left out, the GPU no longer answered after it" in out.with_suffix(".md").read_text()
    assert compare.without(fragile[0][1:], ["illegal", "torch"]) == [*words, "--without", "illegal,torch"]


def test_half_of_an_operation_is_measured_again(monkeypatch, tmp_path, fragile):
    ours, calls = providers.MAKERS["raft_kernels"]("cpu", True), []

    def late(x):
        call = ours.ops["topk_kl"](x)

        def counted():
            calls.append(1)
            if len(calls) == 6:  # after its check, its warm-up and its two timed calls of the forward pass
                raise RuntimeError("an illegal memory access was encountered")
            return call()

        return counted

    makers = {"raft_kernels": lambda *_: ours, "late": lambda *_: Provider("late", "top-K", {"topk_kl": late})}
    monkeypatch.setattr(providers, "MAKERS", makers)
    out = tmp_path / "records.json"
    words = [*TINY, "--plain", "--out", str(out)]
    with pytest.raises(SystemExit):
        compare.main(words)
    assert [(r["op"], r["pass"], r["provider"]) for r in json.loads(out.read_text())[1:]] == [
        ("topk_kl", "forward", "raft_kernels"),
        ("topk_kl", "forward", "late"),
    ]
    assert compare.main(fragile[0][1:]) == 0
    found = [(r["op"], r["pass"], r["provider"]) for r in json.loads(out.read_text())]
    assert len(found) == len(set(found)) == 5 and {provider for *_, provider in found} == {"raft_kernels"}


def test_tuning_goes_on_without_the_configuration_that_lost_the_gpu(monkeypatch, tmp_path, fragile):
    pytest.importorskip("triton")
    from raft_kernels import dispatch

    monkeypatch.setattr(dispatch, "INTERPRETED", True)  # the parser's question; every call here is one of torch
    monkeypatch.setattr("raft_kernels.use_backend", lambda name: variants.using({}))
    monkeypatch.setattr(cases, "REGIMES", ("randn",))
    monkeypatch.setitem(tune.SPACE, "product", tune.SPACE["product"][:1])
    real, bad = tune.operation, vars(tune.SPACE["product"][0])
    chosen = []

    def using(changes):
        chosen.append(changes)
        return variants.using({})

    def operation(kernel, x):
        call = real(kernel, x)

        def run():
            if chosen[-1] == {"product": bad}:
                raise RuntimeError("an illegal memory access was encountered")
            return call()

        return run

    monkeypatch.setattr(tune, "using", using)
    monkeypatch.setattr(tune, "operation", operation)
    out = tmp_path / "tune.json"
    words = ["--device", "cpu", "--quick", "--reps", "1", "--kernels", "weight_gradient,product", "--out", str(out)]
    with pytest.raises(SystemExit):
        tune.main(words)
    assert fragile == [["tune", *words, "--go-on"]]
    first = json.loads(out.read_text())
    assert [(r["kernel"], r.get("failed", "")) for r in first[-1:]] == [
        ("product", f"the GPU no longer answers after product {json.dumps(bad)}")
    ]
    assert tune.main(fragile[0][1:]) == 0
    found = json.loads(out.read_text())
    assert found[: len(first)] == first  # weight_gradient is not measured again
    assert [(r["kernel"], r["config"]) for r in found[len(first) :]] == [("product", "shipped")]
    assert tune.main([*words, "--go-on"]) == 0 and json.loads(out.read_text()) == found
    assert all(r["command"] == "python -m bench tune " + " ".join(words[:-2]) for r in found)
