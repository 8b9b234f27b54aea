"""One engine in one process: it runs the workload whose name it is sent, and answers how long.

    python -m benchmarks.cpu_engines minibrain|channels_first|channels_last

The first time it is named a workload is prepared and run twice, so that what is kept between runs
(memory, threads, compiled kernels) is there. An answer is a line of JSON: seconds of every part,
and the peak of resident memory since the process began, in bytes.
"""

import json
import os
import resource
import sys
import time
from functools import cache, partial

import numpy as np

from benchmarks.cpu_workloads import LAYERS, NETWORKS, SGEMM_SIZE

THREADS = len(os.sched_getaffinity(0))


def main(engine):
    make = _Minibrain() if engine == "minibrain" else _Torch(channels_last=engine[9:] == "last")
    prepared = cache(partial(_prepare, make))
    for line in sys.stdin:
        seconds = prepared(line.strip())()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "peak": peak}), flush=True)


def _prepare(make, name):
    """A function that runs a workload once and returns the seconds of its parts."""
    if name in LAYERS:
        run = make.layer(LAYERS[name])
    elif name == "sgemm":
        run = _sgemm()
    else:
        network, _, job = name.partition(" ")
        run = getattr(make, job)(NETWORKS[network])
    for _ in range(2):
        run()
    return run


def _timed(*parts):
    """Run functions one after the other, each with the result of the one before."""

    def run():
        result, seconds = None, []
        for part in parts:
            begin = time.perf_counter()
            result = part(result)
            seconds.append(time.perf_counter() - begin)
        return seconds

    return run


def _sgemm():
    a, b, c = np.ones((3, SGEMM_SIZE, SGEMM_SIZE), np.float32)
    return _timed(lambda _: np.matmul(a, b, out=c))


def _random(shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _labels(shape):
    return np.random.default_rng(1).integers(0, 4, shape)


class _Minibrain:
    def step(self, network):
        from minibrain import models
        from minibrain.optimizers import Adam
        from minibrain.training import train_step

        model = getattr(models, network.name)(seed=1)
        optimizer = Adam(model.named_parameters(), learning_rate=1e-4)
        images, labels = _random(network.shape), _labels(network.shape[:-1])
        return _timed(lambda _: train_step(model, optimizer, images, labels, optimizer.steps))

    def inference(self, network):
        from minibrain import models

        model, images = getattr(models, network.name)(seed=1), _random(network.shape)
        return _timed(lambda _: model.forward(images)[0])

    def layer(self, layer):
        from minibrain import functional as F

        name, options = "conv", {"padding": "same"}
        if layer.transposed:
            name, options = "conv_transpose", {"stride": layer.kernel}
        x, weight = _random(layer.input_shape), _random(layer.weight_shape)
        bias, dy = _random(layer.outgoing), _random(layer.output_shape)
        forward, backward = (getattr(F, f"{name}_{way}") for way in ("forward", "backward"))
        return _timed(
            lambda _: forward(x, weight, bias, **options)[1],
            lambda saved: backward(dy, saved, input_gradient=layer.input_gradient),
        )


class _Torch:
    """Either layout; float32 as PyTorch computes it when nothing is asked for."""

    def __init__(self, channels_last):
        import torch

        torch.set_num_threads(THREADS)
        self.channels_last = channels_last

    def _laid_out(self, thing, rank):
        import torch

        formats = {2: torch.channels_last, 3: torch.channels_last_3d}
        return thing.to(memory_format=formats[rank]) if self.channels_last else thing

    def _network(self, network):
        import torch

        from benchmarks import torch_unet

        torch.manual_seed(1)
        peers = {
            "brain_3d": lambda: torch_unet.peer_3d(torch_unet.DROPOUT_3D),
            "brain_2d": torch_unet.peer_2d,
        }
        return self._laid_out(peers[network.name](), network.rank)

    def _images(self, shape):
        import torch

        images = torch.from_numpy(np.ascontiguousarray(np.moveaxis(_random(shape), -1, 1)))
        return self._laid_out(images, len(shape) - 2)

    def step(self, network):
        import torch

        from benchmarks.torch_unet import cce_dice_loss

        model, images = self._network(network), self._images(network.shape)
        labels = torch.from_numpy(_labels(network.shape[:-1]))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

        def train_step(_):
            optimizer.zero_grad()
            loss = cce_dice_loss(model(images), labels)
            loss.backward()
            optimizer.step()
            return loss.item()

        return _timed(train_step)

    def inference(self, network):
        import torch

        model, images = self._network(network).eval(), self._images(network.shape)

        def predict(_):
            with torch.no_grad():
                return model(images)

        return _timed(predict)

    def layer(self, layer):
        import torch

        convolution = torch.nn.ConvTranspose3d if layer.transposed else torch.nn.Conv3d
        options = {"stride": layer.kernel} if layer.transposed else {"padding": layer.kernel // 2}
        layer_of_torch = convolution(layer.incoming, layer.outgoing, layer.kernel, **options)
        layer_of_torch = self._laid_out(layer_of_torch, 3)
        x, dy = self._images(layer.input_shape), self._images(layer.output_shape)
        x.requires_grad_(layer.input_gradient)

        def forward(_):
            x.grad = layer_of_torch.weight.grad = layer_of_torch.bias.grad = None
            return layer_of_torch(x)

        return _timed(forward, lambda y: y.backward(dy))


if __name__ == "__main__":
    main(sys.argv[1])
