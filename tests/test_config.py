"""The config tree: files load, mistakes are one line that says how to fix them."""

from pathlib import Path

import pytest

from recoup.config import FFNWidth, Quantize, RunConfig
from recoup.config_file import dump_config, load_config, parse, settings_tree
from recoup.errors import ConfigError

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
EXPECTED = {
    "demo",
    "sft_tooluse",
    "nf4",
    "int3",
    "prune_ffn10",
    "magnitude50",
    "q4_k",
    "int3_gptq",
    "sparsegpt_2of4",
    "wanda_2of4_int4",
    "attention_heads",
    "depth",
} | {
    f"qwen2.5-{size}-{task}-{injury}"
    for size in ("3b", "7b")
    for task in ("tooluse", "science")
    for injury in ("sft", "nf4", "prune_ffn10")
}


def test_every_promised_config_is_there() -> None:
    assert {path.stem for path in CONFIGS} == EXPECTED


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_and_survives_a_round_trip(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    assert config.name == path.stem
    (tmp_path / "copy.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "copy.yaml") == config


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("name: x\ndegrade: [{type: quantize, bits: 3}]\nrecover: {steps: 7}\n")
    return path


def test_overrides(written: Path) -> None:
    config = load_config(
        written,
        ["recover.learning_rate=1e-5", "degrade.0.bits=4", "evaluate.tasks=[piqa]", "recover.rollout.max_tokens=9"],
    )
    assert config.recover.learning_rate == 1e-5
    assert config.recover.steps == 7
    assert config.degrade == (Quantize(bits=4),)
    assert config.evaluate.tasks == ("piqa",)
    assert config.recover.rollout.max_tokens == 9


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("recover.learnin_rate=1", "recover.unknown key 'learnin_rate'; did you mean 'learning_rate'"),
        ("recoverr.steps=1", "unknown key 'recoverr'; did you mean 'recover'"),
        ("recover.rollout.max_token=1", "unknown key 'max_token'; did you mean 'max_tokens'"),
        ("degrade.0.bitz=1", "unknown key 'bitz'; did you mean 'bits'"),
        ("degrade.0.bits=9", "less than or equal to 8"),
        ("degrade.1.bits=9", "is not a position in a list of 1"),
        ("degrade.0.type=quantise", "does not match any of the expected tags"),
        ("recover.steps", "expected key=value"),
        ("recover.steps.x=1", "is a value, not a group of keys"),
        ("recover.divergence=kl", "forward_kl"),
        ("recover.skip_tokens=64", "leaves nothing of rollout.max_tokens"),
        ("student=elsewhere", "give exactly one of `degrade`"),
        ("evaluate.reference=sft", "is not a state of this run; known: model, quantize"),
        ("name=a/b", "pattern"),
    ],
)
def test_mistakes_are_one_line(written: Path, override: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(written, [override])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such config file"):
        load_config(tmp_path / "none.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [1\n")
    with pytest.raises(ConfigError, match="not YAML"):
        load_config(bad)
    bad.write_text("- 1\n")
    with pytest.raises(ConfigError, match="expected a mapping"):
        load_config(bad)


def test_nf4_has_no_bits_to_choose() -> None:
    with pytest.raises(ConfigError, match="4-bit format without zero points"):
        parse(Quantize, {"format": "nf4", "bits": 3}, "quantize")


def test_an_injury_may_stand_once() -> None:
    with pytest.raises(ConfigError, match="each type may stand once"):
        parse(RunConfig, {"name": "x", "degrade": [{"type": "magnitude"}, {"type": "magnitude"}]}, "x")


def test_the_state_before_the_last_injury() -> None:
    one = parse(RunConfig, {"name": "x", "degrade": [{"type": "quantize"}]}, "x")
    two = parse(RunConfig, {"name": "x", "degrade": [{"type": "sft", "train_file": "f"}, {"type": "ffn_width"}]}, "x")
    assert (one.before_last_injury, two.before_last_injury) == ("model", "sft")
    assert two.degrade[1] == FFNWidth()


def test_settings_become_a_tree() -> None:
    assert settings_tree(["a.b=1e-4", "a.c=[x, y]", "d=text"]) == {"a": {"b": 1e-4, "c": ["x", "y"]}, "d": "text"}
