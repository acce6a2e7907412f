"""Training in several processes: all of them prune alike."""

import pytest
import torch
import torch.nn.functional as F
from torch import distributed, nn

from pruning import METHODS, PruneControl, masked, masked_layers


def batch(seed):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(8, 8, generator=source), torch.randint(3, (8,), generator=source)


def loss(model, seed):
    x, labels = batch(seed)
    return F.cross_entropy(model(x), labels)


def process(rank, meeting):
    """Train each method on this process's own mini-batches; all processes must come to the same network."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    try:
        for method in METHODS:
            torch.manual_seed(0)
            model = masked(nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3)))
            together = nn.parallel.DistributedDataParallel(model)
            optimizer = torch.optim.SGD(together.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
            control = PruneControl(model, 0.5, METHODS[method], optimizer=optimizer, ramp=40)
            for iteration in range(1, 15):
                optimizer.zero_grad()
                with together.no_sync():  # the first of two mini-batches to a step
                    loss(together, 1000 * rank + iteration).backward()
                loss(together, 1000 * rank + 500 + iteration).backward()
                if control.watching:
                    control.observe(iteration)
                optimizer.step()
                if iteration % 3 == 0 and not control.finished:  # accuracy and images are the same in all processes
                    control.update(iteration, 0.9, lambda: 0.9, lambda now=iteration: batch(now)[0])
            values = [value.flatten().double() for value in together.module.parameters()]
            values += [layer.mask.flatten().double() for layer in masked_layers(model).values()]
            own = torch.cat(values)
            both = [torch.empty_like(own) for _ in range(2)]
            distributed.all_gather(both, own)
            assert torch.equal(*both), method
            assert min(event.density for event in control.events) < 1 or method == "unpruned", method
    finally:
        distributed.destroy_process_group()


@pytest.mark.slow
def test_all_processes_prune_alike_with_every_method(tmp_path):
    torch.multiprocessing.spawn(process, (f"file://{tmp_path}/meeting",), nprocs=2)


def test_data_parallel_is_refused():
    with pytest.raises(RuntimeError, match="use DistributedDataParallel"):
        masked(nn.Linear(4, 2))._replicate_for_data_parallel()
