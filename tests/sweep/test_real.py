"""A whole sweep on a tiny model, in this process."""

import json
from pathlib import Path

from recoup import pipeline
from recoup.config_file import load_config
from recoup.results import EvaluateResult
from recoup.run_folder import RunFolder, result_path
from recoup.sweep.run import run
from recoup.sweep.table import leaderboard_markdown
from tests.sweep.sweeps import sweep
from tests.sweep.test_run import Done


def test_a_whole_sweep(tiny_model: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"please explain topic {n}" for n in range(40)))
    rows = [{"prompt": [{"role": "user", "content": f"Letter {n}?"}], "answer": "ABCD"[n % 4]} for n in range(8)]
    (tmp_path / "data" / "science_sdft").mkdir(parents=True)
    (tmp_path / "data" / "science_sdft" / "eval_507_paper.jsonl").write_text("\n".join(map(json.dumps, rows)))
    base = {
        "model": str(tiny_model),
        "diagnose": {"prompts": str(prompts), "num_prompts": 4, "max_tokens": 4, "behaviour": False},
        "recover": {
            "terms": [{"prompts": str(prompts), "num_prompts": 8}],
            "steps": 2, "batch_size": 4, "micro_batch_size": 4, "learning_rate": 1e-2,
            "rollout": {"max_tokens": 4}, "bootstrap": {"max_steps": 1},
        },
        "evaluate": {
            "tasks": ["science"], "data": str(tmp_path / "data"), "fidelity_prompts": str(prompts),
            "num_fidelity_prompts": 4, "fidelity_tokens": 4, "num_bootstrap": 50,
        },
    }  # fmt: skip
    small = sweep({
        "name": "tiny", "base": base, "methods": ["interpolate", "onpolicy"],
        "injuries": {"int3": {"settings": {"degrade": [{"type": "quantize", "bits": 3, "group_size": 16}]}}},
    })  # fmt: skip
    folder, scored = tmp_path / "sweep", []

    def in_this_process(config: Path, run_folder: RunFolder, _worker: int) -> Done:
        before = {path: path.stat().st_mtime_ns for path in run_folder.root.rglob("*.json")}
        pipeline.run(load_config(config), run_folder)
        scored.append({path.name for path in before if path.stat().st_mtime_ns != before[path]})
        return Done()

    result = run(small, folder, launch=in_this_process)
    assert result.failed == {}
    assert list(result.skipped) == ["int3-interpolate-seed0"]
    none, ours = result.rows
    assert (none.method, ours.method) == ("none", "onpolicy")
    assert ours.num_tokens > 0
    assert none.num_tokens == 0
    assert ours.structure_exact
    assert ours.cka is not None
    proof = EvaluateResult.read(result_path(folder / "int3-onpolicy-seed0" / "evaluate"))
    assert proof.recovered_fidelity is not None
    assert ours.token_kl_nats == proof.recovered_fidelity.token_kl_nats
    assert ours.general is not None
    assert proof.tasks[0].recovered is not None
    assert ours.general.score.value == proof.tasks[0].recovered.value
    # the baseline's damage and scores were believed: none of the files copied was written again
    assert scored == [set(), set()]
    assert not (folder / "int3-onpolicy-seed0" / "degrade" / "quantize" / "checkpoint").exists()
    assert "onpolicy" in leaderboard_markdown(result)
