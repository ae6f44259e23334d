"""What each of two processes that share out the weights does in `test_sharded`: recoveries, and what each process then held."""

import json
import sys
from pathlib import Path

from recoup.config import Recover
from recoup.recover import run as stage
from recoup.training.optimizer import Stepper
from recoup.training.processes import all_processes
from recoup.training.sharding import RowGuard


def main() -> None:
    """Every job, and for each the bytes of what this process held of the trained weights and their optimizer."""
    jobs, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    kept: list[tuple[RowGuard, Stepper]] = []
    start = Stepper.__init__

    def remember(stepper: Stepper, guard: RowGuard, *arguments: object) -> None:
        start(stepper, guard, *arguments)  # type: ignore[arg-type]
        kept.append((guard, stepper))

    Stepper.__init__ = remember  # type: ignore[method-assign,assignment]
    held = {}
    for name, job in jobs.items():
        inputs = stage.RecoverInputs(job["student"], tuple(job["teachers"]), 0, before=job.get("before"))
        stage.run(Recover.model_validate(job["config"]), inputs, folder / name)
        guard, stepper = kept[-1]
        held[name] = {
            "weights": sum(weight.untyped_storage().nbytes() for weight in guard._weights.values()),
            "trained": sum(tensor.untyped_storage().nbytes() for tensor in guard.parameters()),
            "optimizer": stepper.optimizer_bytes(),
            "gradients": sum(len(held) for held in guard._held.values()),
        }
    (folder / f"rank{all_processes().rank}.json").write_text(json.dumps(held))


if __name__ == "__main__":
    main()
