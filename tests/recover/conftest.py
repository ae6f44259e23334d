"""A damaged student and its teacher, and a short recovery of it."""

from pathlib import Path

import pytest

from recoup.config import Quantize, Recover
from recoup.degrade.run import DegradeInputs
from recoup.degrade.run import run as degrade

PROMPTS = [f"tell me about number {i} and what comes after it" for i in range(24)]


@pytest.fixture(scope="session")
def prompt_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return path


@pytest.fixture(scope="session")
def damaged(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama on a 3-bit grid."""
    folder = tmp_path_factory.mktemp("damaged")
    config = Quantize(bits=3, group_size=16)
    return Path(degrade(config, DegradeInputs(str(tiny_models["llama"]), 0), folder).checkpoint)


@pytest.fixture
def short(prompt_file: Path) -> Recover:
    """Six steps in float32: exact on a CPU."""
    return Recover.model_validate({
        "terms": [{"prompts": str(prompt_file), "num_prompts": 8}],
        "steps": 6, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-2, "precision": "fp32", "warmup_steps": 0,
        "rollout": {"max_tokens": 8, "temperature": 1.0}, "bootstrap": {"max_steps": 2, "overlap": 1.0},
        "checkpoint_every": 2,
    })  # fmt: skip
