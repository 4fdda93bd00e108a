"""Whole training steps, engines and commands: the trainers that are measured, and what each of them is given."""
