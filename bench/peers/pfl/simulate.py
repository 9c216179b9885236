"""The task of SIMULATION.md in pfl-research with torch; prints one JSON line.

    python bench/peers/pfl/simulate.py --data mnist.npz [--workers 2] [the flags of task.py]

Everything as pfl's documentation has it: FederatedAveraging on a SimulatedBackend, weighted by data points. In pfl's
favour: data and module are resident, everything is warm before the first round, and no client evaluates. The training
loop is pfl's own, so what it costs more than a plain one counts as training here, not as overhead. Two workers are two
processes under torchrun, as pfl distributes a simulation.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).parents[1]))
from network import Records, fill, judge, network, tensors, warm
from task import Run, Spent, Task, memory_mb, order, start


def distribute(workers: int) -> None:
    """Run this script again in so many processes, which find torchrun's variables set."""
    where = ["--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={workers}"]
    command = [sys.executable, "-m", "torch.distributed.run", *where, *sys.argv]
    raise SystemExit(subprocess.run(command, check=False).returncode)


def simulate(task: Task, workers: int) -> str | None:
    """Return the line of results; None in all processes but the first."""
    called = time.perf_counter()
    # pfl joins the other processes when it is imported.
    import numpy as np
    import pfl.version
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import MinimizeReuseUserSampler
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
    from pfl.internal.ops.pytorch_ops import distributed
    from pfl.model.pytorch import PyTorchModel

    assert distributed.world_size == workers
    assert task.clients % workers == 0  # then every worker has the same clients in every round

    class Shuffled(Dataset):
        """A client's records, in the task's next order at every pass."""

        def __init__(self, client: int, records: Records) -> None:
            super().__init__(records, user_id=str(client))
            self.client, self.passes = client, 0

        def iter(self, batch_size: int) -> Iterator[Records]:
            number, epoch = divmod(self.passes, task.local_epochs)
            self.passes += 1
            images, labels = self.raw_data
            places = order(task, client=self.client, number=number + 1, epoch=epoch, count=len(labels))
            for batch in torch.from_numpy(places).split(batch_size):
                yield images[batch], labels[batch]

    class Timed(PyTorchModel):
        """pfl's model, its training loop timed."""

        spent = Spent()

        def do_multiple_epochs_of(self, *args: Any, **kwargs: Any) -> Any:
            begin = Spent.thread()
            done = super().do_multiple_epochs_of(*args, **kwargs)
            self.spent += Spent.thread() - begin
            return done

    class Trained(FederatedAveraging):
        """pfl's algorithm without the evaluation that it does in the first round, however rare it is set."""

        def get_next_central_contexts(self, *args: Any, **kwargs: Any) -> Any:
            contexts, model, metrics = super().get_next_central_contexts(*args, **kwargs)
            if contexts is None:
                return contexts, model, metrics
            return tuple(dataclasses.replace(one, do_evaluation=False) for one in contexts), model, metrics

    class Network(torch.nn.Sequential):
        def loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return cross_entropy(self(images), labels)

        def metrics(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
            raise AssertionError("Nothing is evaluated")

    np.random.seed(task.seed)  # noqa: NPY002 (pfl draws from it)
    module = Network(*network())
    fill(module, start(task))
    warm(task)
    sets = [Shuffled(client, records) for client, records in enumerate(tensors(task))]
    federation = FederatedDataset(sets.__getitem__, MinimizeReuseUserSampler(range(task.clients)))
    model = Timed(
        module,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(module.parameters(), lr=1.0),
    )
    if workers > 1:
        torch.distributed.barrier()
    ready = time.perf_counter()
    begin = Spent.tree(os.getppid() if workers > 1 else None)
    Trained().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=task.rounds,
            evaluation_frequency=task.rounds + 1,
            train_cohort_size=task.clients,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(federation, federation, postprocessors=[WeightByDatapoints()]),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=task.local_epochs,
            local_learning_rate=task.learning_rate,
            local_batch_size=task.batch_size,
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=None),
        send_metrics_to_platform=False,
    )
    rounds = Spent.tree(os.getppid() if workers > 1 else None) - begin
    memory = memory_mb(os.getppid() if workers > 1 else None)
    spent = torch.tensor([model.spent.wall, model.spent.cpu], dtype=torch.float64)
    if workers > 1:
        torch.distributed.all_reduce(spent)
        torch.distributed.destroy_process_group()
    if distributed.global_rank:
        return None
    run = Run("pfl", workers, rounds, Spent(*spent.tolist()), ready - called, memory)
    return run.line(task, judge(module, task), {"pfl": pfl.version.__version__, "torch": torch.__version__})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    Task.flags(parser)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.workers > 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        distribute(args.workers)
    line = simulate(Task.of(args), args.workers)
    if line:
        print(line)


if __name__ == "__main__":
    main()
