import re
import subprocess
import sys

import pytest

from recoup.errors import DataError
from recoup.report import write_report
from recoup.results import Generation
from recoup.run_folder import RunFolder, write_json, write_text

from .conftest import PROVENANCE, RECOVERY, diagnosis, evaluation, healed, injury, put, put_probe, put_steps
from .diagnosed import DIAGNOSIS
from .reading import ATTACK, Page


def page_of(folder: RunFolder) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def test_the_page_lies_in_the_run_folder(finished: RunFolder):
    assert write_report(finished) == finished.root / "report" / "index.html"


def test_every_part_is_there_in_order(finished: RunFolder):
    text = page_of(finished).text
    parts = [
        "recoup report: forget-then-round",
        "token KL to the reference fell from 0.412 to 0.0871 nats",
        "sft : 1000 rows, 1 epoch.",
        "quantize : int3, group 64, symmetric: 210 matrices.",
        "Task Reference Degraded Recovered Recovered fraction Verdict",
        "hellaswag acc_norm, n = 500 0.430 [0.390, 0.470] 0.350 [0.310, 0.390] 0.420 [0.380, 0.460] 88% [61%, 104%] healed",
        "– (damage not significant) preserved",
        "token KL nats, lower is better 0 by definition 0.412 [0.392, 0.432] 0.0871 [0.0671, 0.107]",
        "perplexity lower is better 2.50 3.90 2.75",
        "n = 1,984 tokens before, n = 1,984 tokens after",
        "Structure kept exactly : int3 grid, 210 matrices.",
        "Loss of each step, on-policy from step 15.",
        "Name three primary colours. reference Red, yellow and blue. degraded The the colours",
        "degraded The model wrote nothing. recovered ```python",
        "optimizer steps 40 completion tokens trained on 40,000 prompts 256 time 4.2 min peak memory 3.00 GiB",
        "time sampling completions 2.0 min time scoring by the teacher 30.0 s time training the student 1.5 min",
        # 90 + 90 + 21 + 252 + 21 + 240 = 714 seconds
        "total 11.9 min",
        "train_file: $DATA/science.jsonl",
        "commit unknown uncommitted_changes no versions.python 3.11.7 versions.torch 2.13.0",
    ]
    text = text.replace(" :", ":")
    places = [text.find(part.replace(" :", ":")) for part in parts]
    assert -1 not in places, parts[places.index(-1)]
    assert places == sorted(places)


def test_five_figures_with_names_and_scoped_headers(finished: RunFolder):
    page = page_of(finished)
    assert page.tags.count("svg") == 5
    assert page.unnamed_figures == 0
    assert page.unscoped == 0
    assert page.open == []


def test_the_probe_stands_beside_the_loss(finished: RunFolder):
    put_probe(finished)
    page = page_of(finished)
    assert page.tags.count("svg") == 7
    assert "Token KL to the teacher on held-out prompts that the repair never trains on" in page.text


def test_a_probe_without_hidden_states_has_no_cka(empty: RunFolder):
    put_probe(empty, linear_cka=())
    put(empty.recover, RECOVERY)
    assert page_of(empty).tags.count("svg") == 1


def test_bands_and_bounds_are_named_where_they_are_drawn(finished: RunFolder):
    put(finished.diagnose("before"), DIAGNOSIS)
    assert "Bands are 95% intervals over prompts. Ceiling: the teacher" in page_of(finished).text


def test_nothing_is_loaded_and_nothing_runs(finished: RunFolder):
    html = write_report(finished).read_text(encoding="utf-8")
    page = Page(html)
    assert all(address.startswith(("#", "data:,")) for address in page.addresses)
    assert "script" not in page.tags
    assert not {name for name in page.attributes if name.startswith("on")}
    assert "http:" not in html
    assert "https:" not in html
    assert "@import" not in html
    assert set(re.findall(r"url\((.)", html)) == {"#"}


def test_ids_are_unique(finished: RunFolder):
    ids = re.findall(r' id="([^"]*)"', write_report(finished).read_text(encoding="utf-8"))
    assert len(set(ids)) == len(ids)


def test_foreign_text_is_escaped_everywhere(empty: RunFolder):
    write_text(empty.config, f"name: '{ATTACK}'\n")
    write_json(empty.provenance, PROVENANCE | {ATTACK: ATTACK})
    put(empty.degrade("sft"), injury(ATTACK, ATTACK).model_copy(update={"source": ATTACK}))
    put(empty.recover, RECOVERY.model_copy(update={"student": ATTACK, "teachers": (ATTACK,), "structure": ATTACK}))
    said = Generation(prompt=ATTACK, reference=ATTACK, degraded=f"</pre>{ATTACK}", recovered=ATTACK)
    task = healed(ATTACK).model_copy(update={"metric": ATTACK, "verdict": "newly damaged"})
    put(empty.evaluate, evaluation(task, generations=(said,)).model_copy(update={"reference": ATTACK}))
    html = write_report(empty).read_text(encoding="utf-8")
    assert "<script" not in html
    assert "</pre>&lt;" not in html
    figure = html[html.index("<svg") : html.index("</svg>")]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in figure


