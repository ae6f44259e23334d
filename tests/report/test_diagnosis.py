import re
from pathlib import Path

import pytest

from recoup.errors import DataError
from recoup.report import write_diagnosis
from recoup.report.diagnosis import render
from recoup.report.diagnosis_grids import layer_grid
from recoup.report.diagnosis_words import map_sentence
from recoup.report.gather import Diagnosis, gather_diagnosis
from recoup.results import ChangedToken

from .conftest import around, put
from .conftest import diagnosis as old_diagnosis
from .diagnosed import CHANGED, DIAGNOSIS, HISTORY, TRIAGE
from .pages import WHOLE, page_of, whole
from .reading import Page

OLDER = Path(__file__).parents[2] / "results" / "int3" / "diagnose" / "before"


def without(*fields: str) -> Diagnosis:
    return Diagnosis(DIAGNOSIS.model_copy(update=dict.fromkeys(fields, ())), TRIAGE, HISTORY)


def without_in_layers(**changes: object) -> Diagnosis:
    layers = tuple(layer.model_copy(update=changes) for layer in DIAGNOSIS.layers)
    return Diagnosis(DIAGNOSIS.model_copy(update={"layers": layers}), TRIAGE, HISTORY)


@pytest.mark.usefixtures("undrawn")
def test_the_page_lies_beside_the_result(tmp_path: Path):
    put(tmp_path, DIAGNOSIS)
    assert write_diagnosis(tmp_path) == tmp_path / "index.html"
    assert (tmp_path / "index.html").read_text(encoding="utf-8") == render(Diagnosis(DIAGNOSIS))


def test_every_part_is_there_in_order_with_the_records_numbers():
    text = page_of(WHOLE).text
    parts = [
        "recoup diagnosis of runs/int3/degrade/quantize/checkpoint against its teacher embedded",
        "Re-quantize better Better rounding to the same 3-bit grid brings back 54%",
        # 1.304 ± 0.12, 0.505 ± 0.061
        "token KL, nats 1.30 [1.18, 1.42] 0 is the teacher itself",
        "top-1 agreement 0.505 [0.444, 0.566]",
        "perplexity, teacher → student 1.99 → 8.32",
        "Run next recoup recover --student diagnosis/triage/repaired --teacher embedded --output repaired steps=60",
        "1,920 tokens that the teacher wrote to 32 prompts",
        "What this rests on Token KL 1.30 nats is far above",
        "What was lost",
        "code 1.73 [1.61, 1.85] 0.505 [0.444, 0.566] 1.99 → 8.32 0.871 10 600",
        "science 1.20 [1.08, 1.32] 0.505 [0.444, 0.566] 1.99 → 8.32 – 10 600",
        "arc_easy (acc_norm, n = 100) 0.550 [0.455, 0.645] 0.310 [0.220, 0.400] −0.240 [−0.310, −0.170] damaged",
        "piqa (acc_norm, n = 100) 0.670 [0.575, 0.765] 0.640 [0.550, 0.730] −0.030 [−0.100, 0.040] within noise",
        "4–15 1.12 0.902 384",
        "on 3,904 tokens, sink tokens left out",
        "Bands are 95% intervals",
        "Lowest: 0.710 at layer 29.",
        "Attention settles on 34 tokens in one of the models alone",
        "30 of 30 student layers are most like their own partner.",
        "How to read CKA",
        "higher CKA is not always higher accuracy",
        # layer 12: CKA 0.997 − 0.287 · (12/29)^1.5 = 0.921
        "12 0.921 0.899 to 0.937 0.998 0.911 1.000 0.134 0.440 0.220",
        "length, tokens 41.3 62.8 21.5 [15.4, 27.6] changed 40",
        "stopped by itself 71% 20% −51% [−65%, −37%] changed 40",
        "refused, where it should 25% 12% −12% [−38%, 12%] within noise 8",
        "The capital of France is Paris The student would say the",
        "It gives the teacher's token probability 0.004, the teacher 0.981: KL 7.21 nats.",
        "student The the colours is the the",
        "student The model wrote nothing.",
        "rounding (method gptq, damping 0.01) 0.704 [0.614, 0.794] 0.600 [0.530, 0.670] int3 grid",
        "predicted recovered fraction of the token KL 78% [64%, 88%]",
        "2 finished runs the same prediction was off by 10 percentage points",
        "tooluse sft/checkpoint-300 0.200 [0.140, 0.260] better than the student 0.69",
        "science sft/checkpoint-400 0.090 [−0.010, 0.190] within noise 0.31",
        "tooluse: peak 0.610 [0.570, 0.650] at sft/checkpoint-300.",
        "3: sft/checkpoint-400 0.520 [0.480, 0.560] ▲ 0.710 [0.670, 0.750]",
        "teacher: sft/checkpoint-300",
    ]
    places = [text.find(part) for part in parts]
    assert -1 not in places, parts[places.index(-1)]
    assert places == sorted(places)
    assert "Not in this diagnosis" not in text


