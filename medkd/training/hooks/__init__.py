"""What happens beside the steps of a training: saving, logs, best weights, progress bar; one small class each."""

from medkd.training.hooks.base import Hook
from medkd.training.hooks.best import KeepBest
from medkd.training.hooks.progress import ProgressBar
from medkd.training.hooks.saving import SaveFinal, SaveLatest
from medkd.training.hooks.telling import TellTracker
from medkd.training.hooks.terms import TermWatch, WatchTerms
from medkd.training.hooks.writing import WriteLog

__all__ = [
    "Hook",
    "KeepBest",
    "ProgressBar",
    "SaveFinal",
    "SaveLatest",
    "TellTracker",
    "TermWatch",
    "WatchTerms",
    "WriteLog",
]
