"""Stage 2: answer-conditioned on-policy distillation beside supervised fine-tuning, on top of transformers.Trainer."""