def test_every_layer_is_in_the_table():
    html = whole()
    table = html[html.index("The numbers of each layer") : html.index("The numbers of each head")]
    rows = re.findall(r'<th scope="row"><bdi>(\d+)</bdi></th>\s*<td><bdi>([\d.]+)</bdi>', table)
    assert [(int(i), float(cka)) for i, cka in rows] == [(x.layer, round(x.linear_cka, 3)) for x in DIAGNOSIS.layers]


def test_partners_are_named_where_they_are_other_layers():
    assert "Teacher's layer" not in layer_grid(DIAGNOSIS.layers).columns
    fewer = [DIAGNOSIS.layers[i].model_copy(update={"teacher_layer": 2 * i}) for i in range(3)]
    grid = layer_grid(fewer)
    assert grid.columns[1] == "Teacher's layer"
    assert [row[:2] for row in grid.rows] == [("0", "0"), ("1", "2"), ("2", "4")]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("diagnosis", "gone", "said"),
    [
        (Diagnosis(DIAGNOSIS, None, HISTORY), ["What was tried", "Run next", "Re-quantize"], "the triage was not run"),
        (
            Diagnosis(DIAGNOSIS, TRIAGE, None),
            ["History", "Who should teach"],
            "a history of checkpoints: none was given",
        ),
        (without("groups"), ["By group of prompts"], "groups of prompts"),
        (without("positions"), ["By place in the completion,"], "damage by place"),
        (without("tasks"), ["Benchmarks, paired by item"], "benchmarks: none was asked for"),
        (without("groups", "positions", "tasks"), ["What was lost"], "benchmarks"),
        (without("cka_map"), ["most like their own partner", "The numbers of the map"], "layer by layer map"),
        (without("changed_tokens"), ["Tokens that changed most"], "the most changed tokens"),
        (without("generations"), ["Generations, side by side"], "generations"),
        (without("behaviour"), ["valid JSON, where asked for"], "behaviour: JSON"),
        (without("changed_tokens", "generations", "behaviour"), ["Words"], "generations"),
        (without_in_layers(cka_interval=None), ["Bands are", "95% interval 0"], "intervals of CKA"),
        (without_in_layers(ceiling=None, floor=None), ["Ceiling:", "Floor:"], "ceiling and floor"),
        (without_in_layers(relative_l2=None, procrustes=None), ["What CKA does not see"], "Procrustes distance"),
        (without_in_layers(teacher_rank=None, student_rank=None), ["How many directions"], "effective rank"),
        (without_in_layers(relative_drift=None), ["a gap where shapes differ"], "weight drift"),
        (
            without_in_layers(attention_drift=None, ffn_drift=None, head_drift=()),
            ["0 is unchanged", "The numbers of each head"],
            "drift of attention",
        ),
    ],
)
def test_a_part_is_gone_when_its_data_is_and_that_is_said(diagnosis: Diagnosis, gone: list[str], said: str):
    whole, text = page_of(WHOLE).text, page_of(diagnosis).text
    shown, _, left_out = text.partition("Not in this diagnosis")
    for words in gone:
        assert words in whole or words == "95% interval 0"
        assert words not in shown
    assert said in left_out


@pytest.mark.usefixtures("undrawn")
def test_heads_alone_are_drawn_and_a_head_may_be_missing_in_one_layer():
    diagnosis = without_in_layers(attention_drift=None, ffn_drift=None)
    first = diagnosis.result.layers[0].model_copy(update={"head_drift": ()})
    layers = (first, *diagnosis.result.layers[1:])
    html = render(Diagnosis(diagnosis.result.model_copy(update={"layers": layers})))
    assert "<title>attention, layer 3: not measured</title>" in html
    assert "<title>head 8, layer 0: not measured</title>" in html
    assert f"<title>head 8, layer 1: {DIAGNOSIS.layers[1].head_drift[8]:.3f}</title>" in html


