"""All methods of the quality benchmark, by name.

Each has one searched hyperparameter. The product's has three values. A rival whose best value was at an end
of its three got a fourth, so that no rival is tuned less than the product. Does not know data sets or
measures.
"""

from __future__ import annotations

from benchmarks.baselines.alphaedit import alphaedit
from benchmarks.baselines.enn import enn
from benchmarks.baselines.fine_tune import fine_tune, fine_tune_kl, fine_tune_layer
from benchmarks.baselines.grace import grace
from benchmarks.baselines.interface import EditedNetwork, Editing, Method
from benchmarks.baselines.lora import lora
from benchmarks.baselines.malmen import malmen_ridge
from benchmarks.baselines.mend import mend_top, mend_traced
from benchmarks.baselines.mend_ahead import mend_ahead
from benchmarks.baselines.salem_recipes import salem, salem_paper
from benchmarks.baselines.ultraedit import ultraedit

__all__ = ["METHODS", "EditedNetwork", "Editing", "Method", "method"]

FEW, MANY = 100, 1_000
KL_WEIGHTS = (1.0, 3.0, 10.0, 30.0)
RATE, KL, RADIUS, NULL = "learning rate", "KL weight", "first radius", "eigenvalue threshold"
_MEND = "Mitchell et al. 2022 (MEND)"

METHODS: tuple[Method, ...] = (
    Method("fine-tune", RATE, (3e-5, 1e-4, 3e-4, 1e-3), FEW, fine_tune, f"{_MEND}, section 5"),
    Method(
        "fine-tune-layer", RATE, (0.01, 0.03, 0.1, 0.3), MANY, fine_tune_layer, f"{_MEND}, section 5", True
    ),
    Method("fine-tune-kl", KL, KL_WEIGHTS, FEW, fine_tune_kl, f"{_MEND}, section 5"),
    Method("lora", RATE, (3e-4, 1e-3, 3e-3, 1e-2), FEW, lora, "Hu et al. 2022 (LoRA), section 4"),
    Method("mend-top3", KL, KL_WEIGHTS, FEW, mend_top, f"{_MEND}, section 3; appendix C"),
    Method("mend-ahead", KL, (1.0, 3.0, 10.0), FEW, mend_ahead, f"{_MEND}, section 3.3"),
    Method("mend-traced", KL, KL_WEIGHTS, FEW, mend_traced, f"{_MEND}; Meng et al. 2022 (ROME), section 2"),
    Method("enn", KL, (1.0, 3.0, 10.0), FEW, enn, "Sinitsin et al. 2020 (ENN), section 3"),
    Method(
        "malmen-ridge",
        "ridge",
        (1e-2, 1e-1, 1.0),
        MANY,
        malmen_ridge,
        "Tan et al. 2024 (MALMEN), section 3",
        True,
    ),
    Method(
        "ultraedit",
        "step",
        (0.5, 1.5, 4.0, 10.0),
        MANY,
        ultraedit,
        "Gu et al. 2025 (UltraEdit), section 3",
        True,
    ),
    Method(
        "alphaedit",
        NULL,
        (1e-4, 1e-3, 1e-2, 3e-2),
        MANY,
        alphaedit,
        "Fang et al. 2025 (AlphaEdit), section 3",
        True,
    ),
    Method("grace", RADIUS, (0.1, 0.3, 0.6), MANY, grace, "Hartvigsen et al. 2023 (GRACE), section 3", True),
    Method(
        "salem",
        "scope budget per edit",
        (2e-4, 1e-4, 5e-4),  # the product's default comes first: of equals the search takes the first
        MANY,
        salem,
        "docs/recipes.md, scoped",
        True,
        num_seeds=3,
        fresh=True,
    ),
    Method(
        "salem-paper", KL, (1.0, 3.0, 10.0), FEW, salem_paper, "SaLEM 2024, section 3; docs/recipes.md, paper"
    ),
)


def method(name: str) -> Method:
    """The method of that name.

    Raises:
        KeyError: there is no such method.
    """
    return {method.name: method for method in METHODS}[name]
