"""The settings of a run: what there is (schema), how a value is checked (check), YAML and key=value (files)."""

from raft.settings.files import load_config, save_config
from raft.settings.plan import Plan
from raft.settings.schema import Config, EvalSettings, RefineSettings

__all__ = ["Config", "EvalSettings", "Plan", "RefineSettings", "load_config", "save_config"]
