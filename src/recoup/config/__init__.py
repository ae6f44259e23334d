"""The frozen configuration tree of a run. Imports no torch, so `--dry-run` and the report start at once.

Every field says what it is, with its unit and, where a paper has one, its symbol. Choices are words. A combination that
cannot work fails here, before anything is loaded. `config_file.py` reads the YAML and the `key=value` overrides.
"""

from recoup.config.degrade import (
    SFT,
    AttentionHeads,
    Calibrated,
    Degrade,
    Depth,
    FFNWidth,
    Format,
    Magnitude,
    Quantize,
    Sparse,
    SparseGPT,
    Wanda,
)
from recoup.config.methods import FREE, METHODS, Method
from recoup.config.objective import SELF_TEACHERS, Divergence, HiddenStates, Term
from recoup.config.recover import Bootstrap, Budget, Guards, Memory, Probe, Recover, Rollout, Teachers, Train
from recoup.config.run import Diagnose, Evaluate, Export, RunConfig
from recoup.config.sweep import Injury, Sweep
from recoup.config.triage import FREE_REPAIRS, FreeRepair, History, Triage

__all__ = [
    "FREE",
    "FREE_REPAIRS",
    "METHODS",
    "SELF_TEACHERS",
    "SFT",
    "AttentionHeads",
    "Bootstrap",
    "Budget",
    "Calibrated",
    "Degrade",
    "Depth",
    "Diagnose",
    "Divergence",
    "Evaluate",
    "Export",
    "FFNWidth",
    "Format",
    "FreeRepair",
    "Guards",
    "HiddenStates",
    "History",
    "Injury",
    "Magnitude",
    "Memory",
    "Method",
    "Probe",
    "Quantize",
    "Recover",
    "Rollout",
    "RunConfig",
    "Sparse",
    "SparseGPT",
    "Sweep",
    "Teachers",
    "Term",
    "Train",
    "Triage",
    "Wanda",
]
