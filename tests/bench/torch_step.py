#!/usr/bin/env python3
"""One PyTorch CPU process that times training steps of models/baseline.golf's network. Prints one JSON object.

The same mathematics as the .golf file: 9 layers, dim 512, 8 query and 4 key/value heads, relu^2 MLP of 1024, U-Net skips, tied
head with softcap 30, Muon on the matrices, Adam on the rest. Random tokens. Called by bench.py in alternating processes.
"""
import argparse, json, math, time
import torch
import torch.nn.functional as F

VOCAB, DIM, HEADS, KV, LAYERS, HIDDEN = 1024, 512, 8, 4, 9, 1024
HD = DIM // HEADS


def rms(x):
    return F.rms_norm(x, (x.size(-1),), eps=2.0**-23)


def rope_tables(t):
    inv = 1.0 / (10000.0 ** (torch.arange(0, HD, 2, dtype=torch.float32) / HD))
    a = torch.outer(torch.arange(t, dtype=torch.float32), inv)
    return a.cos()[None, None], a.sin()[None, None]


def rope(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1)


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        P = lambda *s: torch.nn.Parameter(torch.randn(*s) / math.sqrt(s[-1]))
        self.q, self.k, self.v, self.o = P(DIM, DIM), P(KV * HD, DIM), P(KV * HD, DIM), P(DIM, DIM)
        self.fc, self.down = P(HIDDEN, DIM), P(DIM, HIDDEN)
        self.gain = torch.nn.Parameter(torch.full((HEADS,), 1.5))
        self.attn_scale = torch.nn.Parameter(torch.ones(DIM))
        self.mlp_scale = torch.nn.Parameter(torch.ones(DIM))
        self.mix = torch.nn.Parameter(torch.stack((torch.ones(DIM), torch.zeros(DIM))))

    def forward(self, x, x0, cos, sin):
        b, t, _ = x.shape
        m = self.mix.to(x.dtype)
        x = m[0] * x + m[1] * x0
        n = rms(x)
        heads = lambda w, h: F.linear(n, w.to(n.dtype)).view(b, t, h, HD).transpose(1, 2)
        q, k, v = heads(self.q, HEADS), heads(self.k, KV), heads(self.v, KV)
        q = rope(rms(q), cos, sin) * self.gain.to(x.dtype)[None, :, None, None]
        k = rope(rms(k), cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        y = F.linear(y.transpose(1, 2).reshape(b, t, DIM), self.o.to(x.dtype))
        x = x + self.attn_scale.to(x.dtype) * y
        h = torch.relu(F.linear(rms(x), self.fc.to(x.dtype))).square()
        return x + self.mlp_scale.to(x.dtype) * F.linear(h, self.down.to(x.dtype))


class Model(torch.nn.Module):
    def __init__(self, t):
        super().__init__()
        self.emb = torch.nn.Parameter(torch.randn(VOCAB, DIM) * 0.005)
        self.blocks = torch.nn.ModuleList(Block() for _ in range(LAYERS))
        self.skip = torch.nn.Parameter(torch.ones(LAYERS // 2, DIM))
        cos, sin = rope_tables(t)
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)

    def forward(self, ids, targets, dtype):
        x = rms(F.embedding(ids, self.emb).to(dtype))
        x0, skips, half = x, [], LAYERS // 2
        for i, block in enumerate(self.blocks):
            if i >= half and skips:
                x = x + self.skip[i - half].to(x.dtype) * skips.pop()
            x = block(x, x0, self.cos, self.sin)
            if i < half:
                skips.append(x)
        z = F.linear(rms(x), self.emb.to(x.dtype))
        logits = 30.0 * torch.tanh(z / 30.0)
        return F.cross_entropy(logits.float().view(-1, VOCAB), targets.reshape(-1))


def newton_schulz(g, dtype):
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.to(dtype)
    wide = x.size(0) <= x.size(1)
    x = x if wide else x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        s = x @ x.T
        x = a * x + (b * s + c * (s @ s)) @ x
    return x if wide else x.T


class Optim:
    def __init__(self, model, dtype):
        named = list(model.named_parameters())
        self.matrices = [p for n, p in named if p.ndim == 2 and "blocks" in n and "mix" not in n]
        rest = [p for p in model.parameters() if not any(p is m for m in self.matrices)]
        self.adam = torch.optim.Adam(rest, lr=0.04, betas=(0.9, 0.95), eps=1e-8, fused=True)
        self.momentum = [torch.zeros_like(p) for p in self.matrices]
        self.dtype = dtype

    @torch.no_grad()
    def step(self, ns):
        for p, m in zip(self.matrices, self.momentum):
            m.mul_(0.95).add_(p.grad)
            u = ns(p.grad.add(m, alpha=0.95), self.dtype)
            p.add_(u.to(p.dtype), alpha=-0.04 * max(1.0, p.size(0) / p.size(1)) ** 0.5)
        self.adam.step()


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--rows", type=int, default=1)
    a.add_argument("--len", type=int, default=1024)
    a.add_argument("--dtype", default="bf16", choices=["bf16", "f32"])
    a.add_argument("--mode", default="eager", choices=["eager", "compile"])
    a.add_argument("--steps", type=int, default=5)
    a = a.parse_args()
    torch.manual_seed(0)
    dtype = torch.bfloat16 if a.dtype == "bf16" else torch.float32
    model = Model(a.len)
    opt = Optim(model, dtype)
    forward, ns = model, newton_schulz
    start = time.perf_counter()
    if a.mode == "compile":
        forward, ns = torch.compile(model), torch.compile(newton_schulz)
    times, first = [], None
    for i in range(a.steps + 2):
        ids = torch.randint(0, VOCAB, (a.rows, a.len + 1))
        t0 = time.perf_counter()
        model.zero_grad(set_to_none=True)
        loss = forward(ids[:, :-1], ids[:, 1:], dtype)
        loss.backward()
        opt.step(ns)
        t1 = time.perf_counter()
        if i == 0:
            first = t1 - start
        if i >= 2:
            times.append(t1 - t0)
    print(json.dumps({"first_s": first, "step_s": times, "loss": loss.item(), "torch": torch.__version__, "threads": torch.get_num_threads()}))


main()
