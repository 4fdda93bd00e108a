"""The studies of the balance: what is read off their curves."""

import pytest

from raft.train.config import RAFTConfig
from studies.microworld.balance import BALANCES, collect
from studies.real.balance import METHODS, compare


def test_scores_of_the_seeds_and_what_was_forgotten_at_equal_domain():
    def of_seed(domain, general):
        curve = [{"domain": 0.0, "general": 1.0, "format": 1.0}, {"domain": domain, "general": general, "format": 0.8}]
        return {"scores": {"domain": domain, "general": general, "format": 0.8}, "curve": curve}

    # The last balance knows half as much as the others, so they are read where they stood half way.
    seeds = [{name: of_seed(0.4 if name == "fixed" else 0.8, general) for name in BALANCES} for general in (0.6, 0.8)]
    found = collect(seeds)
    assert found["ema"]["general"]["seeds"] == [0.6, 0.8] and found["ema"]["general"]["mean"] == pytest.approx(0.7)
    assert found["ema"]["general_at_level"]["seeds"] == pytest.approx([0.8, 0.9])
    assert found["fixed"]["general_at_level"]["seeds"] == pytest.approx([0.6, 0.8])
    assert found["gradient"]["format_at_level"]["mean"] == pytest.approx(0.9)


def test_methods_of_the_real_study_at_equal_domain():
    curves = {
        "sft": [{"domain": 0.5, "general": 0.9}, {"domain": 0.9, "general": 0.5}],
        "ema": [{"domain": 0.5, "general": 0.9}, {"domain": 0.7, "general": 0.8}],
    }
    found = compare(curves)
    assert found["sft"] == {"domain": 0.7, "general": pytest.approx(0.7)} and found["ema"]["general"] == 0.8


@pytest.mark.parametrize("name", METHODS)
def test_each_method_is_a_setting_of_the_trainer(tmp_path, name):
    made = RAFTConfig(output_dir=str(tmp_path), use_cpu=True, **METHODS[name])
    assert made.preset.distills == (name != "sft") and (name == "sft" or made.answer_target == "raw")
    if name != "sft":
        assert (made.balance, made.fixed_lambda) == (name, 1.0 if name == "fixed" else None)
