"""The PyTorch peer of the encoder benchmark: the same model, in bf16 with scaled_dot_product_attention, eager and as a CUDA graph, and in
float32 for comparison.

Arguments: `encoder.py PTX torch`. Answers

- `version` with PyTorch's version;
- `load PATH` with the number of tensors of a safetensors file;
- `run BATCH LENGTH eager|graph COUNT` with the nanoseconds of the GPU for COUNT runs, one after another;
- `compare BATCH LENGTH PATH` with the greatest differences from float32, relative to its greatest number, of PyTorch's bf16 and of the
  activations in a file (bf16), with the differences in the mean (root mean square), with the cosines of all activations, and with the least
  cosines of a token's activations, always in this order.

The tokens are the numbers of a linear congruential generator, as in the benchmark.
"""

import json
import struct
import sys

import torch
import torch.nn.functional as F


def read(path):
    with open(path, "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
        data = bytearray(file.read())
    return {
        name: torch.frombuffer(data, dtype=torch.bfloat16, offset=about["data_offsets"][0], count=count(about["shape"])).view(about["shape"])
        for name, about in header.items()
        if name != "__metadata__"
    }


def count(shape):
    product = 1
    for size in shape:
        product *= size
    return product


class Encoder:
    def __init__(self, tensors, dtype):
        self.tensors = {name: tensor.to("cuda", dtype) for name, tensor in tensors.items()}
        self.layers = sum(name.endswith("qkv.weight") for name in tensors)
        self.hidden = tensors["embeddings.word"].shape[1]

    def linear(self, name, x):
        return F.linear(x, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])

    def norm(self, name, x):
        return F.layer_norm(x, (self.hidden,), self.tensors[f"{name}.gamma"], self.tensors[f"{name}.beta"], 1e-12)

    def __call__(self, ids):
        batch, length = ids.shape
        tensors, hidden = self.tensors, self.hidden
        x = self.norm("embeddings.norm", F.embedding(ids, tensors["embeddings.word"]) + tensors["embeddings.position"][:length])
        for index in range(self.layers):
            layer = f"layers.{index}"
            qkv = self.linear(f"{layer}.attention.qkv", x).view(batch, length, 3, hidden // 64, 64)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            context = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, hidden)
            x = self.norm(f"{layer}.attention.norm", x + self.linear(f"{layer}.attention.output", context))
            inner = F.gelu(self.linear(f"{layer}.mlp.up", x), approximate="tanh")
            x = self.norm(f"{layer}.mlp.norm", x + self.linear(f"{layer}.mlp.down", inner))
        return x


def make_ids(batch, length, vocabulary):
    state, ids = 1, []
    for _ in range(batch * length):
        state = (state * 1664525 + 1013904223) % 2**32
        ids.append(state * vocabulary // 2**32)
    return torch.tensor(ids, dtype=torch.int64, device="cuda").view(batch, length)


class Peer:
    def load(self, path):
        self.weights = read(path)
        self.model = Encoder(self.weights, torch.bfloat16)
        self.graphs = {}
        return [len(self.weights)]

    def ids(self, batch, length):
        return make_ids(batch, length, self.weights["embeddings.word"].shape[0])

    def record(self, batch, length):
        ids = self.ids(batch, length)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.model(ids)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.model(ids)
        return graph

    def run(self, batch, length, how, repeats):
        key = (batch, length, how)
        if key not in self.graphs:
            if how == "graph":
                self.graphs[key] = self.record(batch, length).replay
            else:
                ids = self.ids(batch, length)
                self.graphs[key] = lambda: self.model(ids)
        run = self.graphs[key]
        run()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        for _ in range(repeats):
            run()
        end.record()
        end.synchronize()
        return [int(start.elapsed_time(end) * 1e6)]

    def compare(self, batch, length, path):
        ids = self.ids(batch, length)
        torch.backends.cuda.matmul.allow_tf32 = False
        expected = Encoder(self.weights, torch.float32)(ids).view(-1, self.model.hidden)
        with open(path, "rb") as file:
            data = torch.frombuffer(bytearray(file.read()), dtype=torch.bfloat16)
        theirs = data.to("cuda").float().view(-1, self.model.hidden)
        own = self.model(ids).float().view(-1, self.model.hidden)
        differences = [((found - expected).abs().max() / expected.abs().max()).item() for found in (own, theirs)]
        means = [((found - expected).pow(2).mean().sqrt() / expected.pow(2).mean().sqrt()).item() for found in (own, theirs)]
        cosines = [F.cosine_similarity(found, expected, dim=1).min().item() for found in (own, theirs)]
        whole = [F.cosine_similarity(found.flatten().double(), expected.flatten().double(), dim=0).item() for found in (own, theirs)]
        return [*differences, *means, *whole, *cosines]


def answer(peer, line):
    name, *words = line.split()
    if name == "version":
        return [torch.__version__]
    with torch.inference_mode():
        if name == "load":
            return peer.load(*words)
        if name == "run":
            return peer.run(int(words[0]), int(words[1]), words[2], int(words[3]))
        return peer.compare(int(words[0]), int(words[1]), words[2])


def main():
    try:
        torch.cuda.init()
        peer = Peer()
        for line in sys.stdin:
            print(*answer(peer, line), flush=True)
    except Exception as error:
        print("error", type(error).__name__, str(error).replace("\n", " "), flush=True)


main()
