"""Stage 2: supervised fine-tuning plus answer-conditioned on-policy distillation, built on transformers.Trainer."""
