"""What each of two launched processes does in `test_processes`: recoveries, then every form of communication, by hand."""

import hashlib
import json
import sys
from pathlib import Path

import torch
from torch.distributed.fsdp import fully_shard

from recoup.config import Recover
from recoup.models.load import load
from recoup.recover import run as stage
from recoup.structure.guard import Guard
from recoup.structure.shards import LocalRows, row_structure
from recoup.training.optimizer import Stepper
from recoup.training.processes import all_processes


def communicate() -> dict[str, object]:
    """Sums, gathers and shares of numbers that differ by rank."""
    processes = all_processes()
    parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(3, 1).double())]
    if processes.is_main:
        parameters[0].grad = torch.tensor([1.0, 2.0])
    parameters[1].grad = torch.full((3, 1), 10.0 * (processes.rank + 1)).double()
    processes.sum_gradients(parameters)
    return {
        "sum": processes.sum([processes.rank + 1.0, 0.5]),
        "gather": processes.gather([f"row {processes.rank}"] * (processes.rank + 1)),
        "share": processes.share(f"said by {processes.rank}"),
        "mine": list(processes.mine(5)),
        "gradients": [p.grad.flatten().tolist() for p in parameters if p.grad is not None],
    }


def sharded(student: str) -> dict[str, object]:
    """Three steps of a guard on `fully_shard`'s shards beside three of a guard on the whole model, on the same gradients."""
    rank, name = all_processes().rank, "model.layers.0.mlp.up_proj.weight"
    loaded, twin = load(student), load(student)
    start, model = loaded.model.get_parameter(name).clone(), twin.model.requires_grad_(True)
    for block in model.model.layers:
        fully_shard(block)
    fully_shard(model)
    local = LocalRows(model)
    whole = Guard(loaded.model, loaded.structure)
    rows = Guard(local, row_structure(loaded.structure, model))
    optimizers = [torch.optim.AdamW(guard.parameters(), lr=1e-2) for guard in (whole, rows)]
    for step in range(3):
        tokens_BT = (torch.arange(16).view(2, 8) * (step + 3)) % 250
        for row in range(2):
            loaded.model(tokens_BT[row, None]).logits.logsumexp(-1).sum().backward()
        model(tokens_BT[rank, None]).logits.logsumexp(-1).sum().backward()
        for parameter, shard in zip(model.parameters(), dict(local.named_parameters()).values(), strict=True):
            shard.backward(
                parameter.grad.to_local() * 2
            )  # the mean over 2 processes, as their sum; to the guard's hooks
            parameter.grad = None
        for optimizer, guard in zip(optimizers, (whole, rows), strict=True):
            optimizer.step()
            guard.project()
            optimizer.zero_grad()
    pairs = zip(model.parameters(), loaded.model.parameters(), strict=True)
    kept, mine = rows.structure.constraints[name], row_structure(whole.structure, model).constraints[name]
    return {
        "rows_held": len(dict(local.named_parameters())[name]),
        "weights_equal": all(torch.equal(shards.full_tensor(), weight) for shards, weight in pairs),
        "structure_equal": all(torch.equal(kept.parameters[key], mine.parameters[key]) for key in mine.parameters),
        "moved": not torch.equal(start, loaded.model.get_parameter(name)),
    }


def main() -> None:
    """Every job, and for each a digest of the weights that this process ended with."""
    jobs, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    steppers: list[Stepper] = []
    start = Stepper.__init__

    def remember(stepper: Stepper, *arguments: object) -> None:
        start(stepper, *arguments)  # type: ignore[arg-type]
        steppers.append(stepper)

    Stepper.__init__ = remember  # type: ignore[method-assign,assignment]
    digests = {}
    for name, job in jobs.items():
        inputs = stage.RecoverInputs(job["student"], tuple(job["teachers"]), 0, before=job.get("before"))
        stage.run(Recover.model_validate(job["config"]), inputs, folder / name)
        digest = hashlib.sha256()
        for parameter in steppers[-1]._parameters:
            digest.update(parameter.detach().numpy().tobytes())
        digests[name] = digest.hexdigest()
    rank = all_processes().rank
    (folder / f"rank{rank}.json").write_text(
        json.dumps({"digests": digests, "sharded": sharded(jobs["exact"]["student"]), **communicate()})
    )


if __name__ == "__main__":
    main()
