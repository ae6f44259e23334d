"""Correlations by hand, then planted nothing and planted something, then what a folder must hold."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recoup.errors import DataError
from recoup.report import correlation, partial
from recoup.report.correlation import correlate, correlation_table
from recoup.report.partial import measures, pearson, ranks, residuals, step_functions, student
from recoup.results import DiagnoseResult, Estimate, LayerDamage, ProbeRecord, TokenDamage
from recoup.run_folder import RunFolder, result_path, write_text

STEPS = np.arange(10, 130, 10.0)  # twelve looks
# Both orthogonal to a constant and to the step 1, 2, 3, 4, and to each other: squares sum to 4 and to 20
EVEN, CUBIC = np.array([1.0, -1, -1, 1]), np.array([1.0, -3, 3, -1])
ONE_TO_FOUR = np.array([1.0, 2, 3, 4])


def exactly(value: float) -> Estimate:
    return Estimate(value=value, low=value, high=value)


def look(step: float, cka: float, gain: float, **fields: dict[str, float]) -> ProbeRecord:
    return ProbeRecord(
        step=int(step), token_kl_nats=exactly(2 - gain), top1_agreement=exactly(0.5), linear_cka=(0.5 + cka, 0.7 + cka),
        seconds=1.0, **({"groups": {}, "tasks": {}} | fields),
    )  # fmt: skip


def write_run(folder: Path, looks: Sequence[ProbeRecord], degrade: str = "[{type: wanda}]") -> RunFolder:
    run = RunFolder(folder)
    write_text(run.config, f"name: made\ndegrade: {degrade}\n")
    write_text(run.recover / "probe.jsonl", "".join(f"{record.model_dump_json()}\n" for record in looks))
    return run


def looks_of(cka_N: np.ndarray, gain_N: np.ndarray) -> list[ProbeRecord]:
    return [look(0, 0, 0), *(look(*row) for row in zip(STEPS, cka_N, gain_N, strict=True))]


def write_ends(folder: Path, cka: float, gain: float, groups: tuple[str, ...] = ()) -> RunFolder:
    run = RunFolder(folder)
    write_text(run.config, "degrade: [{type: quantize, format: int, bits: 3}, {type: sft}]\n")
    for state, more_cka, more_gain in (("before", 0.0, 0.0), ("after", cka, gain)):
        tokens = TokenDamage(
            num_prompts=4, num_tokens=40, token_kl_nats=exactly(2 - more_gain), top1_agreement=exactly(0.5),
            reference_perplexity=2, student_perplexity=3,
        )  # fmt: skip
        layer = LayerDamage(layer=0, linear_cka=0.5 + more_cka, linear_cka_all_tokens=0.9, relative_drift=0.1)
        found = DiagnoseResult(
            teacher="t", student="s", tokens=tokens, layers=(layer,), num_cka_tokens=36, seconds=1,
            groups=tuple({"group": name, "tokens": tokens, "mean_cka": None} for name in groups),
        )  # fmt: skip
        write_text(result_path(run.diagnose(state)), found.model_dump_json())
    return run


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "NUM_BOOTSTRAP", 500)


def test_ranks_share_ties() -> None:
    assert ranks(np.array([3.0, 1.0, 3.0, 7.0])).tolist() == [2.5, 1.0, 2.5, 4.0]


def test_measures_by_hand() -> None:
    # CKA = step + EVEN, gain = 2 step + EVEN + CUBIC. Centred: (−0.5, −1.5, −0.5, 2.5), squares 9; (−1, −5, 3, 3), squares 44; product 14.
    # Ranks (2.5, 1, 2.5, 4) and (2, 1, 3.5, 3.5): centred squares 4.5 and 4.5, product 3.75.
    # Step out: EVEN (4) and EVEN + CUBIC (24), product 4. Their ranks (3.5, 1.5, 1.5, 3.5), of (2, −4, 2, 0) (3.5, 1, 3.5, 2):
    # centred (1, −1, −1, 1) and (1, −1.5, 1, −0.5): squares 4 and 4.5, product 1
    run = np.stack([ONE_TO_FOUR, ONE_TO_FOUR + EVEN, 2 * ONE_TO_FOUR + EVEN + CUBIC], axis=1)
    by_hand = [14 / math.sqrt(9 * 44), 3.75 / 4.5, 4 / math.sqrt(4 * 24), 1 / math.sqrt(4 * 4.5)]
    assert measures([run], bend=False) == pytest.approx(by_hand)


def test_the_step_goes_out_within_each_run() -> None:
    # within either run gain = −CKA once the step is out, but the second run gained more of both than the first
    first = np.stack([ONE_TO_FOUR, EVEN, -EVEN], axis=1)
    second = np.stack([ONE_TO_FOUR, EVEN + 50, 50 - EVEN], axis=1)
    together = measures([first, second], bend=False)
    assert together[0] > 0.99
    assert together[2] == pytest.approx(-1)


@pytest.mark.parametrize("bend", [False, True])
def test_nothing_left_is_no_correlation(bend: bool) -> None:
    functions = step_functions(STEPS, bend=bend)
    curve = functions @ np.arange(1.0, functions.shape[1] + 1)
    assert not residuals(np.stack([curve, 3 * curve], axis=1), functions).any()
    found = measures([np.stack([STEPS, curve, 3 * curve], axis=1)], bend=bend)
    assert found[:2] == pytest.approx([1, 1])
    assert all(map(math.isnan, found[2:]))


def test_students_points() -> None:
    # of a printed table: 3.182 for 3 degrees of freedom (the series is short there), 2.228 for 10, 2.042 for 30
    assert [student(freedom) for freedom in (10, 30)] == pytest.approx([2.228, 2.042], abs=3e-3)
    assert student(3) == pytest.approx(3.182, rel=0.05)


def test_what_does_not_vary_has_no_correlation() -> None:
    assert math.isnan(pearson(np.full(5, 0.1), np.arange(5.0)))


@given(st.integers(0, 10_000))
@settings(deadline=None)
def test_a_line_out_is_the_textbook_partial_correlation(seed: int) -> None:
    step, x, y = np.random.default_rng(seed).normal(size=(3, 9))
    xy, xt, yt = pearson(x, y), pearson(x, step), pearson(y, step)
    textbook = (xy - xt * yt) / math.sqrt((1 - xt**2) * (1 - yt**2))
    assert measures([np.stack([step + 5, x, y], axis=1)], bend=False)[2] == pytest.approx(textbook)


def planted(root: Path, shared: float, num_runs: int, seed: int) -> list[RunFolder]:
    """Runs in which CKA and token KL both recover fast and then slowly, each with noise of which `shared` is the same."""
    generator, folders = np.random.default_rng(seed), []
    for number in range(num_runs):
        common, own_cka, own_gain = generator.normal(size=(3, len(STEPS)))
        cka = 1 - np.exp(-STEPS / 40) + 0.03 * (shared * common + (1 - shared) * own_cka)
        gain = 1 - np.exp(-STEPS / 60) + 0.03 * (shared * common + (1 - shared) * own_gain)
        folders.append(write_run(root / f"{shared}-{number}", looks_of(0.2 * cka, gain)))
    return folders


@pytest.mark.parametrize("num_runs", [1, 3, 12])
def test_both_follow_the_step_and_nothing_else(tmp_path: Path, num_runs: int) -> None:
    (found,) = correlate(planted(tmp_path, 0.0, num_runs, seed=1))
    assert (found.num_runs, found.num_points) == (num_runs, 12 * num_runs)
    assert found.pearson is not None
    assert found.partial_pearson is not None
    assert found.pearson.value > 0.9
    assert found.pearson.low > 0.5
    assert found.partial_pearson.low < 0 < found.partial_pearson.high
    assert found.answer == "not shown"


@pytest.mark.parametrize(("num_runs", "resampled"), [(3, "runs, and blocks of looks in them"), (12, "runs")])
def test_what_moves_together_beyond_the_step_is_found(tmp_path: Path, num_runs: int, resampled: str) -> None:
    (found,) = correlate(planted(tmp_path, 0.9, num_runs, seed=2))
    assert found.resampled == resampled
    assert found.partial_pearson is not None
    assert found.partial_pearson.low > 0.3
    assert found.answer == "yes"


def test_one_run_says_so(tmp_path: Path) -> None:
    noise = np.random.default_rng(3).normal(size=len(STEPS))
    (found,) = correlate([write_run(tmp_path / "run", looks_of(noise, -noise))])
    assert (found.injury, found.capability, found.points) == ("wanda", "token KL", "looks")
    assert found.resampled == "blocks of looks of one run"
    assert found.answer == "no, the reverse"
    assert found.spearman is not None
    assert found.spearman.value == pytest.approx(-1)


def test_too_few_points_leave_everything_open(tmp_path: Path) -> None:
    noise = np.random.default_rng(3).normal(size=6)
    steps = [0, *STEPS[:6]]
    (found,) = correlate(
        [write_run(tmp_path / "run", [look(s, g, g) for s, g in zip(steps, [0, *noise], strict=True)])]
    )
    assert found.partial_spearman is not None
    assert found.partial_spearman == Estimate(value=found.partial_spearman.value, low=-1, high=1)
    assert found.partial_spearman.value == pytest.approx(1)
    assert found.answer == "not shown"


def test_blocks_are_consecutive_and_go_on_at_the_start() -> None:
    part = np.random.default_rng(0).normal(size=(7, 2))
    rotated = partial._draws(
        [part], 7, np.random.default_rng(1)
    )  # one block as long as the run: the same points, turned
    assert rotated == pytest.approx(np.full(500, pearson(*part.T)))
    # rows 0 and 1, 1 and 2, 2 and 0: a block of two of three, and one row more. Products are (1, row, 0, 0, 0, 0)
    products = np.array([[1, row, 0, 0, 0, 0] for row in (0, 10, 100)])
    sums = partial._summed(products, 2, 400, np.random.default_rng(1))[:, 1]
    pairs, singles = (10, 110, 100), (0, 10, 100)
    assert set(sums.tolist()) == {pair + single for pair in pairs for single in singles}


def test_whole_runs_are_drawn_with_replacement() -> None:
    # two runs of one pair of points each, r = 1 and r = −1 about the same mean: drawn twice the first, twice the second, or both
    rising, falling = np.array([[-1.0, -1], [1, 1]]), np.array([[-1.0, 1], [1, -1]])
    found, counts = np.unique(
        partial._draws([rising, falling], None, np.random.default_rng(2)).round(9), return_counts=True
    )
    assert found.tolist() == [-1, 0, 1]
    assert counts / 500 == pytest.approx([0.25, 0.5, 0.25], abs=0.07)  # three standard deviations of a half


def test_gains_are_counted_from_the_start_and_by_capability(tmp_path: Path) -> None:
    records = [
        look(step, cka, gain, groups={"code": 3 - gain}, tasks={"arc": 0.2 + gain / 10})
        for step, cka, gain in [(0, 0, 0), *zip(STEPS, STEPS / 1000 + 0.1, STEPS / 100, strict=True)]
    ]
    again = records[4].model_copy(update={"linear_cka": (0.9, 0.9)})  # the run had gone back to this step
    folder = write_run(tmp_path / "run", [*records[:4], again, *records[4:]])
    tables = correlation._looks(folder)
    assert list(tables) == ["token KL", "token KL of code", "arc"]
    for name, scale in (("token KL", 1), ("token KL of code", 1), ("arc", 0.1)):
        expected = np.stack([STEPS, STEPS / 1000 + 0.1, STEPS / 100 * scale], axis=1)
        np.testing.assert_allclose(tables[name], expected)


def test_injuries_apart_and_together(tmp_path: Path) -> None:
    generator = np.random.default_rng(4)
    injuries = ("[{type: quantize, format: int, bits: 3}]", "[{type: sft}, {type: quantize, format: nf4, bits: null}]")
    folders = [
        write_run(tmp_path / str(number), looks_of(*generator.normal(size=(2, len(STEPS)))), injury)
        for number, injury in enumerate(injuries)
    ]
    found = correlate(folders)
    assert [(row.injury, row.num_runs) for row in found] == [
        ("quantize int3", 1),
        ("sft → quantize nf4", 1),
        ("all injuries", 2),
    ]


def test_before_and_after(tmp_path: Path) -> None:
    gains = np.random.default_rng(5).normal(size=8)
    folders = [write_ends(tmp_path / str(k), 0.1 * gain, gain, ("code",)) for k, gain in enumerate(gains)]
    tokens, code = correlate(folders)
    assert (tokens.capability, tokens.points, tokens.num_runs, tokens.num_points) == (
        "token KL",
        "before and after",
        8,
        8,
    )
    assert tokens.injury == "quantize int3 → sft"
    assert code.capability == "token KL of code"
    for found in (tokens, code):
        assert found.partial_pearson is not None
        assert found.partial_pearson.value == pytest.approx(1)  # no repair says how long it was: no step to take out


def test_too_little_to_correlate(tmp_path: Path) -> None:
    bare = RunFolder(tmp_path / "bare")
    write_text(bare.config, "degrade: []\n")
    with pytest.raises(
        DataError, match=r"bare: holds neither 6 looks after the start \(recover/probe\.jsonl\) nor diagnoses"
    ):
        correlate([bare])
    few = write_run(tmp_path / "few", [look(step, 0, 0) for step in range(6)])
    with pytest.raises(DataError, match="few: holds neither 6 looks after the start"):
        correlate([few])
    ends = [write_ends(tmp_path / str(k), 0.1, k) for k in range(3)]
    with pytest.raises(DataError, match="3 runs: too few points"):
        correlate(ends)


def test_malformed_files(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", looks_of(STEPS, STEPS))
    folder.config.write_text("degrade: [wanda]")
    with pytest.raises(DataError, match=r"config\.yaml: not the config of a run"):
        correlate([folder])
    (folder.recover / "probe.jsonl").write_text('{"step": 0}\n')
    with pytest.raises(DataError, match=r"probe\.jsonl: a line is not a look of a probe"):
        correlate([folder])


def test_the_table(tmp_path: Path) -> None:
    curve = STEPS + np.log1p(STEPS)  # wholly taken out
    table = correlation_table(correlate([write_run(tmp_path / "run", looks_of(curve, curve))]))
    *_, row = table.strip().splitlines()
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [
        "wanda", "token KL", "12 (looks) of 1 run; resampled: blocks of looks of one run",
        "1.000 [1.000, 1.000]", "1.000 [1.000, 1.000]", "–", "–", "cannot be told",
    ]  # fmt: skip
    assert all(line.count("|") == 9 for line in table.strip().splitlines())
