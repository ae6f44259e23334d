"""Frozen result records, as they lie on disk. Imports no torch: the report is built from these alone."""

from recoup.results.base import SCHEMA_VERSION, Estimate, Record, Result
from recoup.results.degrade import DegradeResult
from recoup.results.diagnose import (
    BehaviourChange,
    ChangedToken,
    DiagnoseResult,
    GroupDamage,
    LayerDamage,
    PositionDamage,
)
from recoup.results.evaluate import EvaluateResult, Generation, ModelScores, TaskComparison, TaskItems
from recoup.results.export import ExportResult
from recoup.results.fidelity import TokenDamage
from recoup.results.recover import ProbeRecord, RecoverResult, RecoverStep
from recoup.results.triage import (
    CapabilityScore,
    CheckpointScores,
    ChosenTeacher,
    HistoryResult,
    PastPrediction,
    Pilot,
    RepairTrial,
    TriageResult,
    Verdict,
)

__all__ = [
    "SCHEMA_VERSION",
    "BehaviourChange",
    "CapabilityScore",
    "ChangedToken",
    "CheckpointScores",
    "ChosenTeacher",
    "DegradeResult",
    "DiagnoseResult",
    "Estimate",
    "EvaluateResult",
    "ExportResult",
    "Generation",
    "GroupDamage",
    "HistoryResult",
    "LayerDamage",
    "ModelScores",
    "PastPrediction",
    "Pilot",
    "PositionDamage",
    "ProbeRecord",
    "Record",
    "RecoverResult",
    "RecoverStep",
    "RepairTrial",
    "Result",
    "TaskComparison",
    "TaskItems",
    "TokenDamage",
    "TriageResult",
    "Verdict",
]
