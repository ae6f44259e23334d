"""Costs side by side: who spent what the first spent, and the table, by hand."""

from recoup.methods.costs import cost_rows, cost_table
from recoup.results import RecoverResult


def spent(tokens: int, seconds: float, megabytes: float = 1.0) -> RecoverResult:
    return RecoverResult(
        student="s", teachers=(), checkpoint="c", steps=1, num_tokens=tokens, num_prompts=1, on_policy_from_step=None,
        first_loss_nats=None, last_loss_nats=None, structure="", structure_exact=True, seconds=seconds,
        peak_memory_bytes=int(megabytes * 1e6),
    )  # fmt: skip


def test_equal_is_within_a_twentieth_of_the_first() -> None:
    # of 1,000 tokens and 100 s: 950 to 1,050, and 95 to 105
    results = {
        "first": spent(1000, 100), "least": spent(950, 105), "less": spent(949, 94.9), "more": spent(1051, 105.1),
    }  # fmt: skip
    assert [(row.name, row.equal_tokens, row.equal_time) for row in cost_rows(results)] == [
        ("first", True, True), ("least", True, True), ("less", False, False), ("more", False, False),
    ]  # fmt: skip


def test_nothing_spent_equals_nothing_spent() -> None:
    rows = cost_rows({"none": spent(0, 0.0, 0), "interpolate": spent(0, 2.0)})
    assert [(row.equal_tokens, row.equal_time) for row in rows] == [(True, True), (True, False)]
    assert cost_rows({}) == ()


def test_table() -> None:
    rows = cost_rows({"onpolicy": spent(12345, 61.24, 1500), "sft": spent(12000, 30.0, 900)})
    # 12,000 is 345 less than 12,345, whose twentieth is 617; 30 s are half
    assert cost_table(rows) == (
        "| method   | tokens | seconds | peak memory | equal tokens | equal time |\n"
        "| -------- | -----: | ------: | ----------: | -----------: | ---------: |\n"
        "| onpolicy | 12,345 |    61.2 |    1,500 MB |          yes |        yes |\n"
        "| sft      | 12,000 |    30.0 |      900 MB |          yes |         no |\n"
    )
