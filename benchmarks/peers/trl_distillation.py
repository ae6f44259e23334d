"""TRL 1.16 `DistillationTrainer`: frozen teacher, on-policy, forward KL (its beta 0), its defaults otherwise."""

import torch

# isort: split
from benchmarks.peers.trl_steps import Steps, settings, trl

# isort: split
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.peers.job import read_job


def main() -> None:
    """Do the job."""
    job = read_job()
    steps = Steps(job)
    chats = [{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in job.rows()]
    trainer = trl.DistillationTrainer(
        model=AutoModelForCausalLM.from_pretrained(job.student, dtype=torch.float32),
        teacher_model=AutoModelForCausalLM.from_pretrained(job.teacher, dtype=torch.bfloat16),
        args=trl.DistillationConfig(beta=0.0, **settings(job, not torch.cuda.is_available())),
        train_dataset=Dataset.from_list(chats),
        processing_class=AutoTokenizer.from_pretrained(job.student),
        callbacks=[steps],
    )
    trainer.train()
    steps.finish(trainer)


if __name__ == "__main__":
    main()