@pytest.mark.parametrize("state", ["before", "after"])
def test_a_record_of_before_this_page_renders(state: str):
    page = Page(render(gather_diagnosis(OLDER.parent / state)))
    assert page.open == []
    assert page.tags.count("svg") == 2  # CKA and weight drift
    assert "Token KL from the teacher to the student is" in page.text
    assert "ceiling and floor of CKA" in page.text.partition("Not in this diagnosis")[2]


@pytest.mark.usefixtures("undrawn")
def test_old_fields_alone_leave_the_rest_out():
    text = page_of(Diagnosis(old_diagnosis(0.3, 0.45))).text
    assert "Layer CKA CKA, sink included Weight drift" in text


@pytest.mark.usefixtures("undrawn")
def test_nothing_to_run_next_is_said():
    done = TRIAGE.model_copy(update={"verdict": "nothing significant lost", "command": None})
    text = page_of(Diagnosis(DIAGNOSIS, done)).text
    assert "Nothing significant lost" in text
    assert "There is nothing to run next." in text
    assert "Run next" not in text


def test_shuffled_layers_are_told():
    rows = DIAGNOSIS.cka_map
    assert map_sentence(DIAGNOSIS.model_copy(update={"cka_map": (rows[1], rows[0], *rows[2:])})).startswith("28 of 30")
    assert map_sentence(DIAGNOSIS.model_copy(update={"cka_map": ()})) == ""


def test_a_student_of_fewer_layers_is_compared_with_its_partners():
    layers = tuple(DIAGNOSIS.layers[i].model_copy(update={"teacher_layer": 2 * i}) for i in range(3))
    rows = tuple(tuple(1.0 if j == 2 * i else 0.5 for j in range(6)) for i in range(3))
    assert map_sentence(DIAGNOSIS.model_copy(update={"layers": layers, "cka_map": rows})).startswith(
        "3 of 3 student layers"
    )


def test_figures_have_names_and_headers_a_scope():
    page = page_of(WHOLE)
    # groups, positions, tasks, CKA, drift, map, distance, rank, weights, and two capabilities
    assert page.tags.count("svg") == 11
    assert page.unnamed_figures == 0
    assert page.unscoped == 0


@pytest.mark.usefixtures("undrawn")
def test_tokens_of_blanks_are_seen_and_lines_kept():
    odd = ChangedToken(
        prompt="p", before="\n\n  two down\n", token="\n", student_token="  ", kl_nats=4, reference_p=1, student_p=0
    )
    html = render(Diagnosis(DIAGNOSIS.model_copy(update={"changed_tokens": (odd,)})))
    # HTML drops one newline after <pre>, so the template adds one
    assert '<pre dir="auto">\n\n\n  two down\n<mark>⏎</mark></pre>' in html
    assert "<code>␣␣</code>" in html


@pytest.mark.usefixtures("undrawn")
def test_many_changed_tokens_are_folded():
    many = tuple(CHANGED[0].model_copy(update={"token": f"token{i}"}) for i in range(20))
    html = render(Diagnosis(DIAGNOSIS.model_copy(update={"changed_tokens": many})))
    shown, _, folded = html.partition("<summary>14 more</summary>")
    assert "token5<" in shown
    assert "token6<" not in shown
    assert '<ol class="changed" start="7">' in folded
    assert "token19<" in folded


@pytest.mark.usefixtures("undrawn")
def test_a_long_context_keeps_its_end():
    long = CHANGED[0].model_copy(update={"before": "x" * 5000 + " the end"})
    text = page_of(Diagnosis(DIAGNOSIS.model_copy(update={"changed_tokens": (long,)}))).text
    assert "the end Paris" in text
    assert "x" * 1000 not in text


def test_numbers_that_are_none_do_not_stop_the_page():
    nowhere = around(float("nan"), 0)
    tokens = DIAGNOSIS.tokens.model_copy(update={"token_kl_nats": nowhere, "student_perplexity": float("inf")})
    positions = tuple(x.model_copy(update={"token_kl_nats": float("nan")}) for x in DIAGNOSIS.positions)
    text = page_of(Diagnosis(DIAGNOSIS.model_copy(update={"tokens": tokens, "positions": positions}))).text
    assert "not a number" in text
    assert "1.99 → ∞" in text


def test_no_diagnosis_is_an_error_and_no_page(tmp_path: Path):
    with pytest.raises(DataError, match="run that stage first"):
        write_diagnosis(tmp_path)
    assert not (tmp_path / "index.html").exists()


@pytest.mark.usefixtures("undrawn")
def test_same_records_same_bytes():
    assert render(WHOLE) == render(WHOLE)
