"""heal_ref: a reference implementation of HEAL (Hindsight Entropy-Assisted Learning for Reasoning
Distillation), in the order of the method:

    problems    Problem, load_problems, Task, ClockTask, ChatMathTask, check_task
    models      LM, load_lm, sample, generate, text_stats
    entropy     token_stats, entropy_and_logprob, step_values, surges, rises
    GEAR        find_breakpoint, breakpoint_of, repair                  cut, hint, continue
    PURE        pure_scores, unaided, pure_threshold, pure_filter       breakthrough or shortcut?
    PACE        build_stages, shuffled, distill                         three stages, one student
    measuring   evaluate, pass_at_k, interval, paired_difference, first_wrong_step, is_genuine
    exploring   explore_entropy, explore_repair, explore_pure           widgets for notebooks
    settings    HealConfig and its parts, InputError

Every formula is a *reading* of the paper's abstract: docstrings say which words they rest on.
Their examples take `import heal_ref as heal` as given.
"""

from heal_ref.config import GearConfig, HealConfig, PaceConfig, PureConfig, SampleConfig
from heal_ref.entropy import entropy_and_logprob, rises, step_values, surges
from heal_ref.evaluate import (
    Row,
    evaluate,
    first_wrong_step,
    interval,
    is_genuine,
    paired_difference,
    pass_at_k,
)
from heal_ref.gear import breakpoint_of, find_breakpoint, repair
from heal_ref.generation import generate, sample
from heal_ref.model import LM, load_lm, quiet
from heal_ref.pace import build_stages, distill, shuffled
from heal_ref.pure import pure_filter, pure_scores, pure_threshold, unaided
from heal_ref.records import DATA, InputError, Problem, PureScore, Trajectory
from heal_ref.run.sources import load_problems
from heal_ref.scoring import text_stats, token_stats
from heal_ref.task_check import check_task
from heal_ref.tasks import ChatMathTask, ClockTask, Task
from heal_ref.widgets import explore_entropy, explore_pure, explore_repair

score, token_scores = text_stats, token_stats  # the names that callers outside know
__version__ = "0.1.0"
__all__ = [
    "DATA", "LM", "ChatMathTask", "ClockTask", "GearConfig", "HealConfig", "InputError",
    "PaceConfig", "Problem", "PureConfig", "PureScore", "Row", "SampleConfig", "Task", "Trajectory",
    "breakpoint_of", "build_stages", "check_task", "distill", "entropy_and_logprob", "evaluate",
    "explore_entropy", "explore_pure", "explore_repair", "find_breakpoint", "first_wrong_step",
    "generate", "interval", "is_genuine", "load_lm", "load_problems", "paired_difference",
    "pass_at_k", "pure_filter", "pure_scores", "pure_threshold", "quiet", "repair", "rises",
    "sample", "shuffled", "step_values", "surges", "text_stats", "token_stats", "unaided",
]
