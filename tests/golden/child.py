"""One training in a process of its own: python -m tests.golden.child FOLDER CHECKPOINT JSON-SETTINGS [resume]

Settings are those of RAFTConfig on top of the tests' own. It is used for tests of kills and of several ranks.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from raft.engines.hf import HFEngine
from raft.train.interrupt import StopAtStepEnd
from raft.train.trainer import RAFTTrainer
from tests.golden.training import config, rows

if __name__ == "__main__":
    folder, source, settings = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    if settings.pop("lora", False):
        import peft

        torch.manual_seed(0)
        model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    short = settings.pop("short_on_rank", None)  # the rank whose rollouts have one token
    # The trainer makes any other engine itself.
    engine = None if "rollout_engine" in settings else HFEngine(model, tokenizer, max_model_len=192)
    if short is not None and short == int(os.environ["RANK"]):
        generate = engine.generate
        engine.generate = lambda prompts, sampling: generate(prompts, replace(sampling, max_tokens=1))
    made = RAFTTrainer(model, config(folder, **settings), rows(), processing_class=tokenizer, engine=engine)
    folder.mkdir(parents=True, exist_ok=True)  # the Trainer makes it on the first rank only, maybe later than this
    (folder / f"pid-{made.args.process_index}").write_text(str(os.getpid()))
    with StopAtStepEnd() as stop:
        made.add_callback(stop)
        made.train(resume_from_checkpoint="resume" in sys.argv)
    if made.is_world_process_zero():
        torch.save(model.state_dict(), folder / "weights.pt")
        (folder / "balance.json").write_text(json.dumps(made.balance.state_dict()))
