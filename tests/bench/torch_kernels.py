#!/usr/bin/env python3
"""Ceilings of a GPU and the speed of PyTorch's attention kernels on it, for reports. Prints one JSON object.

Copy: bytes read plus bytes written of a 2 GiB device-to-device copy. Product: 8192^3 in bf16, random data. Attention: causal, the shape of vrl11's
training step, per backend of scaled_dot_product_attention; FLOPs count visible pairs only, two products forward and five backward.
Medians of timed runs between events.
"""
import argparse, json, statistics
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


def median_ms(work, runs=20):
    for _ in range(3):
        work()
    times = []
    for _ in range(runs):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        work()
        b.record()
        torch.cuda.synchronize()
        times.append(a.elapsed_time(b))
    return statistics.median(times)


def attention(backend, b, t, h, kv, d):
    new = lambda heads: torch.randn(b, t, heads, d, device="cuda", dtype=torch.bfloat16).transpose(1, 2).requires_grad_()
    q, k, v = new(h), new(kv), new(kv)
    run = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    with sdpa_kernel(backend):
        with torch.no_grad():
            forward = median_ms(run)
        y = run()
        dy = torch.randn_like(y)
        backward = median_ms(lambda: torch.autograd.grad(y, (q, k, v), dy, retain_graph=True))
    pairs = b * h * t * (t + 1) / 2
    flops = lambda products: 2 * products * pairs * d
    return {"forward_ms": forward, "forward_tflops": flops(2) / forward / 1e9, "backward_ms": backward, "backward_tflops": flops(5) / backward / 1e9}


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--rows", type=int, default=48)
    a.add_argument("--len", type=int, default=2048)
    a = a.parse_args()
    x = torch.empty(1 << 31, dtype=torch.uint8, device="cuda")
    y = torch.empty_like(x)
    copy = median_ms(lambda: y.copy_(x))
    del x, y
    m, n = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = median_ms(lambda: m @ n)
    out = {"device": torch.cuda.get_device_name(), "copy_gbps": 2 * (1 << 31) / copy / 1e6, "product_tflops": 2 * 8192**3 / product / 1e9}
    for name, backend in [("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)]:
        try:
            out[name] = attention(backend, a.rows, a.len, 8, 4, 64)
        except RuntimeError as e:
            out[name] = str(e).splitlines()[0]
    print(json.dumps(out))


main()