def test_control_characters_are_shown_not_sent(empty: RunFolder):
    said = Generation(prompt="p", reference="\x1b[2J\x07", degraded="a\u202eb", recovered="\x85")
    put(empty.evaluate, evaluation(healed("t\x1b]0;x\x07"), generations=(said,)))
    html = write_report(empty).read_text(encoding="utf-8")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", html)
    assert "␛[2J␇" in html
    assert "t␛]0;x␇" in html[html.index("<svg") : html.index("</svg>")]


def test_whitespace_of_generations_is_kept(empty: RunFolder):
    said = Generation(prompt="p", reference="\n\n  two lines down", degraded="d", recovered=None)
    put(empty.evaluate, evaluation(healed(), generations=(said,)))
    html = write_report(empty).read_text(encoding="utf-8")
    # HTML drops one newline after <pre>, so the template adds one
    assert '<pre dir="auto">\n\n\n  two lines down</pre>' in html
    assert "<h4>recovered</h4>" not in html


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("degrade/sft,degrade/quantize", "No damage was made in this run."),
        ("diagnose/before,diagnose/after", "The diagnosis was not run."),
        ("diagnose/before", "The diagnosis before the repair was not run."),
        ("diagnose/after", "The diagnosis after the repair was not run."),
        ("recover", "The recovery has not finished; 40 of its steps are logged."),
        ("evaluate", "The evaluation was not run."),
        ("evaluate", "From the diagnosis, since the evaluation was not run"),
    ],
)
def test_a_missing_stage_is_said(finished: RunFolder, missing: str, sentence: str):
    assert sentence not in page_of(finished).text
    for stage in missing.split(","):
        (finished.root / stage / "result.json").unlink()
    page = page_of(finished)
    assert sentence in page.text
    assert page.open == []


def test_only_a_diagnosis(empty: RunFolder):
    put(empty.diagnose("before"), diagnosis(scale=0.3, kl=0.45))
    empty.config.unlink()
    empty.provenance.unlink()
    text = page_of(empty).text
    for sentence in (
        "The recovery was not run.",
        "no config.yaml",
        "no provenance.json",
        "The evaluation was not run.",
    ):
        assert sentence in text


def test_layers_of_another_shape_have_no_drift(empty: RunFolder):
    whole = diagnosis(scale=0.3, kl=0.45)
    layers = tuple(layer.model_copy(update={"relative_drift": None}) for layer in whole.layers)
    put(empty.diagnose("before"), whole.model_copy(update={"layers": layers}))
    page = page_of(empty)
    assert "every layer differs in shape" in page.text
    assert page.tags.count("svg") == 1


def test_a_structure_that_was_lost_is_said(empty: RunFolder):
    put(empty.recover, RECOVERY.model_copy(update={"structure_exact": False}))
    put_steps(empty)
    assert "Structure not kept exactly : int3 grid" in page_of(empty).text.replace("exactly:", "exactly :")


def test_no_results_is_an_error_and_no_page(empty: RunFolder):
    with pytest.raises(DataError, match="no stage of a run is finished"):
        write_report(empty)
    assert not empty.report.exists()


def test_same_run_same_bytes(finished: RunFolder):
    first = write_report(finished).read_bytes()
    assert write_report(finished).read_bytes() == first


def test_report_imports_without_torch():
    code = "import sys, recoup.report; sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_repair_without_training_is_shown_with_its_method(finished: RunFolder):
    free = {"method": "interpolate", "note": "share 0.5 of the base", "steps": 0, "num_tokens": 0, "teachers": ()}
    put(finished.recover, RECOVERY.model_copy(update=free | {"first_loss_nats": None, "last_loss_nats": None}))
    (finished.recover / "metrics.jsonl").unlink()
    page = page_of(finished)
    assert (
        "Method: interpolate (share 0.5 of the base). Student quantize ; no teacher. Nothing was trained." in page.text
    )
    assert "The method interpolate (share 0.5 of the base) trains nothing" in page.text
    assert "method interpolate optimizer steps 0" in page.text
    assert page.tags.count("svg") == 3
    assert page.open == []


def test_four_questions_stand_at_the_top(finished: RunFolder):
    text = page_of(finished).text
    titles = ["What was lost", "What came back", "What it cost", "What to do next", "Scores"]
    places = [text.find(title) for title in titles]
    assert places == sorted(places)
    assert -1 not in places
