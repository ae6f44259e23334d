"""TRL 1.16 `SDFTTrainer`: the teacher is the student's moving average, which sees the row's answer; full forward KL (alpha 0).

Its own default is the 100 likeliest tokens and Jensen-Shannon; the whole vocabulary is what recoup does.
"""

import torch

# isort: split
from benchmarks.peers.trl_steps import Steps, settings

# isort: split
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.experimental.sdft import SDFTConfig, SDFTTrainer

from benchmarks.peers.job import read_job

EMA_RATE = 0.02  # recoup's default


def main() -> None:
    """Do the job."""
    job = read_job()
    steps = Steps(job)
    rows = [
        {"prompt": [{"role": "user", "content": row["prompt"]}], "privileged_context": row["answer"]}
        for row in job.rows()
    ]
    args = SDFTConfig(
        distillation_mode="full_logits",
        distillation_alpha=0.0,
        teacher_model_kind="ema",
        teacher_update_rate=EMA_RATE,
        num_generations=1,
        **settings(job, not torch.cuda.is_available()),
    )
    trainer = SDFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(job.student, dtype=torch.float32),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(job.student),
        callbacks=[steps],
    )
    trainer.train()
    steps.finish(trainer)


if __name__ == "__main__":
    main()
