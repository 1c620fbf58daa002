#!/usr/bin/env python3
"""One PyTorch process that times training steps of models/vrl11.golf's network on a GPU. Prints one JSON object.

The same mathematics as the .golf file (parameter-golf pull request 1016): bf16 activations and operands, f32 master weights, fused
attention through scaled_dot_product_attention, Muon over stacked equal matrices, AdamW on the rest, global clip. Random tokens. `--parity DIR` instead checks
loss and gradients against golden values in f32 and exits (any device).
"""
import argparse, json, math, statistics, time
import torch
import torch.nn.functional as F


def rms(x):
    return F.rms_norm(x, (x.size(-1),), eps=2.0**-23)


class Config:
    vocab, dim, heads, kv, layers, hidden, rope_dims, rope_base = 1024, 512, 8, 4, 11, 1536, 16, 22081.8
    xsa_last, buckets, bigram_dim, ve_dim, ve_layers = 4, 3072, 128, 128, (9, 10)


class Block(torch.nn.Module):
    def __init__(self, c, i):
        super().__init__()
        self.c, self.i, self.hd = c, i, c.dim // c.heads
        P = lambda *s: torch.nn.Parameter(torch.randn(*s) / math.sqrt(s[-1]))
        e = c.kv * self.hd
        self.q, self.k, self.v, self.o = P(c.dim, c.dim), P(e, c.dim), P(e, c.dim), P(c.dim, c.dim)
        self.fc, self.down = P(c.hidden, c.dim), P(c.dim, c.hidden)
        self.gain = torch.nn.Parameter(torch.full((c.heads,), 1.5))
        self.vr = torch.nn.Parameter(torch.full((2,), 0.5))
        self.attn_scale = torch.nn.Parameter(torch.ones(c.dim))
        self.mlp_scale = torch.nn.Parameter(torch.ones(c.dim))
        self.mix = torch.nn.Parameter(torch.stack((torch.ones(c.dim), torch.zeros(c.dim))))

    def rope(self, x, cos, sin):
        r = self.c.rope_dims
        a, b, rest = x[..., : r // 2], x[..., r // 2 : r], x[..., r:]
        return torch.cat((a * cos + b * sin, b * cos - a * sin, rest), dim=-1)

    def forward(self, x, x0, v0, ve, cos, sin):
        c, hd = self.c, self.hd
        b, t, _ = x.shape
        w = lambda p: p.to(x.dtype)
        x = w(self.mix)[0] * x + w(self.mix)[1] * x0
        ln = 1.0 / math.sqrt(self.i + 1)
        n = rms(x) * ln
        q = F.linear(n, w(self.q)).view(b, t, c.heads, hd)
        k = F.linear(n, w(self.k)).view(b, t, c.kv, hd)
        raw = F.linear(n, w(self.v))
        raw = (raw if ve is None else raw + ve).view(b, t, c.kv, hd)
        v = raw if v0 is None else w(self.vr)[0] * v0 + w(self.vr)[1] * raw
        q = self.rope(rms(q), cos, sin) * w(self.gain)[None, None, :, None]
        k = self.rope(rms(k), cos, sin)
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=True
        ).transpose(1, 2)
        if self.i >= c.layers - c.xsa_last:
            u = F.normalize(v.float(), dim=-1).to(x.dtype)[:, :, :, None, :]
            g = y.reshape(b, t, c.kv, c.heads // c.kv, hd)
            y = g - (g * u).sum(-1, keepdim=True) * u
        x = x + w(self.attn_scale) * F.linear(y.reshape(b, t, c.dim), w(self.o))
        h = F.leaky_relu(F.linear(rms(x) * ln, w(self.fc)), 0.5).square()
        return x + w(self.mlp_scale) * F.linear(h, w(self.down)), raw


class Model(torch.nn.Module):
    def __init__(self, c, t):
        super().__init__()
        self.c = c
        hd = c.dim // c.heads
        N = lambda *s: torch.nn.Parameter(torch.randn(*s) * 0.01)
        self.emb, self.bigram, self.bigram_proj = N(c.vocab, c.dim), N(c.buckets, c.bigram_dim), N(c.dim, c.bigram_dim)
        self.ve, self.ve_proj = N(c.vocab, c.ve_dim), N(c.kv * hd, c.ve_dim)
        S = lambda x: torch.nn.Parameter(torch.tensor(x))
        self.bigram_scale, self.ve_scale = S(0.05), S(0.1)
        self.ve_gains = torch.nn.ParameterList(S([1.0]) for _ in c.ve_layers)
        self.smear = torch.nn.Parameter(torch.zeros(c.dim))
        self.skip = torch.nn.Parameter(torch.ones(c.layers // 2, c.dim))
        self.blocks = torch.nn.ModuleList(Block(c, i) for i in range(c.layers))
        inv = 1.0 / (c.rope_base ** (torch.arange(0, c.rope_dims, 2, dtype=torch.float32) / c.rope_dims))
        a = torch.outer(torch.arange(t, dtype=torch.float32), inv)
        self.register_buffer("cos", a.cos()[None, :, None])
        self.register_buffer("sin", a.sin()[None, :, None])

    def forward(self, ids, targets, dtype):
        c = self.c
        w = lambda p: p.to(dtype)
        cos, sin = w(self.cos), w(self.sin)
        prev = F.pad(ids[:, :-1], (1, 0))
        pair = torch.bitwise_xor(36313 * ids, 27191 * prev) % (c.buckets - 1)
        pair = torch.cat((torch.full_like(pair[:, :1], c.buckets - 1), pair[:, 1:]), dim=1)
        x = w(F.embedding(ids, self.emb))
        x = x + F.linear(w(F.embedding(pair, self.bigram)), w(self.bigram_proj)) * w(self.bigram_scale)
        x = rms(x)
        g = torch.sigmoid(w(self.smear))
        x = (1 - g) * x + g * F.pad(x[:, :-1], (0, 0, 1, 0))
        ve = F.linear(w(F.embedding(ids, self.ve)), w(self.ve_proj)) * w(self.ve_scale)
        x0, v0, skips, half = x, None, [], c.layers // 2
        for i, block in enumerate(self.blocks):
            if i >= half and skips:
                x = x + w(self.skip)[i - half] * skips.pop()
            mine = w(self.ve_gains[c.ve_layers.index(i)]) * ve if i in c.ve_layers else None
            x, raw = block(x, x0, v0, mine, cos, sin)
            v0 = raw if v0 is None else v0
            if i < half:
                skips.append(x)
        z = F.linear(rms(x), w(self.emb))
        logits = 30.0 * torch.tanh(z / 30.0)
        return F.cross_entropy(logits.float().view(-1, c.vocab), targets.reshape(-1))


def newton_schulz(g):
    """Of a stack of matrices, in bf16."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16()
    tall = x.size(-2) > x.size(-1)
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        s = x @ x.mT
        x = a * x + (b * s + c * (s @ s)) @ x
    return x.mT if tall else x


class Optim:
    def __init__(self, model, ns):
        self.groups = {}
        for block in model.blocks:
            for p in (block.q, block.k, block.v, block.o, block.fc, block.down):
                self.groups.setdefault(tuple(p.shape), []).append(p)
        mine = {id(p) for ps in self.groups.values() for p in ps}
        rest = [p for p in model.parameters() if id(p) not in mine]
        self.all = list(model.parameters())
        self.adam = torch.optim.AdamW(rest, lr=0.025, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.04, fused=True)
        self.momentum = {s: torch.zeros(len(ps), *s, dtype=torch.bfloat16, device=ps[0].device) for s, ps in self.groups.items()}
        self.ns = ns

    @torch.no_grad()
    def step(self):
        torch.nn.utils.clip_grad_norm_([p for p in self.all if p.grad is not None], 0.3, foreach=True)
        for shape, ps in self.groups.items():
            g = torch.stack([p.grad for p in ps]).bfloat16()
            m = self.momentum[shape]
            m.mul_(0.95).add_(g)
            u = self.ns(g.add(m, alpha=0.95))
            torch._foreach_mul_(ps, 1 - 0.025 * 0.04)
            scale = -0.025 * max(1.0, shape[0] / shape[1]) ** 0.5
            torch._foreach_add_(ps, [x.float() for x in u.unbind(0)], alpha=scale)
        self.adam.step()


def parity(folder, device):
    from safetensors.torch import load_file

    case = json.load(open(f"{folder}/case.json"))
    c = Config()
    known = {**case["sizes"], **case["numerics"]}
    weights = load_file(f"{folder}/weights.safetensors")
    tokens = load_file(f"{folder}/tokens.safetensors")["tokens"].long()
    c.vocab, c.dim = weights["tok_emb.weight"].shape
    c.layers = 1 + max(int(n.split(".")[1]) for n in weights if n.startswith("blocks."))
    c.heads = weights["blocks.0.attn.q_gain"].numel()
    c.kv = weights["blocks.0.attn.c_k.weight"].shape[0] * c.heads // c.dim
    c.hidden = weights["blocks.0.mlp.fc.weight"].shape[0]
    c.buckets, c.bigram_dim = weights["bigram.embed.weight"].shape
    c.ve_dim = weights["ve_shared.embed.weight"].shape[1]
    c.rope_dims = known["rope_dims"]
    c.rope_base = known.get("rope_base_effective_at_T", known["rope_base"])
    c.ve_layers = tuple(known["ve_layers"])
    c.xsa_last = known["xsa_last_n"]
    model = Model(c, tokens.shape[1] - 1)
    names = {
        "emb": "tok_emb.weight", "bigram": "bigram.embed.weight", "bigram_proj": "bigram.proj.weight", "bigram_scale": "bigram.scale",
        "ve": "ve_shared.embed.weight", "ve_proj": "ve_shared.proj.weight", "ve_scale": "ve_shared.scale", "smear": "smear.gate", "skip": "skip_weights",
    }
    inner = {
        "q": "attn.c_q.weight", "k": "attn.c_k.weight", "v": "attn.c_v.weight", "o": "attn.proj.weight", "fc": "mlp.fc.weight", "down": "mlp.proj.weight",
        "gain": "attn.q_gain", "vr": "attn.vr_lambda", "attn_scale": "attn_scale", "mlp_scale": "mlp_scale", "mix": "resid_mix",
    }
    for n, p in model.named_parameters():
        parts = n.split(".")
        if parts[0] == "blocks":
            name = f"blocks.{parts[1]}.{inner[parts[2]]}"
        elif parts[0] == "ve_gains":
            name = f"ve_layer_scales.{parts[1]}"
        else:
            name = names[n]
        if name in weights:
            p.data = weights[name].reshape(p.shape).clone()
    model.to(device)
    loss = model(tokens[:, :-1].to(device), tokens[:, 1:].to(device), torch.float32)
    want = load_file(f"{folder}/forward.safetensors")["loss"].item()
    print(f"loss {loss.item():.6f}, golden {want:.6f}")
    assert abs(loss.item() - want) < 1e-4, "this network is not the golden one"


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--rows", type=int, default=48)
    a.add_argument("--len", type=int, default=2048)
    a.add_argument("--mode", default="compile", choices=["eager", "compile"])
    a.add_argument("--steps", type=int, default=10)
    a.add_argument("--device", default="cuda")
    a.add_argument("--sdpa", default="auto", choices=["auto", "flash", "cudnn"], help="attention kernels; auto: what PyTorch chooses")
    a.add_argument("--parity")
    a = a.parse_args()
    if a.parity:
        return parity(a.parity, a.device)
    if a.sdpa != "auto":
        torch.backends.cuda.enable_flash_sdp(a.sdpa == "flash")
        torch.backends.cuda.enable_mem_efficient_sdp(False)
        torch.backends.cuda.enable_math_sdp(False)
        torch.backends.cuda.enable_cudnn_sdp(a.sdpa == "cudnn")
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    model = Model(Config(), a.len).to(a.device)
    forward, ns = model, newton_schulz
    if a.mode == "compile":
        forward, ns = torch.compile(model, dynamic=False, fullgraph=True), torch.compile(newton_schulz)
    opt = Optim(model, ns)
    ids = torch.randint(0, 1024, (a.rows, a.len + 1), device=a.device)
    x, y = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def step():
        for p in model.parameters():
            p.grad = None
        loss = forward(x, y, torch.bfloat16)
        loss.backward()
        opt.step()
        return loss

    start = time.perf_counter()
    step()
    torch.cuda.synchronize()
    first = time.perf_counter() - start
    for _ in range(3):
        loss = step()
    torch.cuda.synchronize()
    times, parts = [], []
    for _ in range(a.steps):
        e = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
        e[0].record()
        for p in model.parameters():
            p.grad = None
        loss = forward(x, y, torch.bfloat16)
        loss.backward()
        e[1].record()
        opt.step()
        e[2].record()
        torch.cuda.synchronize()
        times.append(e[0].elapsed_time(e[2]) / 1e3)
        parts.append(e[1].elapsed_time(e[2]) / 1e3)
    tokens = a.rows * a.len
    print(json.dumps({
        "mode": a.mode, "sdpa": a.sdpa, "first_s": first, "step_s": times, "optimizer_s": statistics.median(parts), "loss": loss.item(), "tokens_per_s": tokens / statistics.median(times),
        "peak_memory": torch.cuda.max_memory_allocated(), "torch": torch.__version__, "device": torch.cuda.get_device_name(),
    }))


main()
