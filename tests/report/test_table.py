from recoup.report import score_table_markdown
from recoup.report.table import fidelity_rows, score_rows

from .conftest import evaluation, healed, preserved, tokens


def test_markdown():
    # 0.43 ± 0.04, 0.35 ± 0.04, 0.42 ± 0.04; KL 0.4123 and 0.0871, each ± 0.02
    assert score_table_markdown(evaluation(healed())).splitlines() == [
        "| Task | Reference | Degraded | Recovered | Recovered fraction | Verdict |",
        "| :--- | ---: | ---: | ---: | ---: | :--- |",
        "| hellaswag (acc_norm, n = 500) | 0.430 [0.390, 0.470] | 0.350 [0.310, 0.390] | 0.420 [0.380, 0.460] "
        "| 88% [61%, 104%] | healed |",
        "| token KL (nats, lower is better) | 0 by definition | 0.412 [0.392, 0.432] | 0.0871 [0.0671, 0.107] | – | – |",
        "| top-1 agreement (higher is better) | 1 by definition | 0.710 [0.700, 0.720] | 0.880 [0.870, 0.890] | – | – |",
        "| perplexity (lower is better) | 2.50 | 3.90 | 2.75 | – | – |",
    ]


def test_markdown_of_a_hostile_name_stays_one_row():
    line = score_table_markdown(evaluation(healed("a|b\n<img src=x>[y](z)\x1b"))).splitlines()[2]
    assert line.startswith(r"| a\|b &lt;img src=x&gt;\[y\](z)␛ (acc_norm, n = 500) | 0.430")


def test_a_missing_fraction_says_why():
    unrepaired = healed().model_copy(update={"recovered": None, "recovered_fraction": None, "verdict": "damaged"})
    undefined = healed().model_copy(update={"recovered_fraction": None})
    rows = score_rows(evaluation(preserved(), unrepaired, undefined))
    assert [row.recovered_fraction for row in rows] == [
        "– (damage not significant)", "– (no repair)", "– (not computed)",
    ]  # fmt: skip
    assert rows[1].recovered == "–"


def test_fidelity_of_one_model_alone():
    assert fidelity_rows(None, None) == ()
    kl, agreement, perplexity = fidelity_rows(tokens(0.4, 0.7, 4.0), None)
    assert (kl.degraded, kl.recovered) == ("0.400 [0.380, 0.420]", "–")
    assert (agreement.degraded, agreement.recovered) == ("0.700 [0.690, 0.710]", "–")
    assert (perplexity.reference, perplexity.degraded, perplexity.recovered) == ("2.50", "4.00", "–")
